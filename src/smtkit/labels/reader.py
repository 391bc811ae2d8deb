"""Reading label shards: rows in any order, into reused buffers, nothing unchecked.

Memories are read, not mapped: under a map, a file that is cut short kills the process. (One that is
cut within its first columns still does: these are mapped.) Whatever is done for each row holds the
interpreter, and threads wait for it: it is little, on purpose.

B: windows, T: window, K: slots, D: slot width, P: positions of each window.
"""

import os
import weakref
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from xxhash import xxh3_64_intdigest

from smtkit.corpus.seeded import IntArray
from smtkit.corpus.windows import Windows, unequal_lengths
from smtkit.errors import ArtifactError, InputOutputError
from smtkit.labels.buffers import Buffers
from smtkit.labels.writer import HEAD, LabelShape
from smtkit.storage.files import named_errors
from smtkit.storage.shards import map_shard


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
        self._ends = np.cumsum([len(shard.sums) for shard in self._shards])
        self._starts = np.concatenate(([0], self._ends[:-1]))
        self._files = [shard.file for shard in self._shards]
        self._sums = np.concatenate([shard.sums for shard in self._shards])
        self._columns = [
            _Column(self.shape, name, np.array([shard.offsets[name] for shard in self._shards]))
            for name in self.shape.memory_columns
        ]

    def __len__(self) -> int:
        return len(self._sums)

    def lengths(self) -> IntArray | None:
        """Tokens of each row; None where hardly any is shorter than the others."""
        return unequal_lengths(np.concatenate([shard.lengths for shard in self._shards]))

    def windows(self, rows: IntArray) -> Windows:
        """Tokens, targets and lengths of rows.

        Raises ArtifactError that names file and row where the checksum is wrong.
        """
        shards, within = self._found(rows)
        heads = []
        for number, row, expected in zip(
            shards.tolist(), within.tolist(), self._sums[rows, 0].tolist(), strict=True
        ):
            columns = self._shards[number].bytes
            head = b"".join([column[row * n : (row + 1) * n] for column, n in columns])
            if xxh3_64_intdigest(head) != expected:
                raise self._wrong(number, row, "damaged: wrong checksum")
            heads.append(head)
        tokens, targets, length, _ = _split(b"".join(heads), self._shards[0].heads, len(rows))
        return Windows(tokens, targets, length[:, 0])

    def memories(self, rows: IntArray, positions: IntArray | range) -> tuple[Tensor, Tensor]:
        """Memories as they are stored, (B P, K, D), and their scales (B P, K), or (0,) of a type
        without; at positions (B, P), ascending in each row, or at a range that all share.

        The tensors lie in a buffer that is used again when they are gone. Raises ArtifactError that
        names file and row where the checksum of what is read is wrong, or the file cut short.
        """
        if isinstance(positions, range) and positions.start == 0:
            lent = [self._beginnings(column, rows, positions.stop) for column in self._columns]
        else:
            wanted = np.broadcast_to(positions, (len(rows), np.shape(positions)[-1]))
            lent = [self._some(column, rows, wanted) for column in self._columns]
        memory = lent[0].view(self.shape.stored.tensor)
        scale = lent[1].view(torch.float32) if self.shape.stored.scaled else torch.empty(0)
        return (
            memory.view(-1, self.shape.slots, self.shape.slot_width),
            scale.view(-1, self.shape.slots) if self.shape.stored.scaled else scale,
        )

    def _beginnings(self, column: "_Column", rows: IntArray, count: int) -> Tensor:
        """The first `count` memories of rows, each read to where they lie in the end.

        The part that the last of them lies in is read to its end, to be checked: over where the
        next row comes to lie.
        """
        parts = -(-count // self.shape.checked)
        size, step = column.ends[parts], count * column.width
        lent = self._buffers.take((len(rows) - 1) * step + size)
        view = lent.numpy().data
        into = [view[at : at + size] for at in range(0, len(rows) * step, step)]
        self._read(column, zip(self._places(column, rows), repeat((0, parts)), into, strict=False))
        return lent[: len(rows) * step]

    def _some(self, column: "_Column", rows: IntArray, positions: IntArray) -> Tensor:
        """Memories of rows at positions (B, P): parts are read aside, and copied from."""
        lent = self._buffers.take(positions.size * column.width)
        aside = self._scratch.take(column.ends[-1]).numpy()
        view, source = aside.data, aside.reshape(-1, column.width)
        targets = lent.numpy().reshape(*positions.shape, -1)
        runs = _runs(positions // self.shape.checked)

        def wanted() -> "Iterator[_Wanted]":
            places = zip(self._places(column, rows), runs, strict=True)
            for number, (place, parts) in enumerate(places):
                for first, stop in parts:
                    yield place, (first, stop), view[column.ends[first] : column.ends[stop]]
                # Positions are in range; `raise` would copy into a buffer of numpy's first.
                source.take(positions[number], 0, targets[number], mode="clip")

        self._read(column, wanted())
        return lent

    def _places(self, column: "_Column", rows: IntArray) -> "Iterator[_Place]":
        shards, within = self._found(rows)
        offsets = column.offsets[shards] + within * column.ends[-1]
        sums = self._sums[rows, column.sums]
        return zip(shards.tolist(), within.tolist(), offsets.tolist(), sums.tolist(), strict=True)

    def _read(self, column: "_Column", wanted: "Iterable[_Wanted]") -> None:
        """Reads each into its buffer, and checks what arrived there before it asks for the next."""
        preadv, digest, files, known = os.preadv, xxh3_64_intdigest, self._files, None
        for (shard, row, offset, sums), parts, into in wanted:
            if parts != known:
                known, (start, cuts) = parts, column.cuts(*parts)
            try:
                count = preadv(files[shard], (into,), offset + start)
            except OSError as error:
                raise InputOutputError(f"{self._shards[shard].path}: {error.strerror}") from None
            while count < len(into):
                if not (more := preadv(files[shard], (into[count:],), offset + start + count)):
                    raise self._wrong(shard, row, "the file has been cut short")
                count += more
            if [digest(into[cut]) for cut in cuts] != sums[parts[0] : parts[1]]:
                raise self._wrong(shard, row, "damaged: wrong checksum")

    def _found(self, rows: IntArray) -> tuple[IntArray, IntArray]:
        """The shard of each row, and its number there."""
        shards = np.searchsorted(self._ends, rows, side="right")
        return shards, rows - self._starts[shards]

    def _wrong(self, shard: int, row: int, what: str) -> ArtifactError:
        return ArtifactError(
            f"{self._shards[shard].path}: row {row}: {what}",
            "smtkit inspect LABELS --verify checks every file; at a URI it removes bad copies",
        )


_Place = tuple[int, int, int, list[int]]
"""Of a row: its shard, its number there, where it begins in the file, checksums of its parts."""
_Wanted = tuple[_Place, tuple[int, int], memoryview]
"""Of a row: its place, first part and the one after the last, and a buffer of their size."""


class _Column:
    """Memories, or their scales: `offsets` (shards,) in the files, `width` bytes a position, `ends`
    of the parts in bytes, which `sums` of the checksums are of."""

    def __init__(self, shape: LabelShape, name: str, offsets: IntArray) -> None:
        self.offsets = offsets
        self.width = shape.width(name)
        self.ends = [0, *(shape.positions(part).stop * self.width for part in range(shape.parts))]
        self.sums = shape.sums(name)

    def cuts(self, first: int, stop: int) -> tuple[int, list[slice]]:
        """Where parts `first` to `stop` begin in a row, and each of them in what is read there."""
        start = self.ends[first]
        ends = [end - start for end in self.ends[first : stop + 1]]
        return start, [slice(*pair) for pair in pairwise(ends)]


class _Shard:
    """One open file: `file`, in which memories begin at `offsets`; `heads`, its first columns, are
    mapped, and `bytes` of a row each.

    A head is a few hundred bytes: to read it would hand the interpreter to and fro between threads
    for less than that costs.
    """

    def __init__(
        self, path: Path, shape: LabelShape, arrays: dict[str, NDArray[Any]], start: int
    ) -> None:
        self.path = path
        self.shape = shape
        self.lengths = arrays["length"][:, 0]
        self.sums = arrays["xxh3"].copy()
        self.heads = [arrays[name] for name in HEAD]
        self.bytes = [(head.reshape(-1).data.cast("B"), head[0].nbytes) for head in self.heads]
        self.offsets = {name: arrays[name].ctypes.data - start for name in shape.memory_columns}
        with named_errors(path):
            self.file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.file)


def _open(path: Path) -> _Shard:
    batch, start = map_shard(path)
    shape = LabelShape.of(batch.schema, path)
    try:
        arrays = {name: _view(batch.column(name)) for name in batch.schema.names}
    except ValueError as error:  # Arrow's errors are ValueErrors
        raise ArtifactError(f"{path}: damaged: {error}") from None
    return _Shard(path, shape, arrays, start)


def _view(column: pa.Array) -> NDArray[Any]:
    """(rows, numbers), without a copy."""
    values = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
    return values.to_numpy(zero_copy_only=True).reshape(len(column), -1)


def _split(heads: bytes, columns: Sequence[NDArray[Any]], rows: int) -> Iterator[IntArray]:
    """The columns of heads that lie after each other, each (rows, numbers)."""
    table, start = np.frombuffer(heads, np.uint8).reshape(rows, -1), 0
    for column in columns:
        stop = start + column[0].nbytes
        yield table[:, start:stop].view(column.dtype).astype(np.int64)
        start = stop


def _runs(parts: IntArray) -> Iterator[list[tuple[int, int]]]:
    """Of each row of ascending part numbers, the runs of those that follow each other."""
    gaps = np.diff(parts, axis=1) > 1
    edge = np.ones((len(parts), 1), dtype=bool)
    first, last = np.hstack((edge, gaps)), np.hstack((gaps, edge))
    runs = zip(parts[first].tolist(), (parts[last] + 1).tolist(), strict=True)
    for count in first.sum(1).tolist():
        yield [next(runs) for _ in range(count)]
