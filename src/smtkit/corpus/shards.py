"""Shards of a `tokens` artifact: one writer and one reader for rows with lists of tokens.

A row is a chunk of a document, and all rows of a split make one stream of text; or a row is a whole
image or task row, with its targets.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from smtkit.corpus.seeded import IntArray
from smtkit.errors import ArtifactError
from smtkit.storage.artifact import Artifact
from smtkit.storage.files import named_errors
from smtkit.storage.run import Run
from smtkit.storage.shards import read_shard, shard_writer

CHUNK_TOKENS = 2**16
BATCH_TOKENS = 2**20
SHARD_TOKENS = 2**26

Lists = tuple[NDArray[Any], IntArray]
"""Values of many lists, joined, and the length of each list."""
Column = NDArray[Any] | Lists


def token_type(vocabulary_size: int) -> pa.DataType:
    """The smallest unsigned integers that hold all tokens."""
    return pa.uint16() if vocabulary_size <= 2**16 else pa.uint32()


def stream_schema(vocabulary_size: int) -> pa.Schema:
    """Columns of a chunk: document, offset of its first token in the document, tokens."""
    tokens = pa.large_list(token_type(vocabulary_size))
    return _schema(document=pa.int64(), offset=pa.int64(), tokens=tokens)


def rows_schema(vocabulary_size: int, *, distance: bool, label: bool) -> pa.Schema:
    """Columns of a whole row: tokens, targets; and, if wanted, distance (as targets) and label."""
    targets = pa.large_list(pa.int32())
    columns = {"tokens": pa.large_list(token_type(vocabulary_size)), "targets": targets}
    columns |= {"distance": targets} if distance else {}
    columns |= {"label": pa.int32()} if label else {}
    return _schema(**columns)


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


class SplitWriter:
    """Writes the rows of one split to shards `SPLIT-00000.arrow`, `SPLIT-00001.arrow`, ...

    There is at least one. A new one begins when the last has `SHARD_TOKENS` or more. `rows` and
    `tokens` count all shards together. Use as a context manager.
    """

    def __init__(self, run: Run, split: str, schema: pa.Schema) -> None:
        self.split = split
        self.schema = schema
        self.rows = self.tokens = 0
        self._run = run
        self._shards = 0

    def __enter__(self) -> Self:
        self._open()
        return self

    def append(self, columns: Mapping[str, Column]) -> None:
        """Appends rows as one record batch: lists as `Lists`, others as arrays (rows,)."""
        arrays = [_column(field.type, columns[field.name]) for field in self.schema]
        batch = pa.record_batch(arrays, schema=self.schema)
        if not batch.num_rows:
            return
        if self.tokens - self._tokens_before >= SHARD_TOKENS:
            self._finish()
            self._open()
        with named_errors(self._path):
            self._writer.write_batch(batch)
        self.rows += batch.num_rows
        self.tokens += len(columns["tokens"][0])

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None:
            self._finish()
        else:
            with suppress(Exception):  # `error` is the one to raise
                self._shard.__exit__(type(error), error, error.__traceback__)

    def _open(self) -> None:
        self._path = self._run.directory / f"{self.split}-{self._shards:05d}.arrow"
        self._shard = ExitStack()
        self._writer = self._shard.enter_context(shard_writer(self._path, self.schema))
        self._rows_before, self._tokens_before = self.rows, self.tokens

    def _finish(self) -> None:
        self._shard.close()
        self._shards += 1
        self._run.add(self._path.name, self.rows - self._rows_before)


class DocumentWriter(SplitWriter):
    """Writes the documents of one split in chunks; at most one record batch is held in memory."""

    def __init__(self, run: Run, split: str, vocabulary_size: int) -> None:
        super().__init__(run, split, stream_schema(vocabulary_size))
        self._chunks: list[tuple[int, int, NDArray[Any]]] = []
        self._pending = 0

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None:
            self._flush()
        super().__exit__(kind, error, traceback)

    def extend(self, document: int, offset: int, tokens: NDArray[Any]) -> None:
        """Appends tokens to a document, which has `offset` tokens before them."""
        for start in range(0, len(tokens), CHUNK_TOKENS):
            chunk = tokens[start : start + CHUNK_TOKENS]
            self._chunks.append((document, offset + start, chunk))
            self._pending += len(chunk)
            if self._pending >= BATCH_TOKENS:
                self._flush()

    def _flush(self) -> None:
        if not self._chunks:
            return
        documents, offsets, chunks = zip(*self._chunks, strict=True)
        self.append(
            {
                "document": np.array(documents),
                "offset": np.array(offsets),
                "tokens": (np.concatenate(chunks), np.array([len(chunk) for chunk in chunks])),
            }
        )
        self._chunks, self._pending = [], 0


class TokenShards:
    """The shards of one split, memory-mapped; read as rows, or as one stream of tokens.

    `rows` and `tokens` are how many there are.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        tables = [read_shard(path).read_all() for path in paths]
        self._table = pa.concat_tables(tables or [stream_schema(0).empty_table()])
        kind = self._table.schema.field("tokens").type.value_type
        chunks = self._table["tokens"].chunks
        self._stream = pa.chunked_array([chunk.flatten() for chunk in chunks], kind)
        self.columns: list[str] = self._table.column_names
        self.rows: int = self._table.num_rows
        self.tokens = len(self._stream)

    def lengths(self) -> IntArray:
        """(rows,) tokens of each row."""
        lengths: IntArray = pc.list_value_length(self._table["tokens"]).to_numpy()
        return lengths

    def column(self, name: str, rows: IntArray) -> list[NDArray[Any]]:
        """The values of a column in each of `rows`, one in a column without lists."""
        column = self._table[name]
        if pa.types.is_large_list(column.type):
            return [column[int(row)].values.to_numpy() for row in rows]
        return [np.array([column[int(row)].as_py()]) for row in rows]

    def row_blocks(self) -> Iterator[tuple[IntArray, IntArray, NDArray[Any], NDArray[Any]]]:
        """(documents, ends, tokens, targets) of many rows at a time: the tokens and targets of all
        rows, joined, where each row ends in `tokens`, and the number of its document. A row that is
        no chunk of a document is one itself; the targets of a chunk are its tokens."""
        rows = 0
        for batch in self._table.to_batches():
            numbers = np.arange(rows, rows := rows + batch.num_rows)
            documents = batch["document"].to_numpy() if "document" in self.columns else numbers
            targets = batch["targets" if "targets" in self.columns else "tokens"].flatten()
            ends = batch["tokens"].offsets.to_numpy()
            tokens = batch["tokens"].flatten().to_numpy()
            yield documents, ends[1:] - ends[0], tokens, targets.to_numpy()

    def read(self, start: int, count: int) -> NDArray[Any]:
        """Up to `count` tokens of the stream from `start`; fewer only at its end."""
        return self._stream.slice(min(start, self.tokens), count).to_numpy()


def is_stream(tokens: Artifact) -> bool:
    """Whether the rows of a split make one stream of text, or are images or task rows."""
    return bool(tokens.manifest.statistics["layout"] == "stream")


def open_split(tokens: Artifact, split: str) -> TokenShards:
    """The shards of one split. Raises ArtifactError where the split is empty."""
    shards = TokenShards(tokens.files(f"{split}-"))
    if shards.tokens == 0:
        raise ArtifactError(f"{tokens.directory}: the {split} split is empty")
    return shards


def without_padding(padded: NDArray[Any], lengths: IntArray) -> Lists:
    """The first `lengths[r]` values of each row r of (n, width), as lists."""
    return padded[np.arange(padded.shape[1]) < lengths[:, None]], lengths


def _column(kind: pa.DataType, values: Column) -> pa.Array:
    if not isinstance(values, tuple):
        return pa.array(values, kind)
    flat, lengths = values
    ends = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
    flat = flat.astype(kind.value_type.to_pandas_dtype())
    return pa.LargeListArray.from_arrays(ends, pa.array(flat))
