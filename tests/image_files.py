"""Image files to write, and how to read them back."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from smtkit.config import PixelConfig
from smtkit.corpus.images import ImageSet

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)


LABELS = np.array([3, 0, 255, 1, 3])


SIZES = st.integers(1, 12)


def idx_bytes(values: np.ndarray) -> bytes:
    header = struct.pack(f">I{values.ndim}I", 0x00000800 + values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


def write_idx(path: Path, values: np.ndarray) -> Path:
    content = idx_bytes(values)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_npy(path: Path, values: np.ndarray) -> Path:
    np.save(path, values)
    return path


def write_picture(path: Path, values: np.ndarray) -> Path:
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.fromarray(values).save(path)
    return path


def read(*inputs: Path, **settings: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """All levels and labels; what is known before they are read must hold of them."""
    images = ImageSet([str(path) for path in inputs], PixelConfig(**settings))
    blocks = list(images.blocks())
    pixels = np.concatenate([block.pixels for block in blocks])
    assert pixels.dtype == np.int64
    assert pixels.shape == (images.count, images.height, images.width)
    assert [block.labels is not None for block in blocks] == [images.labelled] * len(blocks)
    if not images.labelled:
        return pixels, None
    labels = np.concatenate([block.labels for block in blocks])
    assert labels.dtype == np.int64
    assert labels.shape == (images.count,)
    return pixels, labels


def refused(error: type[Exception], *inputs: Path, **settings: Any) -> str:
    with pytest.raises(error) as caught:
        read(*inputs, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert str(inputs[-1]) in message
    return message
