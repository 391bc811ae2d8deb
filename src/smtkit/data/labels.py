"""Label shards: the windows of a corpus with the teacher's memory at every position.

B: windows, T: window, K: slots, D: slot width.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from smtkit.artifacts.shards import ShardWriter, read_shard
from smtkit.data.order import IntArray, mixed
from smtkit.data.tokens import token_type
from smtkit.data.windows import Windows
from smtkit.errors import ArtifactError

_METADATA = b"smtkit"
_CHECKED = ("tokens", "targets", "length", "memory")


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
    def row_bytes(self) -> int:
        return (self.window + 1) * self.numbers * np.dtype(self.dtype).itemsize

    def schema(self) -> pa.Schema:
        memory = pa.float16() if self.dtype == "float16" else pa.float32()
        fields = {
            "tokens": pa.list_(_required(token_type(self.vocabulary_size)), self.window),
            "targets": pa.list_(_required(pa.int32()), self.window + 1),
            "length": pa.int32(),
            "memory": pa.list_(_required(memory), (self.window + 1) * self.numbers),
            "origin": pa.int64(),
            "xxh3": pa.uint64(),
        }
        return pa.schema(
            [pa.field(name, kind, nullable=False) for name, kind in fields.items()],
            metadata={_METADATA: json.dumps(vars(self), sort_keys=True)},
        )

    @classmethod
    def of(cls, schema: pa.Schema, path: Path) -> "LabelShape":
        """The shape in a shard's metadata. Raises ArtifactError."""
        try:
            shape = cls(**json.loads(schema.metadata[_METADATA]))
        except (KeyError, TypeError, ValueError):
            raise ArtifactError(f"{path}: not a label shard of smtkit") from None
        if not schema.equals(shape.schema()):
            raise ArtifactError(f"{path}: columns are not those of a label shard")
        return shape


def write_labels(
    path: Path, shape: LabelShape, windows: Windows, memory: NDArray[Any], origin: IntArray
) -> int:
    """Writes one shard of one record batch; memory (B, T + 1, K, D). Returns its rows."""
    schema = shape.schema()
    rows = len(origin)
    token_dtype = token_type(shape.vocabulary_size).to_pandas_dtype()
    arrays: dict[str, NDArray[Any]] = {
        "tokens": windows.tokens.astype(token_dtype),
        "targets": windows.targets.astype(np.int32),
        "length": windows.length.astype(np.int32),
        "memory": np.ascontiguousarray(memory.reshape(rows, -1), dtype=shape.dtype),
        "origin": origin,
    }
    arrays["xxh3"] = np.array([_checksum(arrays, row) for row in range(rows)], dtype=np.uint64)
    columns = [_column(arrays[field.name], field.type) for field in schema]
    with ShardWriter(path, schema) as writer:
        writer.write(pa.record_batch(columns, schema=schema))
    return rows


class LabelShards:
    """The rows of one split of a `labels` artifact, memory-mapped; a row is checked when read."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self._shards = [_open(path) for path in paths]
        self.shape = self._shards[0][0]
        for path, (shape, _) in zip(self._paths, self._shards, strict=True):
            if shape != self.shape:
                raise ArtifactError(f"{path}: shape is {shape}, the first shard's {self.shape}")
        self._ends = np.cumsum([len(arrays["length"]) for _, arrays in self._shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def lengths(self) -> IntArray | None:
        """Tokens of each row; None where hardly any is shorter than the others."""
        return mixed(np.concatenate([arrays["length"] for _, arrays in self._shards]))

    def row(self, number: int) -> dict[str, NDArray[Any]]:
        """The columns of a row, without a copy; `memory` is (T + 1, K, D).

        Raises ArtifactError that names file and row where the checksum is wrong.
        """
        shard = int(np.searchsorted(self._ends, number, side="right"))
        _, arrays = self._shards[shard]
        place = number - int(self._ends[shard]) + len(arrays["length"])
        if _checksum(arrays, place) != int(arrays["xxh3"][place]):
            raise ArtifactError(f"{self._paths[shard]}: row {place}: damaged: wrong checksum")
        row = {name: column[place] for name, column in arrays.items()}
        shape = self.shape
        row["memory"] = row["memory"].reshape(shape.window + 1, shape.slots, shape.slot_width)
        return row


def _open(path: Path) -> tuple[LabelShape, dict[str, NDArray[Any]]]:
    reader = read_shard(path)
    shape = LabelShape.of(reader.schema, path)
    if reader.num_record_batches != 1:
        raise ArtifactError(f"{path}: {reader.num_record_batches} record batches, expected 1")
    batch = reader.get_batch(0)
    return shape, {name: _view(batch.column(name)) for name in batch.schema.names}


def _view(column: pa.Array) -> NDArray[Any]:
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy(zero_copy_only=True)
    return column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), -1)


def _column(array: NDArray[Any], kind: pa.DataType) -> pa.Array:
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(array, kind)
    values = pa.array(array.reshape(-1), kind.value_type)
    return pa.FixedSizeListArray.from_arrays(values, type=kind)


def _required(kind: pa.DataType) -> pa.Field:
    return pa.field("item", kind, nullable=False)


def _checksum(arrays: dict[str, NDArray[Any]], row: int) -> int:
    checksum = xxhash.xxh3_64()
    for name in _CHECKED:
        checksum.update(np.ascontiguousarray(arrays[name][row]).data)
    return checksum.intdigest()
