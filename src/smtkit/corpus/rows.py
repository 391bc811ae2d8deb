"""Shards of whole rows: images and task rows, each with its targets.

T: the longest row.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from smtkit.corpus.seeded import IntArray
from smtkit.corpus.stream import SHARD_TOKENS, token_type
from smtkit.storage.run import Run
from smtkit.storage.shards import ShardSeries, read_shard


def rows_schema(vocabulary_size: int, *, distance: bool, label: bool) -> pa.Schema:
    """tokens, targets; and, where the source has them, distance (as targets) and label."""
    fields = [
        pa.field("tokens", pa.large_list(token_type(vocabulary_size)), nullable=False),
        pa.field("targets", pa.large_list(pa.int32()), nullable=False),
    ]
    if distance:
        fields.append(pa.field("distance", pa.large_list(pa.int32()), nullable=False))
    if label:
        fields.append(pa.field("label", pa.int32(), nullable=False))
    return pa.schema(fields)


class RowWriter:
    """Writes the rows of one split. Use as a context manager."""

    def __init__(self, run: Run, split: str, schema: pa.Schema) -> None:
        self.split = split
        self.rows = self.tokens = 0
        self._schema = schema
        self._series = ShardSeries(run, split, schema, SHARD_TOKENS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._series.__exit__(kind, error, traceback)

    def append(self, length: IntArray, columns: dict[str, NDArray[Any]]) -> None:
        """Appends rows: tokens (n, T), targets and distance (n, T + 1), padded past `length` (n,);
        label (n,)."""
        if len(length) == 0:
            return
        arrays = [_column(field, columns[field.name], length) for field in self._schema]
        tokens = int(length.sum())
        self._series.write(pa.record_batch(arrays, schema=self._schema), tokens)
        self.rows += len(length)
        self.tokens += tokens


class RowStore:
    """The rows of a split, through memory maps."""

    def __init__(self, shards: Sequence[Path]) -> None:
        readers = [read_shard(path) for path in shards]
        self._batches = [
            reader.get_batch(index)
            for reader in readers
            for index in range(reader.num_record_batches)
        ]
        self._ends = np.cumsum([batch.num_rows for batch in self._batches], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def columns(self) -> list[str]:
        return list(self._batches[0].schema.names) if self._batches else []

    def lengths(self) -> IntArray:
        """Tokens of every row."""
        ends = [batch.column("tokens").offsets.to_numpy() for batch in self._batches]
        return np.concatenate([np.diff(some) for some in ends])

    def column(self, name: str, rows: IntArray) -> list[NDArray[Any]]:
        """The values of a column in each of `rows`, without a copy."""
        return [self._value(name, int(row)) for row in rows]

    def blocks(self) -> Iterator[tuple[NDArray[Any], IntArray, NDArray[Any]]]:
        """(tokens, ends, targets) of many rows at a time, flat: row r of a block has tokens
        `ends[r]` to `ends[r + 1]`."""
        for batch in self._batches:
            tokens, targets = batch.column("tokens"), batch.column("targets")
            ends = tokens.offsets.to_numpy()
            yield tokens.flatten().to_numpy(), ends - ends[0], targets.flatten().to_numpy()

    def _value(self, name: str, row: int) -> NDArray[Any]:
        place = int(np.searchsorted(self._ends, row, side="right"))
        batch = self._batches[place]
        column = batch.column(name)
        inner = row - int(self._ends[place]) + batch.num_rows
        if not pa.types.is_large_list(column.type):
            return column.slice(inner, 1).to_numpy()
        ends = column.offsets
        start, stop = ends[inner].as_py(), ends[inner + 1].as_py()
        return column.values.slice(start, stop - start).to_numpy(zero_copy_only=True)


def _column(field: pa.Field, values: NDArray[Any], length: IntArray) -> pa.Array:
    if not pa.types.is_large_list(field.type):
        return pa.array(values, field.type)
    kept = length if field.name == "tokens" else length + 1
    present = np.arange(values.shape[1]) < kept[:, None]
    ends = np.concatenate([[0], np.cumsum(kept)])
    flat = values[present].astype(field.type.value_type.to_pandas_dtype())
    return pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), pa.array(flat))
