"""A regression with terms and parameters that not every batch uses; run by ranks of torchrun.

    torchrun --nproc-per-node 2 toy.py OUT

writes to OUT/RANK.pt, for each of CASES, the gradients of every update and the final weights.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smtkit.config import TrainingConfig
from smtkit.methods.base import QuietMethod
from smtkit.training.distributed import Ranks, join, leave
from smtkit.training.loop import Trainer
from smtkit.training.protocols import Validation

STEPS, BATCH = 3, 12
CASES = [("none", 1), ("none", 2), ("fsdp", 1), ("fsdp", 2)]
"""`training.sharding` and `training.accumulation`."""


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
    """Rows that are counted more often in later parts of a batch, and never in the first two."""

    def windows_of(self, step: int) -> list[int]:
        return [step]

    def batch(self, step: int, part: int = 0, parts: int = 1) -> Rows:
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(BATCH, 3, generator=generator)
        outputs = torch.randn(BATCH, 2, generator=generator)
        counted = torch.arange(BATCH) >= 2 + step
        own = slice(part * BATCH // parts, (part + 1) * BATCH // parts)
        return Rows(inputs[own], outputs[own], counted[own])


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.used = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 2)])
        self.scale = nn.Parameter(torch.ones(2))
        self.weight_zero = nn.Linear(3, 2)  # in a term of weight 0
        self.unused = nn.Linear(3, 2)  # in no term
        self.frozen = nn.Parameter(torch.randn(2), requires_grad=False)


class Toy(QuietMethod):
    """Two terms of different weights and counts, and one of weight 0."""

    def __init__(self) -> None:
        self.network, self.state = Network(), nn.Module()

    def weights(self, step: int, done: float = 0.0) -> dict[str, float]:
        return {"error": 2.0, "size": 0.5, "nothing": 0.0}

    def counts(self, batch: Rows) -> dict[str, int]:
        return {
            "error": int(batch.counted.sum()),
            "size": len(batch.inputs),
            "nothing": len(batch.inputs),
        }

    def losses(self, batch: Rows) -> dict[str, Tensor]:
        network = self.network
        hidden = network.used[0](batch.inputs).tanh()
        predicted = network.used[1](hidden) * network.scale + network.frozen
        errors = (predicted - batch.outputs).square().sum(1)
        return {
            "error": errors[batch.counted].sum(),
            "size": predicted.square().sum(),
            "nothing": network.weight_zero(batch.inputs).sum(),
        }


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


Gradients = list[dict[str, Tensor]]


def train(out: Path, ranks: Ranks, sharding: str, accumulation: int) -> tuple[Gradients, Any]:
    """Gradients (by name, without those that are None) of each update, and the final weights."""
    method = Toy()
    config = TrainingConfig(
        batch_size=BATCH,
        accumulation=accumulation,
        max_steps=STEPS,
        sharding=sharding,
        clip=1e9,
        validate_every=1000,
        checkpoint_every=1000,
    )
    validation = Validation(method, RowSampler(), 1)
    directory = out / f"{sharding}-{accumulation}"
    directory.mkdir(exist_ok=True)
    trainer = Trainer(method, RowSampler(), [validation], config, directory, ranks=ranks)
    gradients: Gradients = []

    def record(*_: object) -> None:
        named = method.network.named_parameters()
        gradients.append({n: whole(p.grad).clone() for n, p in named if p.grad is not None})

    trainer.state.optimizer.register_step_pre_hook(record)
    trainer.run()
    return gradients, {name: whole(t) for name, t in method.network.state_dict().items()}


def main(out: Path) -> None:
    torch.set_num_threads(1)
    ranks = join("cpu")
    torch.save({case: train(out, ranks, *case) for case in CASES}, out / f"{ranks.rank}.pt")
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    # As the command line ends a rank: torch's threads may abort a process that is torn down.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
