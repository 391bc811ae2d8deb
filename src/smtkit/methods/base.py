"""What the methods share: reading windows in the shuffled order, and no-op hooks."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

from torch import Tensor

from smtkit.corpus.seeded import IntArray
from smtkit.corpus.windows import WindowReader, Windows
from smtkit.training.order import SampleOrder


@dataclass
class WindowSampler:
    """Base of the samplers: the windows of each batch.

    `by_length`: where windows differ in length, a batch takes windows of about one length, so that
    there is little padding; otherwise, as for validation, from all windows alike.
    """

    windows: WindowReader
    _: KW_ONLY
    batch_size: int
    seed: int
    by_length: bool = True

    def __post_init__(self) -> None:
        lengths = self.windows.lengths() if self.by_length else None
        self._order = SampleOrder(self.windows.per_epoch, self.batch_size, self.seed, lengths)

    def windows_of(self, step: int) -> list[int]:
        """Rows, or first tokens, of the windows in the whole batch of `step`."""
        return [int(start) for start in self._starts(self._order.entries(step))]

    def _read(self, step: int, part: int, parts: int) -> tuple[IntArray, IntArray, Windows]:
        """Slice `part` of `parts` of the batch of `step`: the numbers of its samples (B,), which
        key all random draws; where their windows start (B,), for labels the row; the B windows."""
        samples = self._order.entries(step, part, parts)
        starts = self._starts(samples)
        return samples, starts, self.windows.read(starts)

    def _starts(self, samples: IntArray) -> IntArray:
        return self.windows.starts(*self._order.rows(samples), self.seed)


class QuietMethod:
    """No-op hooks for methods that only define losses."""

    def observe(self, step: int, means: Mapping[str, Tensor], done: float = 0.0) -> None:
        pass

    def diagnostics(self, batch: object) -> dict[str, float]:
        return {}

    def warning(self, metrics: Mapping[str, float]) -> str | None:
        return None
