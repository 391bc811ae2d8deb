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

from smtkit import IGNORE
from smtkit.corpus.seeded import IntArray
from smtkit.corpus.stored_tokenizer import load_tokenizer
from smtkit.corpus.tokenizers import PixelTokenizer, TextTokenizer
from smtkit.errors import ArtifactError
from smtkit.storage.artifact import Artifact
from smtkit.storage.files import named_errors
from smtkit.storage.run import Run
from smtkit.storage.shards import decode_shard, shard_writer

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
    """The shards of one split, in memory; read as rows, or as one stream of tokens.

    `rows` and `tokens` are how many there are. What is read was verified: the memory is this
    process's own, so that a file which is cut or changed meanwhile does no harm.
    """

    def __init__(self, tables: Sequence[pa.Table]) -> None:
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


def row_length(tokens: Artifact) -> int | None:
    """Tokens of the longest row of an artifact, an image or a task row; None where the rows of a
    split make one stream of text. Raises ArtifactError where the manifest states neither."""
    layout, length = (tokens.manifest.statistics.get(key) for key in ("layout", "length"))
    if layout == "stream":
        return None
    largest = max((entry.bytes for entry in tokens.manifest.files), default=0)
    if layout == "rows" and type(length) is int and 0 < length <= largest:
        return length
    raise ArtifactError(
        f"{tokens.directory}: statistics: found layout {layout!r:.80} and length {length!r:.80}, "
        "allowed: stream, or rows and the tokens of the longest one"
    )


def is_stream(tokens: Artifact) -> bool:
    """Whether the rows of a split make one stream of text. Raises ArtifactError as `row_length`."""
    return row_length(tokens) is None


def open_split(tokens: Artifact, split: str) -> TokenShards:
    """The shards of one split, verified. Raises ArtifactError where one is damaged or not what its
    artifact says, or the split is empty."""
    shards = read_split(tokens, split)
    if shards.tokens == 0:
        raise ArtifactError(f"{tokens.directory}: the {split} split is empty")
    return shards


def read_split(tokens: Artifact, split: str) -> TokenShards:
    """The shards of one split, verified, which may be empty. Raises ArtifactError."""
    tokenizer, longest = load_tokenizer(tokens), row_length(tokens)
    if isinstance(tokenizer, PixelTokenizer):
        fits = longest == tokenizer.height * tokenizer.width
    else:
        fits = isinstance(tokenizer, TextTokenizer) == (longest is None)
    if not fits:
        raise ArtifactError(f"{tokens.directory}: its rows are not those of its tokenizer")
    prefix = f"{split}-"
    return TokenShards(
        [
            decode_tokens(content, path, tokenizer.vocabulary_size, longest, rows)
            for (path, content), rows in zip(
                tokens.contents(prefix), tokens.rows(prefix), strict=True
            )
        ]
    )


def decode_tokens(
    content: bytes, path: Path, vocabulary_size: int, longest: int | None, rows: int
) -> pa.Table:
    """The table of a shard, of which every value is in range.

    `longest`: the most tokens of a whole row; None for chunks of a stream. Raises ArtifactError
    that names file, column, and what was found.
    """

    def check_schema(schema: pa.Schema) -> None:
        names = schema.names
        expected = (
            stream_schema(vocabulary_size)
            if longest is None
            else rows_schema(vocabulary_size, distance="distance" in names, label="label" in names)
        )
        if not schema.equals(expected):
            raise ArtifactError(f"{path}: columns are not those of a token shard")

    table = decode_shard(content, path, check_schema)
    if table.num_rows != rows:
        raise ArtifactError(f"{path}: {table.num_rows} rows, the manifest says {rows}")
    most = CHUNK_TOKENS if longest is None else longest
    for batch in table.to_batches():
        _check_range(path, "tokens", batch["tokens"].flatten(), 0, vocabulary_size - 1)
        lengths = pc.list_value_length(batch["tokens"])
        _check_range(path, "tokens per row", lengths, 0 if longest is None else 1, most)
        for name in {"targets", "distance"} & set(table.column_names):
            largest = vocabulary_size - 1 if name == "targets" else most
            _check_range(path, name, batch[name].flatten(), IGNORE, largest)
            if not pc.list_value_length(batch[name]).equals(pc.add(lengths, 1)):
                raise ArtifactError(f"{path}: {name}: expected one more than tokens in every row")
    return table


def _check_range(path: Path, name: str, values: pa.Array, least: int, most: int) -> None:
    """Raises ArtifactError where a value is not in `least`..`most`."""
    if not len(values):
        return
    found = values.to_numpy()
    low, high = int(found.min()), int(found.max())
    if low < least or high > most:
        worst = low if low < least else high
        raise ArtifactError(f"{path}: damaged: {name}: {worst}, allowed: {least} to {most}")


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
