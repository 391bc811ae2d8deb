"""A corpus of text documents, read in passes that hold only some segments in memory.

The passes: content digests (for duplicates and splits), the tokenizer's vocabulary, tokens.
"""

import os
import sys
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from itertools import groupby, repeat
from operator import itemgetter
from pathlib import Path
from random import Random
from threading import Lock
from typing import Any, NamedTuple, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from smtkit.config import TokenizeConfig
from smtkit.corpus import splits
from smtkit.corpus.files import STDIN, Reader, is_binary, spool, suffixes
from smtkit.corpus.formats import Document, TextSource, find_sources
from smtkit.corpus.seeded import random_key
from smtkit.corpus.segments import Segment, batches_of, cut_at_boundaries, segments_of
from smtkit.corpus.shards import DocumentWriter
from smtkit.corpus.splits import SPLITS, Fractions
from smtkit.corpus.subwords import SentencePieceTokenizer
from smtkit.corpus.tokenizers import ByteTokenizer, CharTokenizer, TextTokenizer, TokenArray
from smtkit.errors import BrokenDocumentError, InputOutputError, SmtkitError, UsageError
from smtkit.storage.files import file_size
from smtkit.storage.run import Run

SAMPLE_BYTES = 2**12
"""Largest piece of text that is drawn for the training of a tokenizer."""

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Survey(NamedTuple):
    """Bytes of each document of a source, their 128-bit digests, joined, and how many documents are
    broken."""

    sizes: "array[int]"
    digests: bytearray
    broken: int


class TextCorpus:
    """All documents of the inputs. 24 bytes of memory are used per document.

    After `assign_splits`: `sizes` (documents,), bytes; `codes` (documents,), as `assign_splits` of
    `splits` returns them.
    """

    def __init__(self, config: TokenizeConfig, report: Callable[[str, float, float], None]) -> None:
        """`report` takes the name of a task, and how much of it is done out of how much.

        Raises UsageError where an input does not exist, or `tokenizer_model` is no model.
        """
        self._config = config
        self._model = _existing_model(config.tokenizer_model) if config.tokenizer_model else None
        self._report = report
        self._workers = config.workers or os.cpu_count() or 1
        self._fractions = Fractions(config.validation_fraction, config.test_fraction)
        self._read, self._lock = 0, Lock()
        reader = Reader(config.max_expansion, config.max_value_bytes, self._count_read)
        self._sources, self._binary = find_sources(config.inputs, config, reader)
        self._given_test = 0
        if config.test_inputs:
            test, binary = find_sources(config.test_inputs, config, reader)
            self._given_test, self._binary = len(test), self._binary + binary
            # The test comes first: of equal documents, the one in train is removed.
            self._sources = test + self._sources
            self._fractions = Fractions(config.validation_fraction, 0.0)
        self._size = sum(file_size(source.path) or 0 for source in self._sources)

    def files(self) -> list[Path]:
        """All files that the result depends on."""
        model = self._config.tokenizer_model
        models = [] if model is None else [Path(model)]
        return [source.path for source in self._sources] + models

    def binary_files(self) -> list[Path]:
        """The files that were named by themselves and are no text. Raises InputOutputError."""
        named = {*self._config.inputs, *self._config.test_inputs} - {STDIN}
        return [
            source.path
            for source in self._sources
            if str(source.path) in named
            and source.format == "text"
            and not suffixes(source.path)[1]
            and is_binary(source.path)
        ]

    def assign_splits(self, directory: Path) -> None:
        """Reads all documents once, finds duplicates, and assigns each document to a split.

        Standard input, which is read more than once, is copied to `directory`. Raises UsageError
        where nothing is left for train, InputOutputError for unreadable or broken documents.
        """
        for index, source in enumerate(self._sources):
            if str(source.path) == STDIN:
                path = spool(sys.stdin.buffer, directory)
                self._sources[index] = replace(source, path=path)
                self._size += file_size(path) or 0
        with ThreadPoolExecutor(self._workers) as pool:
            surveys = list(_ordered_map(pool, _survey, self._sources, 2 * self._workers))
        self._report("reading bytes", self._size, self._size)
        self._counts = [len(survey.sizes) for survey in surveys]
        self._broken = sum(survey.broken for survey in surveys)
        self.sizes = np.concatenate([np.array(survey.sizes, np.int64) for survey in surveys])
        digests = np.frombuffer(b"".join(survey.digests for survey in surveys), ">u8")
        self._digests = digests.astype(np.uint64).reshape(-1, 2)
        self.codes = splits.assign_splits(
            self._digests,
            self.sizes,
            self._fractions,
            self._config.seed,
            given_test=sum(self._counts[: self._given_test]),
        )
        inputs = ", ".join(self._config.inputs)
        if (self.codes == splits.REMOVED).all():
            raise UsageError(f"{inputs}: no text in it")
        if not np.isin(self.codes, (splits.TRAIN, splits.BY_POSITION)).any():
            raise UsageError(
                f"{inputs}: nothing is left for train", "the test inputs hold all of it"
            )

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer of the config, fitted on train if it needs to be. Raises UsageError."""
        config = self._config
        if config.tokenizer == "byte":
            return ByteTokenizer()
        if config.tokenizer == "char":
            return CharTokenizer.fit(segment.data for segment in self._train_segments())
        return self._model or SentencePieceTokenizer.fit(
            self._sample(), config.vocabulary_size, config.model_type
        )

    def write(self, run: Run) -> dict[str, Any]:
        """Writes the tokens of all splits; returns the statistics for the manifest."""
        tokenizer = self.tokenizer
        byte_lengths = tokenizer.byte_lengths()
        is_byte = isinstance(tokenizer, ByteTokenizer)
        unknown = -1 if tokenizer.unknown is None else tokenizer.unknown

        def encode(batch: list[Segment]) -> list[tuple[Segment, TokenArray, tuple[int, int, int]]]:
            encoded = []
            for segment in batch:
                tokens = tokenizer.encode(segment.data)
                size = len(tokens) if is_byte else int(byte_lengths[tokens].sum())
                count = (int(segment.last), size, int((tokens == unknown).sum()))
                if segment.last:
                    tokens = np.append(tokens, np.int32(tokenizer.end_of_document))
                encoded.append((segment, tokens, count))
            return encoded

        counts = np.zeros((len(SPLITS), 3), dtype=np.int64)
        current, offset = -1, 0
        with ExitStack() as stack, ThreadPoolExecutor(self._workers) as pool:
            writers = [
                stack.enter_context(DocumentWriter(run, split, tokenizer.vocabulary_size))
                for split in SPLITS
            ]
            batches = batches_of(self._reported("tokenizing bytes"))
            for batch in _ordered_map(pool, encode, batches, 2 * self._workers):
                for segment, tokens, count in batch:
                    if segment.document != current:
                        current, offset = segment.document, 0
                    writers[segment.split].extend(current, offset, tokens)
                    offset += len(tokens)
                    counts[segment.split] += count
        of_splits = {}
        for writer, (documents, size, unknowns) in zip(writers, counts.tolist(), strict=True):
            of_splits[writer.split] = {
                "documents": documents,
                "tokens": writer.tokens,
                "bytes": size,
                "bytes_per_token": size / writer.tokens if writer.tokens else None,
                "unknown_tokens": unknowns,
            }
        empty = int((self.sizes == 0).sum())
        return {
            "layout": "stream",
            "documents": len(self.sizes),
            "empty_documents": empty,
            "duplicate_documents": int((self.codes == splits.REMOVED).sum()) - empty,
            "broken_documents": self._broken,
            "binary_files_passed_over": self._binary,
            "vocabulary_size": tokenizer.vocabulary_size,
            "splits": of_splits,
        }

    def segments(self) -> Iterator[Segment]:
        """The bytes of all documents that are in a split, in order."""
        for number, document in enumerate(self._documents()):
            code, size = int(self.codes[number]), int(self.sizes[number])
            if code == splits.REMOVED:
                continue
            blocks = _blocks(document, size, self._digests[number])
            if code == splits.BY_POSITION:
                parts = splits.cut(blocks, self._fractions.boundaries(size))
            else:
                parts = zip(repeat(code), blocks)
            for split, part in groupby(parts, key=itemgetter(0)):
                yield from segments_of(number, split, map(itemgetter(1), part))

    def _documents(self) -> Iterator[Document]:
        for source, expected in zip(self._sources, self._counts, strict=True):
            count = 0
            for found in source.documents() if expected else ():
                if isinstance(found, Document) and count < expected:
                    yield found
                count += isinstance(found, Document)
            if count != expected:
                raise InputOutputError(f"{source.name}: changed while it was read")

    def _count_read(self, count: int) -> None:
        """Reports bytes read from disk, by any thread, until every file was read once."""
        with self._lock:
            self._read += count
            if self._read < self._size:
                self._report("reading bytes", self._read, self._size)

    def _reported(self, task: str) -> Iterator[Segment]:
        total, done = int(self.sizes[self.codes != splits.REMOVED].sum()), 0
        for segment in self.segments():
            done += len(segment.data)
            self._report(task, done, total)
            yield segment

    def _train_segments(self) -> Iterator[Segment]:
        return (s for s in self._reported("vocabulary bytes") if s.split == splits.TRAIN)

    def _sample(self) -> Iterator[bytes]:
        """Pieces of train, all equally likely, of about `training_bytes` together; at least one."""
        by_position = self.sizes[self.codes == splits.BY_POSITION].tolist()
        train = int(self.sizes[self.codes == splits.TRAIN].sum())
        train += sum(self._fractions.boundaries(size)[0] for size in by_position)
        share = self._config.training_bytes / max(train, 1)
        draw = Random(random_key(self._config.seed, "tokenizer"))
        left = draw.randrange(max(train, 1))  # bytes before the one that is drawn in any case
        for segment in self._train_segments():
            for piece in cut_at_boundaries([segment.data], SAMPLE_BYTES):
                if draw.random() < share or 0 <= left < len(piece):
                    yield piece
                left -= len(piece)


def _survey(source: TextSource) -> Survey:
    """Reads a source once. Raises the error of a broken document, unless these are skipped."""
    sizes, digests, broken = array("q"), bytearray(), 0
    for found in source.documents():
        try:
            if isinstance(found, SmtkitError):
                raise found
            source.check(found)
        except BrokenDocumentError:
            if source.settings.errors != "skip":
                raise
            broken += 1
            continue
        checksum, size = xxhash.xxh3_128(), 0
        for block in found.blocks():
            checksum.update(block)
            size += len(block)
        sizes.append(size)
        digests += checksum.digest()
    return Survey(sizes, digests, broken)


def _blocks(document: Document, size: int, digest: NDArray[np.uint64]) -> Iterator[bytes]:
    """The bytes of a document. Raises InputOutputError where they are not those of the survey."""
    checksum = xxhash.xxh3_128()
    for block in document.blocks():
        checksum.update(block)
        size -= len(block)
        yield block
    if size or checksum.digest() != digest.astype(">u8").tobytes():
        raise InputOutputError(f"{document.name}: changed while it was read")


def _ordered_map(
    pool: Executor, function: Callable[[ItemT], ResultT], items: Iterable[ItemT], ahead: int
) -> Iterator[ResultT]:
    """`map(function, items)` on the pool, at most `ahead` results ahead of the reader.

    The items are drawn in the reader's thread. An exception of the function is raised here.
    """
    waiting: deque[Future[ResultT]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _existing_model(path: str) -> SentencePieceTokenizer:
    where = f"`tokenizer_model` {path}"
    if Path(path).exists() and not Path(path).is_file():
        raise UsageError(f"{where}: not a file")
    try:
        model = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{where}: {error.strerror}") from None
    if not model:
        raise UsageError(f"{where}: not a sentencepiece model: it is empty")
    try:
        return SentencePieceTokenizer(model)
    except (RuntimeError, OSError, LookupError, ValueError) as error:
        raise UsageError(f"{where}: not a sentencepiece model: {error}") from None
