"""Images for people: grids as PNG files, and shades in a terminal.

H, W: height and width of an image. Levels are in 0..white.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smtkit.errors import UsageError
from smtkit.storage.files import atomic_file, named_errors

Levels = NDArray[np.int64]

_SHADES = " ░▒▓█"
_DOT = "\N{MIDDLE DOT} "
_GAP = 2
_SCREEN = 512
"""Grids that are smaller are enlarged, by a whole number, to up to so many screen pixels."""
BETWEEN = 96
"""The grey between pictures, of 255."""


def import_pillow(path: Path) -> Any:
    """The module `PIL.Image`. Raises UsageError, which names the file it is for, without Pillow."""
    try:
        from PIL import Image
    except ImportError:
        raise UsageError(f"{path}: pictures need Pillow", "pip install 'smtkit[images]'") from None
    return Image


def check_png(path: Path, key: str) -> None:
    """Raises UsageError where the file that the setting `key` names is not called a PNG."""
    if path.suffix.lower() not in ("", ".png"):
        raise UsageError(f"`{key}` {path}: pictures are written as PNG, allowed: {path.stem}.png")


def write_grid(images: Sequence[Levels], white: int, path: Path) -> None:
    """Writes images (H, W) as one PNG, as square a grid as can be, of several screen pixels per
    pixel where it is small; replaces `path` atomically.

    Raises UsageError without Pillow, InputOutputError where the file cannot be written.
    """
    pillow = import_pillow(path)
    height, width = (size + _GAP for size in images[0].shape)
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    grid = np.full((rows * height - _GAP, columns * width - _GAP), BETWEEN, dtype=np.uint8)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        cell = grid[row * height :, column * width :]
        cell[: image.shape[0], : image.shape[1]] = 255 * image // white
    scale = max(1, _SCREEN // max(grid.shape))
    grid = grid.repeat(scale, axis=0).repeat(scale, axis=1)
    with named_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        pillow.fromarray(grid).save(temporary, format="PNG")


def shades(image: Levels, white: int) -> str:
    """An image (H, W) as lines of text, two columns per pixel."""
    levels = image * (len(_SHADES) - 1) // white
    return "\n".join("".join(2 * _SHADES[level] for level in line) for line in levels)


def completion_strip(original: Levels, lines: int, completed: Levels, white: int) -> Levels:
    """Original, its first `lines` and completion side by side, in greys of 0..255:
    (H + 2, 3 W + 4)."""
    originals, completion = (255 * image // white for image in (original, completed))
    given = originals.copy()
    given[lines:] = BETWEEN
    gap = np.full((len(original), 1), BETWEEN, dtype=np.int64)
    side_by_side = np.hstack([originals, gap, given, gap, completion])
    return np.pad(side_by_side, 1, constant_values=BETWEEN)


def completion_shades(original: Levels, lines: int, completed: Levels, white: int) -> str:
    """The same as lines of text."""
    originals = shades(original, white).split("\n")
    given = originals[:lines] + [_DOT * original.shape[1]] * (len(original) - lines)
    columns = zip(originals, given, shades(completed, white).split("\n"), strict=True)
    return "\n".join(" | ".join(parts) for parts in columns)
