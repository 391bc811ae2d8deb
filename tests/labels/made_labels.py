"""Labels made by hand."""

from pathlib import Path

import numpy as np
import torch

from smtkit.corpus.windows import Windows
from smtkit.labels.codec import EncodedMemory
from smtkit.labels.format import LabelShape
from smtkit.labels.reader import LabelShards
from smtkit.labels.writer import write_labels


def made(path: Path, memory: np.ndarray, dtype: str) -> LabelShards:
    """A shard of memories (B, T + 1, K, D), whose tokens and targets encode row and position."""
    rows, positions, slots, width = memory.shape
    numbers = 100 * np.arange(rows)[:, None] + np.arange(positions)
    windows = Windows(numbers[:, :-1], numbers + 50, np.full(rows, positions - 1, dtype=np.int64))
    shape = LabelShape(positions - 1, slots, width, 60_000, dtype)
    write_labels(path, shape, windows, memory, np.arange(rows))
    return LabelShards([path])


def stored(memory: EncodedMemory) -> torch.Tensor:
    return memory.columns["memory"]


def normal(*size: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(size, dtype=np.float32)
