"""Drift: how far the free-running memories of an RNN are from its teacher's."""

import torch
from torch import Tensor

from smtkit.training.distributed import Ranks


class Drift:
    """Mean |rolled - teacher|^2 at each position, over the variance of the teacher's memories.

    The variance is the mean of |teacher - mean|^2 over all windows and positions 1..`window`, for
    memories of `size` (K D) numbers. A drift of 1 is that of always predicting the mean.
    """

    def __init__(self, window: int, size: int) -> None:
        self._window = window
        self._squared_error = torch.zeros(window, dtype=torch.float64)
        self._sum = torch.zeros(size, dtype=torch.float64)
        self._squared_sum = torch.zeros((), dtype=torch.float64)
        self._count = torch.zeros((), dtype=torch.float64)

    def add(self, rolled: Tensor, label: Tensor, first: int = 1) -> None:
        """Adds memories (B, n, K, D) of the RNN and the teacher at positions `first`, ...

        Positions outside 1..`window` are left out. For each window, all others must be added, in
        one call or in several.
        """
        start, stop = max(first, 1), min(first + label.shape[1], self._window + 1)
        if start >= stop:
            return
        inside = slice(start - first, stop - first)
        flat = label[:, inside].double().flatten(2)  # (B, n, Z)
        error = (rolled[:, inside] - label[:, inside]).double().flatten(2).square().sum((0, 2))
        self._squared_error[start - 1 : stop - 1] += error.cpu()
        self._sum += flat.sum((0, 1)).cpu()
        self._squared_sum += flat.square().sum().cpu()
        self._count += flat.shape[0] * flat.shape[1]

    def share(self, ranks: Ranks) -> None:
        """Sums what each rank has added."""
        self._squared_error, self._sum, self._squared_sum, self._count = ranks.sum_tensors(
            [self._squared_error, self._sum, self._squared_sum, self._count]
        )

    def by_position(self) -> list[float] | None:
        """Drift at positions 1..`window`; None if nothing was added."""
        if self._count == 0:
            return None
        variance = self._squared_sum / self._count - (self._sum / self._count).square().sum()
        windows = self._count / self._window
        return (self._squared_error / windows / variance.clamp_min(1e-12)).tolist()
