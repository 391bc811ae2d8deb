"""Drift: how far the free-running memories of an RNN are from its teacher's."""

import torch
from torch import Tensor

from smtkit.training.distributed import Ranks

_LEAST_SHARE = 1e-9  # of the variance; below it, differences are rounding errors


class Drift:
    """Mean |rolled - teacher|^2 at each position, over a variance of the teacher's memories.

    Memories have `size` (K D) numbers. The mean is taken over all windows; the variance is the mean
    of |teacher - mean|^2 over all windows and positions 1..`window`, or over the windows at one
    position. A drift of 1 is that of always predicting the mean, or the mean of the position.
    """

    def __init__(self, window: int, size: int) -> None:
        self._window = window
        self._squared_error = torch.zeros(window, dtype=torch.float64)
        self._sum = torch.zeros(window, size, dtype=torch.float64)
        self._squared_sum = torch.zeros(window, dtype=torch.float64)
        self._count = torch.zeros((), dtype=torch.float64)

    def add(self, rolled: Tensor, label: Tensor, first: int = 1) -> None:
        """Adds memories (B, n, K, D) of the RNN and the teacher at positions `first`, ...

        Positions outside 1..`window` are left out. For each window, all others must be added, in
        one call or in several.
        """
        start, stop = max(first, 1), min(first + label.shape[1], self._window + 1)
        if start >= stop:
            return
        inside, here = slice(start - first, stop - first), slice(start - 1, stop - 1)
        flat = label[:, inside].double().flatten(2)  # (B, n, Z)
        error = (rolled[:, inside] - label[:, inside]).double().flatten(2).square().sum((0, 2))
        self._squared_error[here] += error.cpu()
        self._sum[here] += flat.sum(0).cpu()
        self._squared_sum[here] += flat.square().sum((0, 2)).cpu()
        self._count += flat.shape[0] * flat.shape[1]

    def share(self, ranks: Ranks) -> None:
        """Sums what each rank has added."""
        self._squared_error, self._sum, self._squared_sum, self._count = ranks.sum_tensors(
            [self._squared_error, self._sum, self._squared_sum, self._count]
        )

    def by_position(self) -> list[float] | None:
        """Drift at positions 1..`window`, over the variance of all memories; None if nothing was
        added."""
        if self._count == 0:
            return None
        return (self._error() / self._variance().clamp_min(1e-12)).tolist()

    def between_sequences(self) -> list[float | None] | None:
        """Drift at positions 1..`window`, over the variance between windows at that position; None
        at positions where the teacher's memories do not differ, or if nothing was added."""
        if self._count == 0:
            return None
        windows = self._count / self._window
        variance = self._squared_sum / windows - (self._sum / windows).square().sum(1)
        differ = variance > _LEAST_SHARE * self._variance()
        drift = (self._error() / variance).tolist()
        return [value if found else None for value, found in zip(drift, differ, strict=True)]

    def _error(self) -> Tensor:
        """Mean squared error at each position."""
        return self._squared_error * self._window / self._count

    def _variance(self) -> Tensor:
        """Variance over all windows and positions, summed over the numbers of a memory."""
        mean = self._sum.sum(0) / self._count
        return self._squared_sum.sum() / self._count - mean.square().sum()
