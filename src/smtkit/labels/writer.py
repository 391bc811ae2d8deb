"""Label shards: the windows of a corpus with the teacher's memory at every position.

B: windows, T: window, K: slots, D: slot width, P: positions of each window.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from smtkit.corpus.seeded import IntArray
from smtkit.corpus.shards import token_type
from smtkit.corpus.windows import Windows
from smtkit.errors import ArtifactError
from smtkit.labels.codec import SCALE, STORED_TYPES, StoredType, bits, encode
from smtkit.storage.shards import shard_writer

_METADATA = b"smtkit"
HEAD = ("tokens", "targets", "length", "origin")
_CHECKED_BYTES = 2**17
"""A checksum is over about as much of a row's memories, or over one memory. Part of the format: as
much is still in the cache when it is checked, and takes long beside Python's part of the call."""


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
        """Of memories, without their scales."""
        return (self.window + 1) * self.width("memory")

    @property
    def memory_columns(self) -> tuple[str, ...]:
        """The columns that memories are read from."""
        return ("memory", "scale") if self.stored.scaled else ("memory",)

    def width(self, column: str) -> int:
        """Bytes a position of one of them."""
        if column == "scale":
            return self.slots * SCALE.itemsize
        return self.numbers * self.stored.array.itemsize

    def sums(self, column: str) -> slice:
        """Those of the row's checksums that are of its parts in one of them."""
        first = 1 + self.memory_columns.index(column) * self.parts
        return slice(first, first + self.parts)

    @property
    def checked(self) -> int:
        """Positions that share a checksum: as many in each part of a row, but for the last."""
        parts = max(1, round(self.row_bytes / _CHECKED_BYTES))
        return -(-(self.window + 1) // min(parts, self.window + 1))

    @property
    def parts(self) -> int:
        """Runs of positions of a row that have a checksum each."""
        return -(-(self.window + 1) // self.checked)

    def positions(self, part: int) -> slice:
        """Those of a part."""
        return slice(part * self.checked, min((part + 1) * self.checked, self.window + 1))

    def schema(self) -> pa.Schema:
        positions = self.window + 1
        fields = {
            "tokens": _list(token_type(self.vocabulary_size), self.window),
            "targets": _list(pa.int32(), positions),
            "length": pa.int32(),
            "origin": pa.int64(),
            "memory": _list(self.stored.arrow, positions * self.numbers),
            "scale": _list(pa.from_numpy_dtype(SCALE), positions * self.slots),
            "xxh3": _list(pa.uint64(), 1 + len(self.memory_columns) * self.parts),
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
        except (ArithmeticError, KeyError, TypeError, ValueError):
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
    arrays["xxh3"] = np.array(
        [_checksums(shape, arrays, row) for row in range(rows)], dtype=np.uint64
    )
    columns = [_column(arrays[field.name], field.type) for field in schema]
    with shard_writer(path, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    return rows


def _checksums(shape: LabelShape, arrays: dict[str, NDArray[Any]], row: int) -> list[int]:
    """That of the row's head, then of each part of its memories, then of each of their scales."""
    head = b"".join([arrays[name][row].tobytes() for name in HEAD])
    pieces = [
        arrays[name][row].reshape(shape.window + 1, -1)[shape.positions(part)].tobytes()
        for name in shape.memory_columns
        for part in range(shape.parts)
    ]
    return [xxhash.xxh3_64_intdigest(piece) for piece in (head, *pieces)]


def _check_finite(
    path: Path, shape: LabelShape, memory: NDArray[Any], stored: Tensor, origin: IntArray
) -> None:
    rows = stored.flatten(1)
    # The extremes of a row are not numbers where any is not; to ask all takes ten times as long.
    finite = torch.isfinite(rows.amax(1)) & torch.isfinite(rows.amin(1))
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


def _column(array: NDArray[Any], kind: pa.DataType) -> pa.Array:
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(array, kind)
    values = pa.array(array.reshape(-1), kind.value_type)
    return pa.FixedSizeListArray.from_arrays(values, type=kind)


def _list(kind: pa.DataType, length: int) -> pa.DataType:
    return pa.list_(pa.field("item", kind, nullable=False), length)
