"""What the loop asks of a method, of the batches it learns from, and of what it is measured by."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from torch import Tensor, nn

FREE_RUNNING_ACCURACY = "free_running_accuracy"
"""Validation metric: accuracy of the RNN's own rollout."""


class Batch(Protocol):
    """A dataclass of tensors."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def tokens_read(self) -> int: ...


BatchT = TypeVar("BatchT", bound=Batch)
BatchT_co = TypeVar("BatchT_co", bound=Batch, covariant=True)
BatchT_contra = TypeVar("BatchT_contra", bound=Batch, contravariant=True)


class Sampler(Protocol[BatchT_co]):
    """Slice `part` of `parts` of the batch of `step`: a pure function."""

    def batch(self, step: int, part: int = 0, parts: int = 1) -> BatchT_co: ...


class Measure(Protocol[BatchT_contra]):
    """Sums of named terms over a batch, and their counts. A mean is sum / max(count, 1)."""

    def counts(self, batch: BatchT_contra) -> dict[str, int]: ...

    def losses(self, batch: BatchT_contra) -> dict[str, Tensor]: ...


class Method(Measure[BatchT_contra], Protocol[BatchT_contra]):
    """An objective: a measure whose terms have weights.

    The loss is the sum over terms of weight * mean, with sums and counts taken over all parts of
    the batch, on all ranks. `observe` is told the means of every update's terms, but for those that
    counted nothing; what the method keeps of them lies in `state` (buffers), which is saved with
    the run.
    `diagnostics` are more numbers to log; `concern` says what of them the user should know now.
    """

    @property
    def network(self) -> nn.Module: ...

    @property
    def state(self) -> nn.Module: ...

    def weights(self, step: int) -> dict[str, float]: ...

    def observe(self, step: int, means: Mapping[str, Tensor]) -> None: ...

    def diagnostics(self, batch: BatchT_contra) -> dict[str, float]: ...

    def concern(self, metrics: Mapping[str, float]) -> str | None: ...


@dataclass(frozen=True)
class Validation(Generic[BatchT]):
    """A measure of held-out batches: steps 0..`batches` - 1 of `source`."""

    measure: Measure[BatchT]
    source: Sampler[BatchT]
    batches: int
