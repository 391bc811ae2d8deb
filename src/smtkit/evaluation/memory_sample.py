"""A sample of one predictor's memories, from which signs of collapse are computed.

B: windows in a batch, n: positions, K: slots, D: slot width.
"""

import math

import numpy as np
import torch
from torch import Tensor

from smtkit.corpus.seeded import IntArray, random_key, stratified
from smtkit.methods.losses import memory_health
from smtkit.training.distributed import Ranks

_MEMORIES = 4096
_PAIRS = 2**26  # K N^2 numbers, of which uniformity holds a few copies


class MemorySample:
    """Memories at a few positions of each of `windows` windows.

    Positions are evenly spaced in 1..`length`, or as far as the window goes, from a phase that
    depends on the window's index alone: batches and ranks do not change them.
    """

    def __init__(self, windows: int, length: int, slots: int, slot_width: int) -> None:
        self._length = length
        self._limit = min(_MEMORIES, math.isqrt(_PAIRS // slots))
        draws = min(math.ceil(self._limit / windows), length)
        self._memory = torch.zeros(windows, draws, slots, slot_width)
        self._present = torch.zeros(windows, draws, dtype=torch.int64)

    def add(self, memory: Tensor, first: int, windows: IntArray, lengths: IntArray) -> None:
        """Keeps the sampled ones of memory (B, n, K, D) at positions `first`, ...

        windows (B,): their indices; lengths (B,): their tokens.
        """
        offset = self._positions(windows, lengths) - first
        batch, draws = ((offset >= 0) & (offset < memory.shape[1])).nonzero()
        sampled = memory[torch.from_numpy(batch), torch.from_numpy(offset[batch, draws])]
        self._memory[windows[batch], draws] = sampled.float().cpu()
        self._present[windows[batch], draws] = 1

    def share(self, ranks: Ranks) -> None:
        """Joins the memories that the ranks have added, each of other windows."""
        (self._memory,) = ranks.sum_tensors([self._memory])
        (self._present,) = ranks.sum_tensors([self._present])

    def health(self) -> dict[str, float] | None:
        """`memory_health` of at most a few thousand memories; None for fewer than two."""
        memory = self._memory[self._present > 0]
        if len(memory) < 2:
            return None
        chosen = np.linspace(0, len(memory) - 1, min(self._limit, len(memory))).round()
        return memory_health(memory[chosen.astype(np.int64)])

    def _positions(self, windows: IntArray, lengths: IntArray) -> IntArray:
        """(B, draws), ascending; -1 in place of a position that was drawn before."""
        sizes = np.minimum(lengths, self._length)
        draws = self._memory.shape[1]
        positions = 1 + stratified(random_key("memory health"), windows, draws, sizes)
        positions[:, 1:][np.diff(positions) == 0] = -1
        return positions
