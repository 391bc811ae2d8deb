"""From stored pixel values to grey levels: range, resampling, quantisation.

A stored value runs from 0 (black) to `maximum` (white), a level from 0 to `levels` - 1.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from smtkit.config import PixelConfig
from smtkit.corpus.seeded import IntArray
from smtkit.errors import InputOutputError

_TILE = 1024


def to_levels(values: NDArray[Any], settings: PixelConfig, where: str, first: int) -> IntArray:
    """Levels (n, height, width) of stored values: images `first` on in `where`.

    Integers v give floor(v * levels / (maximum + 1)): themselves, if levels = maximum + 1. Floats,
    and the means that `size` makes, give floor(v * levels / maximum), and white the highest level.
    `maximum` is 255 for integers, 1 for floats and booleans, if it is unset. Raises
    InputOutputError for a value that is not in [0, maximum].
    """
    is_integer = values.dtype.kind != "f"
    maximum = settings.maximum or (255.0 if values.dtype.kind in "iu" else 1.0)
    wrong = np.argwhere(~((values >= 0.0) & (values <= maximum)))
    if len(wrong):
        image, row, column = wrong[0].tolist()
        found = f"image {first + image}, row {row}, column {column}: {values[image, row, column]}"
        hint = "`pixel.maximum` is the value of white"
        raise InputOutputError(f"{where}: {found}: allowed are 0 to {maximum:g}", hint)
    if settings.size is not None:
        real, is_integer = resample(values, *settings.size), False
    else:
        real = values.astype(np.float64)
    if settings.binarize is not None:
        return (real / maximum >= settings.binarize).astype(np.int64)
    quantised = np.floor(real * settings.level_count / (maximum + is_integer)).astype(np.int64)
    return np.minimum(quantised, settings.level_count - 1)


def resample(values: NDArray[Any], height: int, width: int) -> NDArray[np.float64]:
    """(n, h, w) -> (n, height, width): means over the areas that the new pixels cover.

    Images are read in tiles, so that little memory is used beside `values` and the result.
    """
    stored_height, stored_width = values.shape[1:]
    sums = np.zeros((len(values), height, width))
    for row in range(0, stored_height, _TILE):
        band = values[:, row : row + _TILE]
        across = np.zeros((*band.shape[:2], width))
        for column in range(0, stored_width, _TILE):
            tile = band[:, :, column : column + _TILE].astype(np.float64)
            across += tile @ overlaps(stored_width, width, column, tile.shape[2]).T
        sums += overlaps(stored_height, height, row, band.shape[1]) @ across
    return sums / (stored_height * stored_width)


def overlaps(
    stored: int, size: int, first: int = 0, count: int | None = None
) -> NDArray[np.float64]:
    """(size, count): how much of each stored pixel, from `first` on, a new one covers; over all
    stored pixels, a row sums to `stored`.

    In units in which all edges are integers: the mean of equal integers is exact.
    """
    count = stored if count is None else count
    new_edges = np.arange(size + 1.0)[:, None] * stored
    edges = np.arange(first, first + count + 1.0) * size
    ends, starts = np.minimum(new_edges[1:], edges[1:]), np.maximum(new_edges[:-1], edges[:-1])
    return np.maximum(ends - starts, 0)
