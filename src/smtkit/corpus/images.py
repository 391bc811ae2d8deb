"""From what a user names to images: IDX files, NumPy arrays and pictures, read in blocks.

Shapes: n images of `height` by `width` pixels. A stored value runs from 0 (black) to `maximum`
(white), a level from 0 to `levels` - 1. Images are numbered from 0. Only labels are held in memory.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from smtkit.corpus.arrays import IDX_NAME, StoredArray, reading
from smtkit.corpus.seeded import IntArray
from smtkit.errors import InputOutputError, UsageError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
_BLOCK_IMAGES, _BLOCK_PIXELS = 1024, 2**20
_LARGEST_IMAGE = 2**26


@dataclass(frozen=True)
class PixelSettings:
    """How stored values become levels. Raises UsageError.

    `size` (height, width) resamples by area. `maximum` is the value of white; None: 255 for
    integers, 1 for floats and booleans. `binarize`: level 1 where value / maximum reaches it.
    """

    levels: int = 256
    size: tuple[int, int] | None = None
    maximum: float | None = None
    binarize: float | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.levels <= 256:
            raise UsageError(f"levels is {self.levels}: allowed are 2 to 256")
        if self.size is not None and min(self.size) < 1:
            raise UsageError(f"size is {self.size}: height and width are at least 1")
        if self.maximum is not None and not 0 < self.maximum < math.inf:
            raise UsageError(f"maximum is {self.maximum}: it must be above 0 and finite")
        if self.binarize is not None and not (0 <= self.binarize <= 1 and self.levels == 2):
            raise UsageError(f"binarize is {self.binarize}: allowed are 0 to 1, with --levels 2")


@dataclass(frozen=True)
class ImageBlock:
    """Images in a row: levels (n, height, width), and labels (n,) if there are any."""

    pixels: IntArray
    labels: IntArray | None
    where: str


@dataclass(frozen=True)
class ImageSource:
    """The images of one file or directory; `label_names` are the classes of a directory."""

    path: Path
    settings: PixelSettings
    stored: StoredArray | list[Path]
    count: int
    stored_size: tuple[int, int]
    labels: IntArray | None
    label_names: list[str] | None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images that `blocks` gives."""
        return self.settings.size or self.stored_size

    def files(self) -> list[Path]:
        """All files that the images and their labels come from."""
        if not isinstance(self.stored, StoredArray):
            return self.stored
        labels = _labels_beside(self.path)
        return [self.path] if labels is None else [self.path, labels.path]

    def blocks(self) -> Iterator[ImageBlock]:
        """All images in order, at most 1024 a block. Raises InputOutputError."""
        largest = max(math.prod(self.stored_size), math.prod(self.size))
        first = 0
        for pixels in self._levels(min(max(1, _BLOCK_PIXELS // largest), _BLOCK_IMAGES)):
            end = first + len(pixels)
            labels = None if self.labels is None else self.labels[first:end]
            yield ImageBlock(pixels, labels, f"{self.path}: images {first} to {end - 1}")
            first = end

    def _levels(self, rows: int) -> Iterator[IntArray]:
        if isinstance(self.stored, StoredArray):
            for block, values in enumerate(self.stored.blocks(rows)):
                images = values.reshape(values.shape[:3])
                yield to_levels(images, self.settings, self.stored.where, block * rows)
            return
        for first in range(0, self.count, rows):
            files = self.stored[first : first + rows]
            yield np.concatenate([self._picture(file) for file in files])

    def _picture(self, file: Path) -> IntArray:
        levels = to_levels(_read_picture(file)[None], self.settings, str(file), 0)
        _check_size(file, levels.shape[1:], self.size)
        return levels


@dataclass(frozen=True)
class ImageSet:
    """Sources one after the other, which agree in size and labels."""

    sources: list[ImageSource]
    count: int
    height: int
    width: int
    labelled: bool
    label_names: list[str] | None

    def blocks(self) -> Iterator[ImageBlock]:
        """The blocks of all sources, as often as asked. Raises InputOutputError."""
        return (block for source in self.sources for block in source.blocks())


def open_images(inputs: Sequence[str], settings: PixelSettings) -> ImageSet:
    """The images that `inputs` name; of their contents only headers and labels are read.

    - IDX (`train-images-idx3-ubyte`, also with .gz), with the labels file beside it, if any.
    - .npy: integers or floats, (n, height, width) or (n, height, width, 1).
    - .npz: such an array, `images` or the only one; labels in `labels` or `y`, if any.
    - .png, .jpg, .jpeg: one image, converted to grayscale.
    - a directory: all such files below it, in order of path; its subdirectories are the labels.

    Raises UsageError where a path does not exist or holds no images, where labels do not agree, or
    where Pillow is missing; InputOutputError where a file is damaged or images differ in size.
    """
    if not inputs:
        raise UsageError("no images are named")
    sources = [_open_source(Path(name), settings) for name in inputs]
    first = sources[0]
    for source in sources[1:]:
        _check_size(source.path, source.size, first.size)
        if (source.labels is None, source.label_names) != (first.labels is None, first.label_names):
            found = f"{first.path} and {source.path} differ in labels"
            raise UsageError(f"{found}: allowed are the same classes in all inputs, or no labels")
    count = sum(source.count for source in sources)
    return ImageSet(sources, count, *first.size, first.labels is not None, first.label_names)


def _open_source(path: Path, settings: PixelSettings) -> ImageSource:
    with reading(path):
        if not path.exists():
            raise UsageError(f"{path}: no such file or directory")
        if path.is_dir() or path.suffix.lower() in PICTURE_SUFFIXES:
            return _open_pictures(path, settings)
        if path.suffix == ".npz":
            return _open_npz(path, settings)
        if path.suffix == ".npy" or IDX_NAME.search(path.name):
            return _open_arrays(StoredArray(path), _labels_beside(path), settings)
    allowed = f"*-idx3-ubyte, *-idx3-ubyte.gz, .npy, .npz, {', '.join(PICTURE_SUFFIXES)}"
    raise UsageError(f"{path}: unknown kind of file: allowed are {allowed} and directories")


def _open_pictures(path: Path, settings: PixelSettings) -> ImageSource:
    files: list[Path] = []
    classes: list[str] = []
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        below = file.relative_to(path).parts
        hidden = any(part.startswith(".") for part in below)
        if file.suffix.lower() in PICTURE_SUFFIXES and not hidden and file.is_file():
            files.append(file)
            classes.extend(below[:-1][:1])
    if not files:
        hint = "IDX, .npy and .npz files are named one by one"
        raise UsageError(f"{path}: no {', '.join(PICTURE_SUFFIXES)} files found", hint)
    if classes and len(classes) != len(files):
        raise UsageError(f"{path}: some pictures are in subdirectories, some are not: all or none")
    names = sorted(set(classes))
    labels = np.searchsorted(names, classes) if names else None
    size = _read_picture(files[0]).shape
    return ImageSource(path, settings, files, len(files), size, labels, names or None)


def _open_npz(path: Path, settings: PixelSettings) -> ImageSource:
    with ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    labels = [StoredArray(path, name) for name in ("labels", "y") if name in names]
    images = {"images"} & set(names) or set(names) - {"labels", "y"}
    if len(images) != 1:
        raise ValueError(f"arrays are named {', '.join(names)}: one must be named images")
    return _open_arrays(StoredArray(path, *images), labels[0] if labels else None, settings)


def _labels_beside(images: Path) -> StoredArray | None:
    name = re.sub(r"images([.-])idx3", r"labels\1idx1", images.name)
    plain = images.with_name(name.removesuffix(".gz"))
    beside = (images.with_name(name), plain, plain.with_name(f"{plain.name}.gz"))
    found = [path for path in beside if path.exists()] if name != images.name else []
    return StoredArray(found[0]) if found else None


def _open_arrays(
    images: StoredArray, labels: StoredArray | None, settings: PixelSettings
) -> ImageSource:
    count, *size = images.shape[:-1] if images.shape[3:] == (1,) else images.shape
    if images.dtype.kind not in "biuf" or len(size) != 2:
        raise InputOutputError(f"{images}: images are numbers of shape (n, height, width)")
    if min(count, *size) < 1 or math.prod(size) > _LARGEST_IMAGE:
        raise InputOutputError(f"{images}: allowed is n >= 1, of 1 to {_LARGEST_IMAGE} pixels")
    values = None if labels is None else _read_labels(labels, count)
    return ImageSource(images.path, settings, images, count, (size[0], size[1]), values, None)


def _read_labels(labels: StoredArray, count: int) -> IntArray:
    if labels.dtype.kind not in "iu" or labels.shape not in ((count,), (count, 1)):
        raise InputOutputError(f"{labels}: the labels of {count} images are {count} integers")
    values = np.concatenate(list(labels.blocks(_BLOCK_PIXELS))).reshape(-1).astype(np.int64)
    if values.min() < 0:
        raise InputOutputError(f"{labels}: label {values.min()}: labels are 0 or more")
    return values


def _read_picture(path: Path) -> NDArray[np.uint8]:
    try:
        from PIL import Image
    except ImportError:
        raise UsageError(f"{path}: pictures need Pillow", "pip install 'smtkit[images]'") from None
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as picture:
            if picture.mode[0] in "IF":
                raise ValueError("more than 8 bits a pixel: an .npy file can hold them")
            return np.asarray(picture.convert("L"))
    except Exception as error:  # of many kinds, undocumented, for a damaged file
        raise InputOutputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def to_levels(values: NDArray[Any], settings: PixelSettings, where: str, first: int) -> IntArray:
    """Levels (n, height, width) of stored values: images `first` on in `where`.

    Integers v give floor(v * levels / (maximum + 1)): themselves, if levels = maximum + 1. Floats,
    and the means that `size` asks for, give floor(v * levels / maximum), and white the highest
    level. Raises InputOutputError for a value that is not in [0, maximum].
    """
    is_integer = values.dtype.kind != "f"
    maximum = settings.maximum or (255.0 if values.dtype.kind in "iu" else 1.0)
    real = values.astype(np.float64)
    wrong = np.argwhere(~((real >= 0) & (real <= maximum)))
    if len(wrong):
        image, row, column = wrong[0].tolist()
        found = f"image {first + image}, row {row}, column {column}: {values[image, row, column]}"
        hint = "--maximum is the value of white"
        raise InputOutputError(f"{where}: {found}: allowed are 0 to {maximum:g}", hint)
    if settings.size is not None:
        real, is_integer = resample(real, *settings.size), False
    if settings.binarize is not None:
        return (real / maximum >= settings.binarize).astype(np.int64)
    levels = np.floor(real * settings.levels / (maximum + is_integer)).astype(np.int64)
    return np.minimum(levels, settings.levels - 1)


def resample(values: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """(n, h, w) -> (n, height, width): means over the areas that the new pixels cover."""
    stored_height, stored_width = values.shape[1:]
    sums = overlaps(stored_height, height) @ values @ overlaps(stored_width, width).T
    return sums / (stored_height * stored_width)


def overlaps(stored: int, size: int) -> NDArray[np.float64]:
    """(size, stored): how much of each stored pixel a new one covers; a row sums to `stored`.

    In units in which all edges are integers: the mean of equal integers is exact.
    """
    new_edges, edges = np.arange(size + 1.0)[:, None] * stored, np.arange(stored + 1.0) * size
    ends, starts = np.minimum(new_edges[1:], edges[1:]), np.maximum(new_edges[:-1], edges[:-1])
    return np.maximum(ends - starts, 0)


def _check_size(path: Path, found: Sequence[int], expected: Sequence[int]) -> None:
    if tuple(found) != tuple(expected):
        message = f"{path}: height and width are {tuple(found)}, expected are {tuple(expected)}"
        raise InputOutputError(message, "--size brings all images to one height and width")
