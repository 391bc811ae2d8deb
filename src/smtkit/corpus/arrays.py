"""Arrays in IDX, .npy and .npz files, read front to back and never unpickled."""

import gzip
import math
import re
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from smtkit.corpus.limits import Limits
from smtkit.errors import InputOutputError
from smtkit.storage.files import file_size

Header = tuple[tuple[int, ...], bool, np.dtype[Any]]
"""Shape, whether in Fortran order, and dtype."""

IDX_NAME = re.compile(r"[.-]idx\d(-ubyte)?(\.gz)?$")
_DAMAGE = (EOFError, SyntaxError, ValueError, RuntimeError, zlib.error, BadZipFile, TokenError)


class StoredArray:
    """An array in an IDX or .npy file, or the `member` of an .npz file.

    It is read as a stream: `numpy.load` cannot map gzip, IDX or a member of an archive, and holds
    a member in memory whole. Raises InputOutputError where its header exceeds `limits`.
    """

    def __init__(self, path: Path, member: str | None, limits: Limits) -> None:
        self.path, self.member = path, member
        self.where = f"{path}: array {member}" if member else str(path)
        with self._opened() as (_, header):
            self.shape, is_fortran, self.dtype = header
        if self.shape and min(self.shape) < 1:
            raise InputOutputError(f"{self}: allowed are dimensions of 1 or more")
        size = math.prod(self.shape) * self.dtype.itemsize
        if member or path.suffix == ".gz":
            stored = file_size(path) or 0
            limits.check_expansion(self, size, stored)
            limits.check_rows(self, self.shape[0] if self.shape else 0, stored)
        limits.check_value(self, "an entry", size // self.shape[0] if self.shape else size)
        if is_fortran:
            limits.check_value(self, "an array in Fortran order", size)

    def __str__(self) -> str:
        return f"{self.where}: {self.dtype} of shape {self.shape}"

    def blocks(self, rows: int) -> Iterator[NDArray[Any]]:
        """All values, `rows` entries of the first dimension at a time. Raises InputOutputError.

        An array in Fortran order is read at once.
        """
        with self._opened() as (file, (shape, is_fortran, dtype)):
            whole = _values(file, shape[::-1], dtype).T if is_fortran else None
            for first in range(0, shape[0], rows):
                if whole is not None:
                    yield whole[first : first + rows]
                else:
                    yield _values(file, (min(rows, shape[0] - first), *shape[1:]), dtype)
            if file.read(1):
                raise ValueError(f"it goes on after the values of shape {shape} in its header")

    @contextmanager
    def _opened(self) -> Iterator[tuple[IO[bytes], Header]]:
        with reading(self.where), ExitStack() as stack:
            if self.member is not None:
                archive = stack.enter_context(ZipFile(self.path))
                file = stack.enter_context(archive.open(f"{self.member}.npy"))
            else:
                opened: Any = (gzip.open if self.path.suffix == ".gz" else open)(self.path, "rb")
                file = stack.enter_context(opened)
            is_idx = IDX_NAME.search(self.path.name)
            yield file, _idx_header(file) if is_idx else _numpy_header(file)


def _idx_header(file: IO[bytes]) -> Header:
    magic = int.from_bytes(_read(file, 4))
    if magic not in (0x00000801, 0x00000803):
        raise ValueError(f"magic number 0x{magic:08x}: images have 0x00000803, labels 0x00000801")
    dimensions = magic & 0xFF
    shape = np.frombuffer(_read(file, 4 * dimensions), ">u4").tolist()
    return tuple(shape), False, np.dtype(np.uint8)


def _numpy_header(file: IO[bytes]) -> Header:
    is_first = np.lib.format.read_magic(file) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
    return read(file)


def _values(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.frombuffer(_read(file, math.prod(shape) * dtype.itemsize), dtype).reshape(shape)


def _read(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError("it ends before what its header promises")
    return data


@contextmanager
def reading(where: object) -> Iterator[None]:
    """Turns the errors of unreadable and damaged files into InputOutputError."""
    try:
        yield
    except (OSError, *_DAMAGE) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise InputOutputError(f"{where}: {reason}") from None
