"""Label shards: the windows of a corpus with the teacher's memory at every position.

B: windows, T: window, K: slots, D: slot width, P: positions of each window.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from smtkit.artifacts.shards import ShardWriter, read_shard
from smtkit.data.buffers import Buffers
from smtkit.data.memories import SCALE, STORED_TYPES, StoredType, bits, encode
from smtkit.data.order import IntArray, mixed
from smtkit.data.tokens import token_type
from smtkit.data.windows import Windows
from smtkit.errors import ArtifactError

_METADATA = b"smtkit"
_HEAD = ("tokens", "targets", "length", "origin")
_STORED = ("memory", "scale")
_CHECKED_BYTES = 2**16
"""A checksum is over no more of a row's memories than this, or over one memory. Part of the format:
of more, xxhash lets go of the interpreter, and two threads lose more by passing it to and fro."""


@dataclass(frozen=True)
class LabelShape:
    """What all shards of an artifact share; it lies in the schema's metadata."""

    window: int
    slots: int
    slot_width: int
    vocabulary_size: int
    dtype: str

    @property
    def numbers(self) -> int:
        """Numbers a memory (Z)."""
        return self.slots * self.slot_width

    @property
    def stored(self) -> StoredType:
        return STORED_TYPES[self.dtype]

    @property
    def row_bytes(self) -> int:
        return (self.window + 1) * self.numbers * self.stored.array.itemsize

    @property
    def checked(self) -> int:
        """Positions that share a checksum: as many in each part of a row, but for the last."""
        parts = -(-self.row_bytes // _CHECKED_BYTES)
        memory_bytes = self.row_bytes // (self.window + 1)
        return max(1, min(-(-(self.window + 1) // parts), _CHECKED_BYTES // memory_bytes))

    @property
    def checksums(self) -> int:
        """Of a row: one of its head, and those of its memories."""
        return 1 + -(-(self.window + 1) // self.checked)

    def schema(self) -> pa.Schema:
        positions = self.window + 1
        fields = {
            "tokens": _list(token_type(self.vocabulary_size), self.window),
            "targets": _list(pa.int32(), positions),
            "length": pa.int32(),
            "origin": pa.int64(),
            "memory": _list(self.stored.arrow, positions * self.numbers),
            "scale": _list(pa.from_numpy_dtype(SCALE), positions * self.slots),
            "xxh3": _list(pa.uint64(), self.checksums),
        }
        if not self.stored.scaled:
            del fields["scale"]
        return pa.schema(
            [pa.field(name, kind, nullable=False) for name, kind in fields.items()],
            metadata={_METADATA: json.dumps(vars(self), sort_keys=True)},
        )

    @classmethod
    def of(cls, schema: pa.Schema, path: Path) -> "LabelShape":
        """The shape in a shard's metadata. Raises ArtifactError."""
        try:
            shape = cls(**json.loads(schema.metadata[_METADATA]))
            expected = shape.schema()
        except (KeyError, TypeError, ValueError):
            raise ArtifactError(f"{path}: not a label shard of smtkit") from None
        if not schema.equals(expected):
            raise ArtifactError(f"{path}: columns are not those of a label shard")
        return shape


def write_labels(
    path: Path, shape: LabelShape, windows: Windows, memory: NDArray[Any], origin: IntArray
) -> int:
    """Writes one shard of one record batch; memory (B, T + 1, K, D), float32. Returns its rows.

    Raises ArtifactError, before anything is written, where a memory is not finite or does not fit
    the type it is to be stored in.
    """
    numbers, scale = encode(torch.from_numpy(np.asarray(memory, dtype=np.float32)), shape.dtype)
    _check_finite(path, shape, memory, numbers if scale is None else scale, origin)
    schema = shape.schema()
    rows = len(origin)
    arrays: dict[str, NDArray[Any]] = {
        "tokens": windows.tokens.astype(token_type(shape.vocabulary_size).to_pandas_dtype()),
        "targets": windows.targets.astype(np.int32),
        "length": windows.length.astype(np.int32),
        "origin": np.asarray(origin, dtype=np.int64),
        "memory": bits(numbers, shape.dtype).reshape(rows, -1),
    }
    if scale is not None:
        arrays["scale"] = scale.numpy().reshape(rows, -1)
    shard = _Shard(path, shape, arrays)
    sums = [
        [shard.head_checksum(row), *(shard.checksum(row, part) for part in shard.parts)]
        for row in range(rows)
    ]
    arrays["xxh3"] = np.array(sums, dtype=np.uint64)
    columns = [_column(arrays[field.name], field.type) for field in schema]
    with ShardWriter(path, schema) as writer:
        writer.write(pa.record_batch(columns, schema=schema))
    return rows


class LabelShards:
    """The rows of one split of a `labels` artifact, memory-mapped; what is read is checked first.

    `pinned`: memories are read into page-locked buffers. May be read by many threads.
    """

    def __init__(self, paths: Sequence[Path], *, pinned: bool = False) -> None:
        self._shards = [_open(path) for path in paths]
        self._buffers = Buffers(pinned=pinned)
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
        return mixed(np.concatenate([shard.arrays["length"] for shard in self._shards]))

    def windows(self, rows: IntArray) -> Windows:
        """Tokens, targets and lengths of rows.

        Raises ArtifactError that names file and row where the checksum is wrong.
        """
        found = list(self._found(rows))
        for shard, row in found:
            shard.check_head(row)
        tokens, targets, length = (
            np.array([shard.arrays[name][row] for shard, row in found], dtype=np.int64)
            for name in ("tokens", "targets", "length")
        )
        return Windows(tokens, targets, length)

    def memories(self, rows: IntArray, positions: IntArray | range) -> tuple[Tensor, Tensor]:
        """Memories as they are stored, (B P, K, D), and their scales (B P, K), or (0,) of a type
        without; at positions (B, P), ascending in each row, or at a range that all share.

        The tensors lie in a buffer that is used again when they are gone. Raises ArtifactError that
        names file and row where the checksum of what is read is wrong.
        """
        shape = self.shape
        count = len(positions) if isinstance(positions, range) else positions.shape[1]
        lent = {
            name: self._buffers.take(len(rows) * count * width)
            for name, width in self._shards[0].widths.items()
        }
        columns = [buffer.numpy().reshape(len(rows), count, -1) for buffer in lent.values()]
        for number, (shard, row) in enumerate(self._found(rows)):
            into = [column[number] for column in columns]
            if isinstance(positions, range):
                shard.copy_run(row, positions, into)
            else:
                shard.copy_some(row, positions[number], into)
        memory = lent["memory"].view(shape.stored.tensor)
        scale = lent["scale"].view(torch.float32) if shape.stored.scaled else torch.empty(0)
        return (
            memory.view(-1, shape.slots, shape.slot_width),
            scale.view(-1, shape.slots) if shape.stored.scaled else scale,
        )

    def row(self, number: int) -> dict[str, NDArray[Any]]:
        """All columns of a row, without a copy; `memory` is (T + 1, K, D), as it is stored.

        Raises ArtifactError that names file and row where a checksum is wrong.
        """
        ((shard, row),) = self._found(np.array([number]))
        shard.check_head(row)
        for part in shard.parts:
            shard.check(row, part)
        found = {name: column[row] for name, column in shard.arrays.items()}
        shape = self.shape
        found["memory"] = found["memory"].reshape(-1, shape.slots, shape.slot_width)
        return found

    def _found(self, rows: IntArray) -> "Iterator[tuple[_Shard, int]]":
        """The shard of each row, and its number there."""
        numbers = np.searchsorted(self._ends, rows, side="right")
        for number, row in zip(numbers.tolist(), rows.tolist(), strict=True):
            shard = self._shards[number]
            yield shard, row - int(self._ends[number]) + len(shard)


class _Shard:
    """The columns of one shard, an array each, and the checksums over them.

    `widths`: bytes a position of the columns that memories are made of. `parts`: numbers of the
    runs of positions that a checksum is over.
    """

    def __init__(self, path: Path, shape: LabelShape, arrays: dict[str, NDArray[Any]]) -> None:
        self.path = path
        self.shape = shape
        self.arrays = arrays
        self.parts = range(shape.checksums - 1)
        self._checked = shape.checked
        rows, positions = len(self), shape.window + 1
        self._head = [_bytes(arrays[name]).reshape(rows, -1) for name in _HEAD]
        stored = {
            name: _bytes(arrays[name]).reshape(rows, positions, -1)
            for name in _STORED
            if name in arrays
        }
        self._stored = list(stored.values())
        self.widths = {name: column.shape[2] for name, column in stored.items()}

    def __len__(self) -> int:
        return len(self.arrays["length"])

    def head_checksum(self, row: int) -> int:
        return xxhash.xxh3_64_intdigest(b"".join([column[row] for column in self._head]))

    def checksum(self, row: int, part: int) -> int:
        """Of the memories of a run of positions, and then of their scales."""
        first = part * self._checked
        last = first + self._checked
        if len(self._stored) == 1:
            return xxhash.xxh3_64_intdigest(self._stored[0][row, first:last].data)
        checksum = xxhash.xxh3_64()
        for column in self._stored:
            checksum.update(column[row, first:last].data)
        return checksum.intdigest()

    def check_head(self, row: int) -> None:
        if self.head_checksum(row) != self.arrays["xxh3"].item(row, 0):
            raise self._damaged(row)

    def check(self, row: int, part: int) -> None:
        if self.checksum(row, part) != self.arrays["xxh3"].item(row, 1 + part):
            raise self._damaged(row)

    def copy_run(self, row: int, positions: range, into: Iterable[NDArray[Any]]) -> None:
        start, stop = positions.start, positions.stop
        for part in range(start // self._checked, -(-stop // self._checked)):
            self.check(row, part)
        for column, out in zip(self._stored, into, strict=True):
            np.copyto(out, column[row, start:stop])

    def copy_some(self, row: int, positions: IntArray, into: Iterable[NDArray[Any]]) -> None:
        for part in sorted(set((positions // self._checked).tolist())):
            self.check(row, part)
        for column, out in zip(self._stored, into, strict=True):
            # Positions are in range; `raise` would copy into a buffer of numpy's first.
            column[row].take(positions, axis=0, out=out, mode="clip")

    def _damaged(self, row: int) -> ArtifactError:
        return ArtifactError(f"{self.path}: row {row}: damaged: wrong checksum")


def _open(path: Path) -> _Shard:
    reader = read_shard(path)
    shape = LabelShape.of(reader.schema, path)
    if reader.num_record_batches != 1:
        raise ArtifactError(f"{path}: {reader.num_record_batches} record batches, expected 1")
    try:
        batch = reader.get_batch(0)
        batch.validate()
        return _Shard(path, shape, {name: _view(batch.column(name)) for name in batch.schema.names})
    except (OSError, ValueError) as error:  # Arrow's errors are ValueErrors
        raise ArtifactError(f"{path}: damaged: {error}") from None


def _check_finite(
    path: Path, shape: LabelShape, memory: NDArray[Any], stored: Tensor, origin: IntArray
) -> None:
    finite = torch.isfinite(stored).flatten(1).all(1)
    if bool(finite.all()):
        return
    row = int(finite.int().argmin())
    largest = float(np.abs(memory[row]).max())
    what = (
        f"has a memory that holds {largest}, which {shape.dtype} does not"
        if np.isfinite(largest)
        else "has a memory that is not finite"
    )
    raise ArtifactError(
        f"{path.name}: row {row}: the window at token {int(origin[row])} {what}",
        "store them as bfloat16 or float32 (--dtype)" if np.isfinite(largest) else None,
    )


def _view(column: pa.Array) -> NDArray[Any]:
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy(zero_copy_only=True)
    return column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), -1)


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8)


def _column(array: NDArray[Any], kind: pa.DataType) -> pa.Array:
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(array, kind)
    values = pa.array(array.reshape(-1), kind.value_type)
    return pa.FixedSizeListArray.from_arrays(values, type=kind)


def _list(kind: pa.DataType, length: int) -> pa.DataType:
    return pa.list_(pa.field("item", kind, nullable=False), length)
