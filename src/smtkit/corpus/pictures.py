"""Images for people: grids as PNG files, and shades in a terminal."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from smtkit.errors import InputOutputError, UsageError

_SHADES = " ░▒▓█"
_GAP = 2
BETWEEN = 96
"""The grey between pictures, of 255."""


def write_grid(images: Sequence[NDArray[np.int64]], white: int, path: Path) -> None:
    """Writes images of levels (height, width) in 0..white as a PNG, as square a grid as can be.

    Raises UsageError without Pillow, InputOutputError where the file cannot be written.
    """
    try:
        from PIL import Image
    except ImportError:
        raise UsageError(f"{path}: pictures need Pillow", "pip install 'smtkit[images]'") from None
    height, width = (size + _GAP for size in images[0].shape)
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    grid = np.full((rows * height - _GAP, columns * width - _GAP), BETWEEN, dtype=np.uint8)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        place = grid[row * height :, column * width :]
        place[: image.shape[0], : image.shape[1]] = 255 * image // white
    try:
        Image.fromarray(grid).save(path, format="PNG")
    except OSError as error:
        raise InputOutputError(f"{path}: {error.strerror or error}") from None


def shades(image: NDArray[np.int64], white: int) -> str:
    """An image of levels in 0..white as lines of text, two columns a pixel."""
    levels = image * (len(_SHADES) - 1) // white
    return "\n".join("".join(2 * _SHADES[level] for level in line) for line in levels)
