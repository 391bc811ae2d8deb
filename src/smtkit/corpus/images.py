"""Image files: IDX, NumPy arrays and pictures, by the name of the file, read in blocks.

Shapes: n images of `height` by `width` pixels. Images are numbered from 0. Only labels are held in
memory.
"""

import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from smtkit.config import PixelConfig
from smtkit.corpus.arrays import IDX_NAME, StoredArray, reading
from smtkit.corpus.files import expand, walk
from smtkit.corpus.levels import to_levels
from smtkit.corpus.limits import Limits
from smtkit.corpus.pictures import import_pillow
from smtkit.corpus.seeded import IntArray
from smtkit.errors import BrokenDocumentError, InputOutputError, UsageError
from smtkit.storage.files import file_size

_PICTURE_NAME = re.compile(r"\.(png|jpe?g)$", re.IGNORECASE)
_PICTURES = ".png, .jpg, .jpeg"
_BLOCK_IMAGES, _BLOCK_PIXELS = 1024, 2**20
_BYTES_PER_TOKEN = 8


class ImageBlock(NamedTuple):
    """Consecutive images: levels (n, height, width), and labels (n,) if there are any."""

    pixels: IntArray
    labels: IntArray | None


@dataclass(frozen=True)
class ImageSource:
    """The images of one file or directory.

    `stored` is the array of the images; None: `files` are pictures, of one image each. `files` are
    all files that images and labels come from; `label_names` are the classes of a directory.
    """

    path: Path
    settings: PixelConfig
    files: list[Path]
    stored: StoredArray | None
    count: int
    stored_size: tuple[int, int]
    labels: IntArray | None
    limits: Limits
    label_names: list[str] | None = None
    skips_broken: bool = False
    """Whether pictures that cannot be decoded are left out."""

    def __post_init__(self) -> None:
        what = "an image of {} x {} pixels".format(*self.size)
        self.limits.check_value(self.path, what, _BYTES_PER_TOKEN * math.prod(self.size))

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images that `blocks` gives."""
        return self.settings.size or self.stored_size

    def blocks(self) -> Iterator[ImageBlock]:
        """All images in order, at most 1024 per block. Raises InputOutputError."""
        largest = max(math.prod(self.stored_size), math.prod(self.size))
        rows = min(max(1, _BLOCK_PIXELS // largest), _BLOCK_IMAGES)
        for numbers, pixels in self._levels(rows):
            labels = None if self.labels is None else self.labels[numbers]
            yield ImageBlock(pixels, labels)

    def _levels(self, rows: int) -> Iterator[tuple[IntArray, IntArray]]:
        """Numbers and levels of images, up to `rows` at a time."""
        if self.stored is not None:
            for block, values in enumerate(self.stored.blocks(rows)):
                images, first = values.reshape(values.shape[:3]), block * rows
                levels = to_levels(images, self.settings, self.stored.where, first)
                yield np.arange(first, first + len(levels)), levels
            return
        for first in range(0, self.count, rows):
            pictures = {}
            for number, file in enumerate(self.files[first : first + rows], start=first):
                try:
                    picture = _read_picture(file, self.limits)[None]
                except BrokenDocumentError:
                    if not self.skips_broken:
                        raise
                    continue
                pictures[number] = to_levels(picture, self.settings, str(file), 0)
                _check_size(file, pictures[number].shape[1:], self.size)
            if pictures:
                yield np.array(list(pictures)), np.concatenate(list(pictures.values()))


class ImageSet:
    """The images that `inputs` name, one source after the other; only headers and labels are read.

    - IDX (`train-images-idx3-ubyte`, also with .gz), with the labels file beside it, if any.
    - .npy: integers or floats, (n, height, width) or (n, height, width, 1).
    - .npz: such an array, `images` or the only one; labels in `labels` or `y`, if any.
    - .png, .jpg, .jpeg: one image, converted to grayscale.
    - a directory: all such pictures below it that `include` and `exclude` choose, in order of path;
      its subdirectories are the labels.

    `skips_broken`: pictures that cannot be decoded are left out. `count` counts them, too.
    Raises UsageError where a path does not exist or holds no images, where labels do not agree, or
    where Pillow is missing; InputOutputError where a file is damaged or exceeds `limits`, or images
    differ in size.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        settings: PixelConfig,
        limits: Limits | None = None,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        skips_broken: bool = False,
    ) -> None:
        if not inputs:
            raise UsageError("no images are named")
        limits = limits or Limits()
        self.sources = []
        for path in expand(inputs):
            files = walk(path, include, exclude) if path.is_dir() else None
            source = _open_source(path, files, settings, limits, skips_broken)
            self.sources.append(source)
        first = self.sources[0]
        self.height, self.width = first.size
        self.labelled, self.label_names = first.labels is not None, first.label_names
        self.count = sum(source.count for source in self.sources)
        for source in self.sources[1:]:
            _check_size(source.path, source.size, first.size)
            found = source.labels is not None, source.label_names
            if found != (self.labelled, self.label_names):
                raise UsageError(
                    f"{first.path} and {source.path} differ in labels: allowed are the same "
                    "classes in all inputs, or no labels"
                )

    def blocks(self) -> Iterator[ImageBlock]:
        """The blocks of all sources; may be read any number of times. Raises InputOutputError."""
        return (block for source in self.sources for block in source.blocks())


def _open_source(
    path: Path,
    files: Sequence[Path] | None,
    settings: PixelConfig,
    limits: Limits,
    skips_broken: bool,
) -> ImageSource:
    """The source of a file, or of the `files` of a directory."""
    with reading(path):
        if files is not None or _PICTURE_NAME.search(path.name):
            found = [path] if files is None else files
            return open_pictures(path, found, settings, limits, skips_broken)
        for name, open_source in FORMATS.items():
            if name.search(path.name):
                return open_source(path, settings, limits)
    raise UsageError(f"{path}: unknown kind of file: allowed are {_ALLOWED}")


def open_pictures(
    path: Path,
    found: Sequence[Path],
    settings: PixelConfig,
    limits: Limits,
    skips_broken: bool,
) -> ImageSource:
    """The pictures among the files `found`: `path` itself, or below it."""
    files = [file for file in found if _PICTURE_NAME.search(file.name)]
    if not files:
        hint = "IDX, .npy and .npz files are named one by one; check `include` and `exclude`"
        raise UsageError(f"{path}: no {_PICTURES} files found", hint)
    classes = [part for file in files for part in file.relative_to(path).parts[:-1][:1]]
    if classes and len(classes) != len(files):
        raise UsageError(f"{path}: some pictures are in subdirectories, some are not: all or none")
    names = sorted(set(classes))
    labels = np.searchsorted(names, classes) if names else None
    size = _first_size(path, files, limits, skips_broken)
    return ImageSource(
        *(path, settings, files, None, len(files), size, labels, limits),
        label_names=names or None,
        skips_broken=skips_broken,
    )


def _first_size(
    path: Path, files: Sequence[Path], limits: Limits, skips_broken: bool
) -> tuple[int, int]:
    """(height, width) of the first picture; with `skips_broken`, of the first that is whole."""
    for file in files:
        try:
            height, width = _read_picture(file, limits).shape
        except BrokenDocumentError:
            if not skips_broken:
                raise
        else:
            return height, width
    raise UsageError(f"{path}: all {len(files)} pictures are broken")


def open_array(path: Path, settings: PixelConfig, limits: Limits) -> ImageSource:
    """An array of images, IDX or .npy; for IDX with the labels file beside it, if any."""
    name = re.sub(r"images([.-])idx3", r"labels\1idx1", path.name)
    plain = path.with_name(name.removesuffix(".gz"))
    beside = (path.with_name(name), plain, plain.with_name(f"{plain.name}.gz"))
    found = [other for other in beside if other.exists()] if name != path.name else []
    labels = [StoredArray(other, None, limits) for other in found]
    return _source_of(StoredArray(path, None, limits), labels, settings, limits)


def open_archive(path: Path, settings: PixelConfig, limits: Limits) -> ImageSource:
    """An .npz file of images and perhaps labels."""
    with ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    labels = [StoredArray(path, name, limits) for name in ("labels", "y") if name in names]
    images = {"images"} & set(names) or set(names) - {"labels", "y"}
    if len(images) != 1:
        raise ValueError(f"arrays are named {', '.join(names)}: one must be named images")
    return _source_of(StoredArray(path, images.pop(), limits), labels, settings, limits)


FORMATS: dict[re.Pattern[str], Callable[[Path, PixelConfig, Limits], ImageSource]] = {
    IDX_NAME: open_array,
    re.compile(r"\.npy$"): open_array,
    re.compile(r"\.npz$"): open_archive,
}
"""How to open the files, other than pictures, whose names match."""
_ALLOWED = f"*-idx3-ubyte, *-idx3-ubyte.gz, .npy, .npz, {_PICTURES} and directories"


def is_image(path: Path) -> bool:
    """Whether the name is that of an image file."""
    return any(name.search(path.name) for name in (*FORMATS, _PICTURE_NAME))


def _source_of(
    images: StoredArray, labels: Sequence[StoredArray], settings: PixelConfig, limits: Limits
) -> ImageSource:
    """The source of an array, and of the first of `labels`, if any."""
    count, *size = images.shape[:-1] if images.shape[3:] == (1,) else images.shape
    if images.dtype.kind not in "biuf" or len(size) != 2:
        raise InputOutputError(f"{images}: images are numbers of shape (n, height, width)")
    values = _read_labels(labels[0], count) if labels else None
    files = list(dict.fromkeys(array.path for array in (images, *labels[:1])))
    shape = (size[0], size[1])
    return ImageSource(images.path, settings, files, images, count, shape, values, limits)


def _read_labels(labels: StoredArray, count: int) -> IntArray:
    if labels.dtype.kind not in "iu" or labels.shape not in ((count,), (count, 1)):
        raise InputOutputError(f"{labels}: the labels of {count} images are {count} integers")
    values = np.concatenate(list(labels.blocks(_BLOCK_PIXELS))).reshape(-1).astype(np.int64)
    if values.min() < 0:
        raise InputOutputError(f"{labels}: label {values.min()}: labels are 0 or more")
    return values


def _read_picture(path: Path, limits: Limits) -> NDArray[np.uint8]:
    pillow = import_pillow(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow warns of images we refuse
            picture = pillow.open(path, formats=("PNG", "JPEG"))
        with picture:
            pixels = math.prod(picture.size)
            limits.check_value(path, "an image of {} x {} pixels".format(*picture.size), pixels)
            limits.check_expansion(path, pixels, file_size(path) or 0)
            if picture.mode[0] in "IF":
                raise ValueError("more than 8 bits per pixel: an .npy file can hold them")
            return np.asarray(picture.convert("L"))
    except InputOutputError:
        raise
    except Exception as error:  # Pillow raises many undocumented kinds for a damaged file
        reason = getattr(error, "strerror", None) or error
        hint = "`errors` skip leaves such pictures out"
        raise BrokenDocumentError(f"{path}: {reason}", hint) from None


def _check_size(path: Path, found: Sequence[int], expected: Sequence[int]) -> None:
    if tuple(found) != tuple(expected):
        message = f"{path}: height and width are {tuple(found)}, expected are {tuple(expected)}"
        raise InputOutputError(message, "`pixel.size` brings all images to one height and width")
