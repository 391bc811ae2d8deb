"""A small method, trainer and log reader for the tests of the loop."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from conftest import Recorder
from smtkit.config import TrainingConfig
from smtkit.training.loop import CLOCKS, Trainer
from smtkit.training.protocols import Validation


@dataclass(frozen=True)
class Rows:
    """inputs (B, 3), outputs (B, 2), counted (B,): rows that enter the loss."""

    inputs: Tensor
    outputs: Tensor
    counted: Tensor

    @property
    def tokens_read(self) -> int:
        return len(self.inputs)


class RowSampler:
    """Four rows per step, of which the first `step % 4 + 1` are counted."""

    def windows_of(self, step: int) -> list[int]:
        return [step]

    def batch(self, step: int, part: int = 0, parts: int = 1) -> Rows:
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(4, 3, generator=generator)
        outputs = torch.randn(4, 2, generator=generator)
        counted = torch.arange(4) <= step % 4
        share = 4 // parts
        own = slice(part * share, (part + 1) * share)
        return Rows(inputs[own], outputs[own], counted[own])


class Regression:
    """Least-squares regression with a linear map; the loss is scaled by `scale(step)`."""

    def __init__(self, scale: Callable[[int], float] = lambda step: 1.0) -> None:
        torch.manual_seed(0)
        self.network = nn.Linear(3, 2)
        self.state = nn.Module()
        self._scale = scale

    def weights(self, step: int, done: float = 0.0) -> dict[str, float]:
        return {"error": self._scale(step)}

    def counts(self, batch: Rows) -> dict[str, int]:
        return {"error": int(batch.counted.sum())}

    def losses(self, batch: Rows) -> dict[str, Tensor]:
        errors = (self.network(batch.inputs) - batch.outputs).square().sum(1)
        return {"error": errors[batch.counted].sum()}

    def observe(self, step: int, means: dict[str, Tensor], done: float = 0.0) -> None:
        pass

    def diagnostics(self, batch: Rows) -> dict[str, float]:
        return {}

    def warning(self, metrics: dict[str, float]) -> str | None:
        return None


def training_config(**changes) -> TrainingConfig:
    settings = {
        "batch_size": 4,
        "max_steps": 10,
        "learning_rate": 0.1,
        "weight_decay": 0.0,
        "clip": 1e9,
        "schedule": "constant",
        "warmup_steps": 0,
        "log_every": 1,
        "validate_every": 100,
        "checkpoint_every": 100,
    }
    return TrainingConfig(**{**settings, **changes})


def trainer(
    directory: Path, method, config: TrainingConfig, progress=None, clocks=CLOCKS, **options
) -> Trainer:
    sampler = RowSampler()
    timed = type("Timed", (Trainer,), {"clocks": clocks})
    return timed(
        method,
        sampler,
        [Validation(method, sampler, 2)],
        config,
        directory,
        progress=progress,
        **options,
    )


def records(directory: Path) -> list[dict]:
    (path,) = directory.rglob("metrics.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def reported(directory: Path, split: str) -> list[dict]:
    return [record for record in records(directory) if record["split"] == split]


class KilledError(Exception):
    """Takes the place of the death of the process."""


class Trap(Recorder):
    """Progress that calls `act` when `at` units of `task` are done."""

    def __init__(self, task: str, at: float, act: Callable[[], None]) -> None:
        super().__init__()
        self._task, self._at, self._act = task, at, act

    def update(self, task: str, completed: float, total: float | None, **metrics) -> None:
        if task == self._task and completed == self._at:
            self._act()


def kill() -> None:
    raise KilledError


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)
