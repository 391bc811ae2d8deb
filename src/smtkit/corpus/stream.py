"""The shards of a `tokens` artifact: chunks of documents, and the stream they make together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from smtkit.corpus.tokenizers import TokenArray
from smtkit.errors import ArtifactError
from smtkit.storage.artifact import Artifact
from smtkit.storage.run import Run
from smtkit.storage.shards import ShardSeries, read_shard

CHUNK_TOKENS = 2**16
BATCH_TOKENS = 2**20
SHARD_TOKENS = 2**26


def tokens_schema(vocabulary_size: int) -> pa.Schema:
    """document, offset (of the chunk's first token in its document), tokens."""
    return pa.schema(
        [
            pa.field("document", pa.int64(), nullable=False),
            pa.field("offset", pa.int64(), nullable=False),
            pa.field("tokens", pa.large_list(token_type(vocabulary_size)), nullable=False),
        ]
    )


def token_type(vocabulary_size: int) -> pa.DataType:
    return pa.uint16() if vocabulary_size <= 2**16 else pa.uint32()


class TokenWriter:
    """Writes the documents of one split; holds one record batch. Use as a context manager."""

    def __init__(self, run: Run, split: str, vocabulary_size: int) -> None:
        self.split = split
        self.tokens = 0
        self.documents = 0
        self._schema = tokens_schema(vocabulary_size)
        self._series = ShardSeries(run, split, self._schema, SHARD_TOKENS)
        self._dtype = token_type(vocabulary_size).to_pandas_dtype()
        self._rows: list[tuple[int, int, NDArray[Any]]] = []
        self._pending = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None:
            self._flush()
        self._series.__exit__(kind, error, traceback)

    def append(self, document: int, offset: int, tokens: TokenArray) -> None:
        """Appends tokens of a document; `offset` is the number of its tokens before them."""
        for start in range(0, len(tokens), CHUNK_TOKENS):
            chunk = tokens[start : start + CHUNK_TOKENS].astype(self._dtype)
            self._rows.append((document, offset + start, chunk))
            self._pending += len(chunk)
            if self._pending >= BATCH_TOKENS:
                self._flush()
        self.tokens += len(tokens)

    def _flush(self) -> None:
        if not self._rows:
            return
        documents, offsets, chunks = zip(*self._rows, strict=True)
        ends = np.cumsum([0, *map(len, chunks)], dtype=np.int64)
        values = pa.array(np.concatenate(chunks))
        lists = pa.LargeListArray.from_arrays(pa.array(ends), values)
        columns = [pa.array(documents, pa.int64()), pa.array(offsets, pa.int64()), lists]
        self._series.write(pa.record_batch(columns, schema=self._schema), self._pending)
        self._rows, self._pending = [], 0


class TokenStream:
    """All tokens of a split, one document after the other, through memory maps."""

    def __init__(self, shards: Sequence[Path]) -> None:
        readers = [read_shard(path) for path in shards]
        batches = [
            reader.get_batch(index)
            for reader in readers
            for index in range(reader.num_record_batches)
        ]
        self._parts: list[NDArray[Any]] = [
            batch.column("tokens").flatten().to_numpy(zero_copy_only=True) for batch in batches
        ]
        self._ends = np.cumsum([len(part) for part in self._parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, start: int, count: int) -> NDArray[Any]:
        """Up to `count` tokens from `start`; fewer only at the end of the stream."""
        pieces = []
        index = int(np.searchsorted(self._ends, start, side="right"))
        while count > 0 and index < len(self._parts):
            part = self._parts[index]
            first = start - (int(self._ends[index]) - len(part))
            piece = part[first : first + count]
            pieces.append(piece)
            start, count, index = start + len(piece), count - len(piece), index + 1
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.uint16)


def is_stream(tokens: Artifact) -> bool:
    """Whether the tokens are one stream of text; otherwise they are rows."""
    return bool(tokens.manifest.statistics["layout"] == "stream")


def open_stream(tokens: Artifact, split: str) -> TokenStream:
    """The stream of one split. Raises ArtifactError where the split is empty."""
    stream = TokenStream(tokens.files(f"{split}-"))
    if len(stream) == 0:
        raise ArtifactError(f"{tokens.directory}: the {split} split is empty")
    return stream
