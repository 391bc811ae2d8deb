"""Reading label shards: rows in any order, into reused buffers, each checked before use.

Python code per row holds the interpreter lock, for which other reading threads wait; it is kept
short.

B: windows, P: positions per window, K: slots, D: slot width.
"""

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor
from xxhash import xxh3_64_intdigest

from smtkit import IGNORE
from smtkit.corpus.seeded import IntArray
from smtkit.corpus.windows import Windows, unequal_lengths
from smtkit.errors import ArtifactError, InputOutputError
from smtkit.labels.buffers import Buffers
from smtkit.labels.codec import EncodedMemory
from smtkit.labels.format import HEAD, LabelShape
from smtkit.storage.shards import open_shard

_VERIFIED_ROWS = 64  # at a time


class LabelShards:
    """The rows of one split of a `labels` artifact, numbered across its shards.

    A `WindowReader` of which each row is a window; gives the memories of rows as well. `pinned`:
    reads memories into page-locked buffers. Methods may be called by many threads.
    """

    def __init__(self, paths: Sequence[Path], *, pinned: bool = False) -> None:
        if not paths:
            raise ArtifactError("labels: a split without shards")
        self._shards = [_Shard(path) for path in paths]
        self.shape = self._shards[0].shape
        for shard in self._shards:
            if shard.shape != self.shape:
                raise ArtifactError(
                    f"{shard.path}: shape is {shard.shape}, the first shard's {self.shape}"
                )
        self._ends = list(accumulate(len(shard.checksums) for shard in self._shards))
        self._columns = [_Column(self.shape, name) for name in self.shape.columns]
        self._buffers = Buffers(pinned=pinned)
        self._scratch = Buffers()
        self.window = self.shape.window
        self.per_epoch = self._ends[-1]

    def __len__(self) -> int:
        return self.per_epoch

    def lengths(self) -> IntArray | None:
        """Tokens of each row, verified; None where nearly all rows are equally long."""
        stored = np.concatenate([shard.lengths for shard in self._shards])
        # Windows of a text, of which the last may be shorter, are equal whatever one length is.
        if len(self) < _VERIFIED_ROWS or np.count_nonzero(stored != self.window) > 1:
            for rows in self._blocks():
                self.read(rows)
        return unequal_lengths(stored)

    def tiles(self) -> IntArray:
        """All rows."""
        return np.arange(len(self))

    def starts(self, epochs: IntArray, rows: IntArray, seed: int) -> IntArray:
        """`rows` themselves, in every epoch."""
        return rows

    def read(self, starts: IntArray) -> Windows:
        """Tokens, targets and lengths of rows. Raises ArtifactError where a checksum is wrong or a
        value is out of range."""
        heads = []
        for row in starts.tolist():
            shard, number = self._locate(row)
            heads.append(shard.head(number))
        table = np.frombuffer(b"".join(heads), self._shards[0].head_type)
        windows = Windows.of_stored(table["tokens"], table["targets"], table["length"])
        self._check_ranges(starts, windows)
        return windows

    def verify(self) -> IntArray:
        """Reads and checks all that is in all rows; returns their origins. Raises ArtifactError."""
        for rows in self._blocks():
            self.read(rows)
            self.memories(rows, range(self.shape.memories))
        return np.concatenate([shard.origins for shard in self._shards])

    def memories(self, rows: IntArray, positions: IntArray | range) -> EncodedMemory:
        """The B P memories of rows (B,) at positions: ascending (B, P), or one range for all rows.

        Positions count the memories of a row as they are stored (see `LabelShape.before`).
        They lie in buffers that are reused when no tensor refers to them. Raises ArtifactError
        where a checksum of what was read is wrong, or a file has been cut short.
        """
        tensors = {}
        for column in self._columns:
            if isinstance(positions, range) and positions.start == 0:
                read = self._read_first(column, rows, positions.stop)
            else:
                each = np.broadcast_to(positions, (len(rows), np.shape(positions)[-1]))
                read = self._read_some(column, rows, each)
            stored = self.shape.columns[column.name]
            tensors[column.name] = read.view(stored.tensor).view(-1, *stored.shape)
        return EncodedMemory(self.shape.codec, tensors)

    def _blocks(self) -> Iterator[IntArray]:
        """The numbers of all rows, some at a time."""
        for first in range(0, len(self), _VERIFIED_ROWS):
            yield np.arange(first, min(first + _VERIFIED_ROWS, len(self)))

    def _check_ranges(self, rows: IntArray, windows: Windows) -> None:
        """Raises ArtifactError where a token, a target or a length is out of range."""
        largest = self.shape.vocabulary_size - 1
        for name, values, least, most in (
            ("tokens", windows.tokens, 0, largest),
            ("targets", windows.targets, IGNORE, largest),
            ("length", windows.length[:, None], 0, self.window),
        ):
            if values.min() >= least and values.max() <= most:
                continue
            bad = (values < least) | (values > most)
            row = int(bad.any(1).argmax())
            shard, number = self._locate(int(rows[row]))
            found = values[row][bad[row]][0]
            raise shard.damaged(number, f"{name}: {found}, allowed: {least} to {most}")

    def _read_first(self, column: "_Column", rows: IntArray, count: int) -> Tensor:
        """The first `count` memories of each row, as bytes; read to where they are returned.

        Checksums cover whole parts, so the last part is read to its end: over the space of the next
        row, which is read after it.
        """
        parts = -(-count // self.shape.part_length)
        stride = count * column.bytes
        buffer = self._buffers.take((len(rows) - 1) * stride + column.bounds[parts])
        view = buffer.numpy().data
        for i, row in enumerate(rows.tolist()):
            shard, number = self._locate(row)
            shard.fill(view[i * stride :], column, number, 0, parts)
        return buffer[: len(rows) * stride]

    def _read_some(self, column: "_Column", rows: IntArray, positions: IntArray) -> Tensor:
        """Memories at positions (B, P), as bytes; copied from a scratch buffer of one row."""
        buffer = self._buffers.take(positions.size * column.bytes)
        memories = buffer.numpy().reshape(*positions.shape, column.bytes)
        scratch = self._scratch.take(column.bounds[-1]).numpy()
        parts = (positions // self.shape.part_length).tolist()
        for i, row in enumerate(rows.tolist()):
            shard, number = self._locate(row)
            for part in dict.fromkeys(parts[i]):
                shard.fill(scratch.data, column, number, part, part + 1)
            # Positions are in range; "clip" spares NumPy the copy that "raise" needs.
            scratch.reshape(-1, column.bytes).take(positions[i], 0, memories[i], mode="clip")
        return buffer

    def _locate(self, row: int) -> "tuple[_Shard, int]":
        """The shard of a row, and the row's number in it."""
        index = bisect_right(self._ends, row)
        return self._shards[index], row - (self._ends[index - 1] if index else 0)


class _Column:
    """Layout of a column of memories in every row: `bytes` per memory; `bounds` of the parts, in
    bytes (part i lies between bounds i and i + 1); `checksum`, the index of that of part 0."""

    def __init__(self, shape: LabelShape, name: str) -> None:
        self.name = name
        self.bytes = shape.columns[name].bytes
        parts = range(0, shape.memories, shape.part_length)
        self.bounds = [first * self.bytes for first in (*parts, shape.memories)]
        self.checksum = 1 + list(shape.columns).index(name) * shape.parts


class _Shard:
    """An open shard. What it reads is checked; ArtifactError names file and row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._shard = open_shard(path, self._check_schema)
        self.lengths, self.origins, self.checksums = map(self._whole, ("length", "origin", "xxh3"))
        self._is_finite = np.zeros(self.checksums.shape, dtype=bool)
        arrays = self._shard.arrays
        self.head_type = np.dtype([(n, arrays[n].dtype, arrays[n].shape[1:]) for n in HEAD])

    def _check_schema(self, schema: pa.Schema) -> None:
        self.shape = LabelShape.of(schema, self.path)

    def head(self, row: int) -> bytes:
        """The columns of the head of a row, one after the other; of `head_type`."""
        pieces = []
        for name in ("tokens", "targets"):
            piece = bytearray(self._shard.arrays[name][row].nbytes)
            self._read(memoryview(piece), self._shard.offsets[name] + row * len(piece), row)
            pieces.append(piece)
        head = b"".join((*pieces, self.lengths[row].tobytes(), self.origins[row].tobytes()))
        self._check(head, row, 0)
        return head

    def fill(self, into: memoryview, column: _Column, row: int, first: int, stop: int) -> None:
        """Reads parts `first` to `stop` - 1 of a row into `into`, at their offsets in the row."""
        start = column.bounds[first]
        offset = self._shard.offsets[column.name] + row * column.bounds[-1] + start
        self._read(into[start : column.bounds[stop]], offset, row)
        for part in range(first, stop):
            content = into[column.bounds[part] : column.bounds[part + 1]]
            self._check(content, row, column.checksum + part)
            # Once: what is read again has the same checksum.
            if not self._is_finite[row, column.checksum + part]:
                if not self.shape.columns[column.name].is_finite(content):
                    raise self.damaged(row, f"{column.name}: infinite or not a number")
                self._is_finite[row, column.checksum + part] = True

    def _whole(self, name: str) -> NDArray[Any]:
        """A column of all rows, not verified: `head` compares it with the checksum of a row."""
        column = np.empty_like(self._shard.arrays[name])
        self._read(column.reshape(-1).data.cast("B"), self._shard.offsets[name], 0)
        return column

    def _read(self, into: memoryview, offset: int, row: int) -> None:
        """Fills `into` from the file; `row` is for messages."""
        done = 0
        while done < len(into):
            try:
                count = os.preadv(self._shard.file.fileno(), (into[done:],), offset + done)
            except OSError as error:
                raise InputOutputError(f"{self.path}: {error.strerror}") from None
            if not count:
                raise self.damaged(row, "the file has been cut short")
            done += count

    def _check(self, content: bytes | memoryview, row: int, checksum: int) -> None:
        if xxh3_64_intdigest(content) != self.checksums.item(row, checksum):
            raise self.damaged(row, "damaged: wrong checksum")

    def damaged(self, row: int, problem: str) -> ArtifactError:
        return ArtifactError(
            f"{self.path}: row {row}: {problem}",
            "smtkit inspect LABELS --verify checks every file; at a URI it removes bad copies",
        )
