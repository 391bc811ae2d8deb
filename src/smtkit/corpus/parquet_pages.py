"""Sizes of the pages of a parquet file, from their headers.

A page is decompressed into a buffer of the size that its header states, and the file's metadata
need not agree with it; pyarrow shows only the metadata. Headers are structs of Thrift's compact
protocol; https://parquet.apache.org/docs/file-format/data-pages/ defines them.
"""

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_INTEGERS, _BOOLEANS, _BINARY, _STRUCT = (4, 5, 6), (1, 2), 8, 12  # types of fields
_DEEPEST = 8
_V1, _V2 = (5,), (8,)  # fields of a page's header: what kind of page it is
DICTIONARY = 2


class Page(NamedTuple):
    """`kind` is 0 or 3 for data pages, DICTIONARY for a dictionary; `size`: bytes, decompressed."""

    kind: int
    size: int
    values: int
    encoding: int


def pages(file: BinaryIO, start: int, size: int) -> Iterator[Page]:
    """The pages of a column chunk, which are the `size` bytes from `start` of the file.

    Raises ValueError where they are damaged.
    """
    end = start + size
    while start < end:
        file.seek(start)
        header: dict[tuple[int, ...], int] = {}
        _read_struct(file, (), header)
        kind, size, compressed = (header.get((field,), -1) for field in (1, 2, 3))
        start = file.tell() + compressed
        if size < 0 or compressed < 0 or start > end:
            raise ValueError("damaged: the header of a page")
        values = header.get((*_V1, 1), 0) + header.get((*_V2, 1), 0)
        encoding = header.get((*_V1, 2), header.get((*_V2, 4), -1))
        yield Page(kind, size, values, encoding)


def _read_struct(file: BinaryIO, path: tuple[int, ...], found: dict[tuple[int, ...], int]) -> None:
    """Adds the integers of a struct to `found`, by the numbers of the fields that lead to them."""
    if len(path) > _DEEPEST:
        raise ValueError("damaged: the header of a page")
    number = 0
    while byte := _byte(file):
        number = number + (byte >> 4) if byte >> 4 else _integer(file)
        kind = byte & 15
        if kind == _STRUCT:
            _read_struct(file, (*path, number), found)
        elif kind in _INTEGERS:
            found[(*path, number)] = _integer(file)
        elif kind == _BINARY:
            file.seek(_varint(file), 1)
        elif kind not in _BOOLEANS:  # a header has no other types
            raise ValueError("damaged: the header of a page")


def _integer(file: BinaryIO) -> int:
    value = _varint(file)
    return value >> 1 ^ -(value & 1)


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 64, 7):
        byte = _byte(file)
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise ValueError("damaged: the header of a page")


def _byte(file: BinaryIO) -> int:
    data = file.read(1)
    if not data:
        raise ValueError("damaged: it ends within the header of a page")
    return data[0]
