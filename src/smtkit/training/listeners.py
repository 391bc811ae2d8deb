"""Listeners to the records of a training run: TensorBoard, and Weights & Biases.

They receive what `metrics.jsonl` holds, and histograms of the weights. Both are extras, imported
when a run starts.
"""

import os
from collections.abc import Mapping
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from smtkit.errors import UsageError
from smtkit.training.metrics import Record

Histograms = Mapping[str, NDArray[np.float32]]


class Listener(Protocol):
    """Receives the records of one run, on its first rank."""

    def start(self, step: int) -> None:
        """A run starts at `step`, or goes on there; records of later steps follow, perhaps
        again."""

    def record(self, record: Record) -> None:
        """A line of the metrics log: `step`, `split`, and numbers by name, or a `text`."""

    def histograms(self, step: int, values: Histograms) -> None:
        """All numbers of each weight."""

    def close(self) -> None:
        """No records follow."""


class TensorBoard:
    """Writes event files to a directory, which `tensorboard --logdir` shows.

    Raises UsageError where tensorboard is not installed.
    """

    def __init__(self, directory: str) -> None:
        _check_installed("tensorboard")
        self._directory = directory
        self._writer: Any = None

    def start(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Hides what an interrupted run wrote after its last checkpoint.
        self._writer = SummaryWriter(self._directory, purge_step=step + 1 if step else None)

    def record(self, record: Record) -> None:
        step, split = record["step"], record["split"]
        for name, value in _numbers(record).items():
            self._writer.add_scalar(f"{split}/{name}", value, step)
        if "text" in record:
            lines = record["text"].splitlines()
            self._writer.add_text(split, "\n".join(f"    {line}" for line in lines), step)

    def histograms(self, step: int, values: Histograms) -> None:
        for name, numbers in values.items():
            self._writer.add_histogram(f"weights/{name}", numbers, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases:
    """Logs a run of the name and group `out`; a resumed run is another one of the same group.

    The project is WANDB_PROJECT, by default smtkit; WANDB_MODE=offline writes to ./wandb alone.
    Raises UsageError where wandb is not installed.
    """

    def __init__(self, out: str, config: Mapping[str, Any]) -> None:
        _check_installed("wandb")
        self._out = out
        self._config = config
        self._package: Any = None
        self._run: Any = None

    def start(self, step: int) -> None:
        import wandb

        self._package = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "smtkit"),
            name=Path(self._out).name,
            group=self._out,
            config=dict(self._config),
            settings=wandb.Settings(console="off"),
        )

    def record(self, record: Record) -> None:
        split = record["split"]
        shown: dict[str, Any] = {f"{split}/{n}": v for n, v in _numbers(record).items()}
        if "text" in record:
            shown[split] = self._package.Html(f"<pre>{escape(record['text'])}</pre>")
        self._run.log(shown, step=record["step"])

    def histograms(self, step: int, values: Histograms) -> None:
        shown = {f"weights/{name}": self._package.Histogram(v) for name, v in values.items()}
        self._run.log(shown, step=step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


def _numbers(record: Record) -> dict[str, float]:
    """The metrics of a record."""
    found = {name: value for name, value in record.items() if isinstance(value, int | float)}
    found.pop("step", None)
    return found


def _check_installed(package: str) -> None:
    if find_spec(package) is None:
        install = f"pip install 'smtkit[{package}]'"
        raise UsageError(f"`{package}`: {package} is not installed", install)
