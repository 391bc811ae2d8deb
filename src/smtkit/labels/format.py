"""The format of a label shard: its columns, and what the checksums of a row cover."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from smtkit.corpus.shards import token_type
from smtkit.errors import ArtifactError
from smtkit.labels.codec import CODECS, Column, MemoryCodec

HEAD = ("tokens", "targets", "length", "origin")
"""Columns before the memories; one checksum covers all of them. `origin`: first token of the window
in the stream."""
_METADATA = b"smtkit"
_PART_BYTES = 2**17
"""Approximate size of a part of a row, which has a checksum of its own: large enough that hashing
takes longer than the call from Python, small enough to be in the CPU's cache once it is read."""


@dataclass(frozen=True)
class LabelShape:
    """What all shards of an artifact share; stored in the metadata of the Arrow schema."""

    window: int
    slots: int
    slot_width: int
    vocabulary_size: int
    dtype: str

    @property
    def codec(self) -> MemoryCodec:
        return CODECS[self.dtype]

    @property
    def columns(self) -> dict[str, Column]:
        """The columns that hold the memories."""
        return self.codec.columns(self.slots, self.slot_width)

    @property
    def row_bytes(self) -> int:
        """Bytes of the memories of a window."""
        return (self.window + 1) * sum(column.bytes for column in self.columns.values())

    @property
    def part_length(self) -> int:
        """Positions per part; the last part of a row may be shorter."""
        parts = max(1, round(self.row_bytes / _PART_BYTES))
        return -(-(self.window + 1) // min(parts, self.window + 1))

    @property
    def parts(self) -> int:
        """Parts of a row: runs of positions with a checksum each."""
        return -(-(self.window + 1) // self.part_length)

    def schema(self) -> pa.Schema:
        """The Arrow schema; the values of a column are one list per row."""
        positions = self.window + 1
        memories = {
            name: _list(column.arrow, positions * column.numbers)
            for name, column in self.columns.items()
        }
        fields = {
            "tokens": _list(token_type(self.vocabulary_size), self.window),
            "targets": _list(pa.int32(), positions),
            "length": pa.int32(),
            "origin": pa.int64(),
            **memories,
            "xxh3": _list(pa.uint64(), 1 + len(memories) * self.parts),
        }
        return pa.schema(
            [pa.field(name, kind, nullable=False) for name, kind in fields.items()],
            metadata={_METADATA: json.dumps(vars(self), sort_keys=True)},
        )

    @classmethod
    def of(cls, schema: pa.Schema, path: Path) -> "LabelShape":
        """The shape in the metadata of a shard. Raises ArtifactError if its columns are others."""
        try:
            shape = cls(**json.loads(schema.metadata[_METADATA]))
            expected = shape.schema()
        except (ArithmeticError, KeyError, TypeError, ValueError):
            raise ArtifactError(f"{path}: not a label shard of smtkit") from None
        if not schema.equals(expected):
            raise ArtifactError(f"{path}: columns are not those of a label shard")
        return shape

    def checksums(self, row: Mapping[str, NDArray[Any]]) -> list[int]:
        """Checksums of a row, given its columns: of the head; then of each part of each column of
        the memories."""
        pieces = [b"".join(row[name].tobytes() for name in HEAD)]
        for name in self.columns:
            content, size = row[name].tobytes(), self.part_length * self.columns[name].bytes
            pieces += [content[start : start + size] for start in range(0, len(content), size)]
        return [xxhash.xxh3_64_intdigest(piece) for piece in pieces]


def _list(kind: pa.DataType, length: int) -> pa.DataType:
    return pa.list_(pa.field("item", kind, nullable=False), length)
