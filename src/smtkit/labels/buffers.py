"""Memory to read into, used again and again: fresh pages cost more than the copy into them."""

import weakref
from collections import deque
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Buffers:
    """Bytes as tensors; each is lent again only when no tensor refers to it any more.

    `pinned`: page-locked, for asynchronous copies to CUDA. torch keeps such memory itself, and
    waits for the copies from it. May be used by many threads.
    """

    def __init__(self, *, pinned: bool = False) -> None:
        self._pinned = pinned
        self._free: deque[NDArray[Any]] = deque()

    def take(self, size: int) -> Tensor:
        """(size,) uint8, with anything in it."""
        if self._pinned:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        buffer = self._unused(size)
        lent = buffer[:size]
        # The tensor, and all views of it, hold `lent`; nothing else does.
        weakref.finalize(lent, self._free.append, buffer).atexit = False
        return torch.from_numpy(lent)

    def _unused(self, size: int) -> NDArray[Any]:
        """A free buffer that is large enough; the smaller ones before it are given up."""
        # No lock: a finalizer may run anywhere, and either end of a deque is atomic.
        while True:
            try:
                buffer = self._free.pop()
            except IndexError:
                return np.empty(size, dtype=np.uint8)
            if buffer.nbytes >= size:
                return buffer
