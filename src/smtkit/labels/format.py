"""The format of a label shard: its columns, and what the checksums of a row cover.

A row stores the memory before its first token and after each token. If the encoder started again
every `context` tokens, from a memory of an RNN, a row stores those of each segment in turn. The
border between two segments then has two memories: the target of the transition that leads to it,
and the one from which the next transition starts.

T: window, S: segments per row, k: context.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from smtkit.corpus.seeded import IntArray
from smtkit.corpus.shards import token_type
from smtkit.errors import ArtifactError
from smtkit.labels.codec import CODECS, Column, MemoryCodec

LABEL_SPLITS = ("train", "validation")
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
    context: int | None = None
    """Tokens per segment; None: a row is one segment."""

    @property
    def codec(self) -> MemoryCodec:
        return CODECS[self.dtype]

    @property
    def columns(self) -> dict[str, Column]:
        """The columns that hold the memories."""
        return self.codec.columns(self.slots, self.slot_width)

    def description(self) -> dict[str, Any]:
        """The values that are set, as JSON."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @property
    def memories(self) -> int:
        """Memories per row: T + S."""
        return self.stored(self.window)

    def stored(self, length: int) -> int:
        """Memories of the first `length` tokens of a row; at least one token."""
        return length + 1 if self.context is None else length + -(-length // self.context)

    def before(self, positions: IntArray) -> IntArray:
        """Indices, in a row, of the memories before the tokens at `positions`. The memory after a
        token is the next one."""
        return positions if self.context is None else positions + positions // self.context

    @property
    def row_bytes(self) -> int:
        """Bytes of the memories of a window."""
        return self.memories * sum(column.bytes for column in self.columns.values())

    @property
    def part_length(self) -> int:
        """Memories per part; the last part of a row may be shorter."""
        parts = max(1, round(self.row_bytes / _PART_BYTES))
        return -(-self.memories // min(parts, self.memories))

    @property
    def parts(self) -> int:
        """Parts of a row: runs of memories with a checksum each."""
        return -(-self.memories // self.part_length)

    def schema(self) -> pa.Schema:
        """The Arrow schema; the values of a column are one list per row."""
        memories = {
            name: _list(column.arrow, self.memories * column.numbers)
            for name, column in self.columns.items()
        }
        fields = {
            "tokens": _list(token_type(self.vocabulary_size), self.window),
            "targets": _list(pa.int32(), self.window + 1),
            "length": pa.int32(),
            "origin": pa.int64(),
            **memories,
            "xxh3": _list(pa.uint64(), 1 + len(memories) * self.parts),
        }
        return pa.schema(
            [pa.field(name, kind, nullable=False) for name, kind in fields.items()],
            metadata={_METADATA: json.dumps(self.description(), sort_keys=True)},
        )

    @classmethod
    def of(cls, schema: pa.Schema, path: Path) -> "LabelShape":
        """The shape in the metadata of a shard. Raises ArtifactError if its columns are others."""
        try:
            fields = json.loads(schema.metadata[_METADATA])
            if any(type(n) is not int or n < 1 for key, n in fields.items() if key != "dtype"):
                raise ValueError("sizes that are not positive integers")
            shape = cls(**fields)
            expected = shape.schema()
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
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
