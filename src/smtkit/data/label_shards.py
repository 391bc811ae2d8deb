"""Reading label shards: rows in any order, into reused buffers, nothing unchecked.

Memories are read, not mapped: under a map, a file that is cut short kills the process.

B: windows, T: window, K: slots, D: slot width, P: positions of each window.
"""

import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from smtkit.artifacts.shards import map_shard
from smtkit.data.buffers import Buffers
from smtkit.data.labels import HEAD, STORED, LabelShape, checksum
from smtkit.data.memories import SCALE
from smtkit.data.order import IntArray, mixed
from smtkit.data.windows import Windows
from smtkit.errors import ArtifactError, InputOutputError

_SCALARS = ("length", "origin")


class LabelShards:
    """The rows of one split of a `labels` artifact; what is read is checked before it is given out.

    `pinned`: memories are read into page-locked buffers. May be read by many threads.
    """

    def __init__(self, paths: Sequence[Path], *, pinned: bool = False) -> None:
        self._shards = [_open(path) for path in paths]
        self._buffers = Buffers(pinned=pinned)
        self._scratch = Buffers()
        self.shape = self._shards[0].shape
        for shard in self._shards:
            if shard.shape != self.shape:
                raise ArtifactError(
                    f"{shard.path}: shape is {shard.shape}, the first shard's {self.shape}"
                )
        self._ends = np.cumsum([len(shard) for shard in self._shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def lengths(self) -> IntArray | None:
        """Tokens of each row; None where hardly any is shorter than the others."""
        return mixed(np.concatenate([shard.heads["length"][:, 0] for shard in self._shards]))

    def windows(self, rows: IntArray) -> Windows:
        """Tokens, targets and lengths of rows.

        Raises ArtifactError that names file and row where the checksum is wrong.
        """
        heads = b"".join([shard.head(row) for shard, row in self._found(rows)])
        columns = self._shards[0].split(np.frombuffer(heads, np.uint8).reshape(len(rows), -1))
        tokens, targets, length = (
            columns[name].astype(np.int64) for name in ("tokens", "targets", "length")
        )
        return Windows(tokens, targets, length[:, 0])

    def memories(self, rows: IntArray, positions: IntArray | range) -> tuple[Tensor, Tensor]:
        """Memories as they are stored, (B P, K, D), and their scales (B P, K), or (0,) of a type
        without; at positions (B, P), ascending in each row, or at a range that all share.

        The tensors lie in a buffer that is used again when they are gone. Raises ArtifactError that
        names file and row where the checksum of what is read is wrong, or the file cut short.
        """
        if isinstance(positions, range) and positions.start == 0:
            lent = self._beginnings(rows, positions.stop)
        else:
            lent = self._some(
                rows, np.broadcast_to(positions, (len(rows), np.shape(positions)[-1]))
            )
        memory = lent[0].view(self.shape.stored.tensor)
        scale = lent[1].view(torch.float32) if self.shape.stored.scaled else torch.empty(0)
        return (
            memory.view(-1, self.shape.slots, self.shape.slot_width),
            scale.view(-1, self.shape.slots) if self.shape.stored.scaled else scale,
        )

    def row(self, number: int) -> dict[str, NDArray[Any]]:
        """All columns of a row; `memory` is (T + 1, K, D), as it is stored.

        Raises ArtifactError that names file and row where a checksum is wrong.
        """
        ((shard, row),) = self._found(np.array([number]))
        head = shard.split(np.frombuffer(shard.head(row), np.uint8))
        found = {name: column[0] if name in _SCALARS else column for name, column in head.items()}
        whole = np.arange(self.shape.window + 1)[None]
        stored = dict(zip(shard.stored, self._some(np.array([number]), whole), strict=True))
        memory = stored["memory"].numpy().view(self.shape.stored.array)
        found["memory"] = memory.reshape(-1, self.shape.slots, self.shape.slot_width)
        if "scale" in stored:
            found["scale"] = stored["scale"].numpy().view(SCALE)
        return found

    def _beginnings(self, rows: IntArray, count: int) -> list[Tensor]:
        """The first `count` memories of rows, each read to where they lie in the end.

        The part that the last of them lies in is read to its end, to be checked: over where the
        next row comes to lie.
        """
        parts = range(-(-count // self.shape.checked))
        read = self.shape.positions(parts).stop
        widths = self._shards[0].widths
        lent = [self._buffers.take((len(rows) * count + read - count) * width) for width in widths]
        views = [buffer.numpy().data for buffer in lent]
        for number, (shard, row) in enumerate(self._found(rows)):
            first = number * count
            into = [
                view[first * width : (first + read) * width]
                for view, width in zip(views, widths, strict=True)
            ]
            shard.read(row, parts, into)
        return [
            buffer[: len(rows) * count * width] for buffer, width in zip(lent, widths, strict=True)
        ]

    def _some(self, rows: IntArray, positions: IntArray) -> list[Tensor]:
        """Memories of rows at positions (B, P): parts are read aside, and copied from."""
        count, (checked, window) = positions.shape[1], (self.shape.checked, self.shape.window)
        widths = self._shards[0].widths
        lent = [self._buffers.take(positions.size * width) for width in widths]
        aside = [self._scratch.take((window + 1) * width) for width in widths]
        views = [buffer.numpy().data for buffer in aside]
        for number, (shard, row) in enumerate(self._found(rows)):
            for parts in _runs(positions[number] // checked):
                inside = self.shape.positions(parts)
                into = [
                    view[inside.start * width : inside.stop * width]
                    for view, width in zip(views, widths, strict=True)
                ]
                shard.read(row, parts, into)
            for source, target, width in zip(aside, lent, widths, strict=True):
                out = target.numpy().reshape(len(rows), count, width)[number]
                # Positions are in range; `raise` would copy into a buffer of numpy's first.
                source.numpy().reshape(-1, width).take(positions[number], 0, out, mode="clip")
        return lent

    def _found(self, rows: IntArray) -> "Iterator[tuple[_Shard, int]]":
        """The shard of each row, and its number there."""
        numbers = np.searchsorted(self._ends, rows, side="right")
        within = rows - np.concatenate(([0], self._ends))[numbers]
        for number, row in zip(numbers.tolist(), within.tolist(), strict=True):
            yield self._shards[number], row


@dataclass(frozen=True)
class _Column:
    """Where a column begins in its file, and the bytes of a row and of a position."""

    offset: int
    row: int
    position: int


class _Shard:
    """One file: `heads` are its first columns, mapped; `stored` those that memories are read of.

    A head is a few hundred bytes: to read it would hand the interpreter to and fro between threads
    for less than that costs.
    """

    def __init__(
        self,
        path: Path,
        shape: LabelShape,
        heads: dict[str, NDArray[Any]],
        stored: dict[str, _Column],
        sums: NDArray[np.uint64],
    ) -> None:
        self.path = path
        self.shape = shape
        self.heads = heads
        self.stored = stored
        self.widths = [column.position for column in stored.values()]
        self._rows = [
            (array.reshape(-1).data.cast("B"), array[0].nbytes) for array in heads.values()
        ]
        self._sums = sums
        self._ends = [shape.positions(range(part)).stop for part in range(shape.parts + 1)]
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return len(self._sums)

    def head(self, row: int) -> bytes:
        """The bytes of a row's tokens, targets, length and origin."""
        head = b"".join([column[row * size : (row + 1) * size] for column, size in self._rows])
        if xxhash.xxh3_64_intdigest(head) != self._sums.item(row, 0):
            raise self._damaged(row)
        return head

    def split(self, heads: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """The columns of heads (..., bytes), each (..., numbers)."""
        found, start = {}, 0
        for name, column in self.heads.items():
            size = column[0].nbytes
            found[name] = heads[..., start : start + size].view(column.dtype)
            start += size
        return found

    def read(self, row: int, parts: range, into: Sequence[memoryview]) -> None:
        """Reads a run of parts into a buffer of each column, and checks what arrived there."""
        first = self._ends[parts.start]
        for column, view in zip(self.stored.values(), into, strict=True):
            self._read(row, column.offset + row * column.row + first * column.position, view)
        sums = self._sums[row].tolist()
        for part in parts:
            start, stop = self._ends[part] - first, self._ends[part + 1] - first
            pieces = [
                view[start * width : stop * width]
                for width, view in zip(self.widths, into, strict=True)
            ]
            # Of one piece in one call: most types have no scales, and each call counts here.
            found = xxhash.xxh3_64_intdigest(pieces[0]) if len(pieces) == 1 else checksum(pieces)
            if found != sums[1 + part]:
                raise self._damaged(row)

    def _read(self, row: int, offset: int, into: memoryview) -> None:
        try:
            count = os.preadv(self._file, [into], offset)
        except OSError as error:
            raise InputOutputError(f"{self.path}: {error.strerror}") from None
        if count != len(into):
            raise ArtifactError(f"{self.path}: row {row}: the file has been cut short")

    def _damaged(self, row: int) -> ArtifactError:
        return ArtifactError(f"{self.path}: row {row}: damaged: wrong checksum")


def _open(path: Path) -> _Shard:
    reader, start = map_shard(path)
    shape = LabelShape.of(reader.schema, path)
    if reader.num_record_batches != 1:
        raise ArtifactError(f"{path}: {reader.num_record_batches} record batches, expected 1")
    try:
        batch = reader.get_batch(0)
        batch.validate()
        arrays = {name: _view(batch.column(name)) for name in batch.schema.names}
    except (OSError, ValueError) as error:  # Arrow's errors are ValueErrors
        raise ArtifactError(f"{path}: damaged: {error}") from None
    positions = shape.window + 1
    stored = {
        name: _Column(
            arrays[name].ctypes.data - start, size := arrays[name][0].nbytes, size // positions
        )
        for name in STORED
        if name in arrays
    }
    heads = {name: arrays[name] for name in HEAD}
    return _Shard(path, shape, heads, stored, arrays["xxh3"].copy())


def _view(column: pa.Array) -> NDArray[Any]:
    """(rows, numbers), without a copy."""
    values = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
    return values.to_numpy(zero_copy_only=True).reshape(len(column), -1)


def _runs(parts: IntArray) -> Iterator[range]:
    """Ascending numbers as runs of those that follow each other."""
    first = last = int(parts[0])
    for part in parts.tolist():
        if part > last + 1:
            yield range(first, last + 1)
            first = part
        last = part
    yield range(first, last + 1)
