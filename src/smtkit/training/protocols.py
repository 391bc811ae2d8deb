"""Interfaces between the training loop and what it trains: batches, samplers, methods."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

FREE_RUNNING_ACCURACY = "free_running_accuracy"
"""Validation metric: accuracy of the RNN's free-running predictions."""


class Batch(Protocol):
    """A dataclass whose fields are tensors, or objects with `map(function)`.

    `map` returns a copy with the function applied to each of the object's tensors.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def tokens_read(self) -> int: ...


BatchT = TypeVar("BatchT", bound=Batch)
BatchT_co = TypeVar("BatchT_co", bound=Batch, covariant=True)
BatchT_contra = TypeVar("BatchT_contra", bound=Batch, contravariant=True)


class Sampler(Protocol[BatchT_co]):
    """Gives slice `part` of `parts` of the batch of `step`.

    `batch` is a pure function, which several threads may call at once.
    """

    def batch(self, step: int, part: int = 0, parts: int = 1) -> BatchT_co: ...

    def windows_of(self, step: int) -> list[int]:
        """Rows, or first tokens, of the windows in the whole batch of `step`, for messages."""


class Measure(Protocol[BatchT_contra]):
    """Named terms of a batch: their sums and their counts. A mean is sum / max(count, 1)."""

    def counts(self, batch: BatchT_contra) -> dict[str, int]: ...

    def losses(self, batch: BatchT_contra) -> dict[str, Tensor]: ...


class Method(Measure[BatchT_contra], Protocol[BatchT_contra]):
    """A training objective: a measure whose terms are weighted and added to a loss.

    The loss is the sum over terms of weight * mean, with sums and counts taken over all parts of
    the batch on all ranks. `network` is what the optimizer updates. `state` holds, in its buffers,
    what the method remembers between updates; it is saved in checkpoints.
    """

    @property
    def network(self) -> nn.Module: ...

    @property
    def state(self) -> nn.Module: ...

    def weights(self, step: int, done: float = 0.0) -> dict[str, float]:
        """Weight of each term in the update of `step`, before which a share `done` of the run is
        over."""

    def observe(self, step: int, means: Mapping[str, Tensor], done: float = 0.0) -> None:
        """Called after each update, with what `weights` was given, and the means of all terms
        whose count is not zero."""

    def diagnostics(self, batch: BatchT_contra) -> dict[str, float]:
        """Additional values to log with the losses."""

    def warning(self, metrics: Mapping[str, float]) -> str | None:
        """A warning for the user about logged `metrics`, or None."""


@dataclass(frozen=True)
class Validation(Generic[BatchT]):
    """A measure of held-out batches: steps 0..`batches` - 1 of `sampler`."""

    measure: Measure[BatchT]
    sampler: Sampler[BatchT]
    batches: int


def moved(batch: BatchT, device: torch.device) -> BatchT:
    """The batch on `device`, copied from pinned memory without waiting."""
    if device.type == "cpu":
        return batch

    def move(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value.map(move)
        pinned = value.pin_memory() if value.numel() else value
        return pinned.to(device, non_blocking=True)

    fields = {field.name: move(getattr(batch, field.name)) for field in dataclasses.fields(batch)}
    return dataclasses.replace(batch, **fields)
