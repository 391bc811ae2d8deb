"""Reused buffers to read into: allocating fresh pages costs more than filling them."""

import weakref
from collections import deque
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Buffers:
    """Byte tensors whose buffers are reused once no tensor refers to them any more.

    `pinned`: page-locked buffers, for asynchronous copies to CUDA. torch reuses these itself, after
    the copies from them have ended. Methods may be called by many threads.
    """

    def __init__(self, *, pinned: bool = False) -> None:
        self._pinned = pinned
        self._free: deque[NDArray[Any]] = deque()

    def take(self, size: int) -> Tensor:
        """An uninitialised uint8 tensor (size,)."""
        if self._pinned:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        buffer = self._unused(size)
        view = buffer[:size]
        # The tensor returned and all views of it refer to `view`, and nothing else does: when it is
        # collected, nobody can read the buffer any more.
        weakref.finalize(view, self._free.append, buffer).atexit = False
        return torch.from_numpy(view)

    def _unused(self, size: int) -> NDArray[Any]:
        """A free buffer of at least `size` bytes, else a new one. Smaller free ones are dropped."""
        # No lock: finalizers run at any point of any thread; appending to and popping from a deque
        # are atomic.
        while True:
            try:
                buffer = self._free.pop()
            except IndexError:
                return np.empty(size, dtype=np.uint8)
            if buffer.nbytes >= size:
                return buffer
