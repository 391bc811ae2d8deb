"""`smtkit tokenize`: files to a `tokens` artifact.

Three passes over the inputs, none of which holds more than a block of them: content hashes (for
duplicates and splits), the tokenizer's vocabulary, tokens.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, groupby
from operator import itemgetter

import numpy as np
import xxhash
from numpy.typing import NDArray

from smtkit.artifacts.manifest import Manifest
from smtkit.artifacts.run import Run
from smtkit.config import TokenizeConfig
from smtkit.data import splits
from smtkit.data.sources import Document, Part, decode, find_documents
from smtkit.data.splits import SPLITS, Fractions
from smtkit.data.tokenizers import TOKENIZER, ByteTokenizer, CharTokenizer, Tokenizer
from smtkit.data.tokens import TokenWriter
from smtkit.errors import InputOutputError, UsageError
from smtkit.progress import Progress, Silent


def run(
    config: TokenizeConfig,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Tokenizes `config.inputs` into the artifact `out`.

    Raises UsageError (nothing to read), InputOutputError (unreadable or undecodable file).
    """
    progress = progress or Silent()
    found = find_documents(config.inputs, config.include, config.exclude)
    inputs = {"input files": _listing_digest(found.documents)}
    with Run(
        out, "tokens", config, seed=config.seed, overwrite=overwrite, resume=resume, inputs=inputs
    ) as artifact:
        if artifact.finished:
            return artifact.finished
        corpus = _Corpus(found.documents, config, progress)
        tokenizer = _fit(corpus)
        tokenizer.save(artifact.directory)
        artifact.add(TOKENIZER)
        statistics: dict[str, object] = {
            "documents": len(found.documents),
            "binary_files_passed_over": found.binary,
            **corpus.counts(),
            "vocabulary_size": tokenizer.vocabulary_size,
        }
        with ExitStack() as stack:
            writers = [
                stack.enter_context(
                    TokenWriter(artifact.directory, split, tokenizer.vocabulary_size)
                )
                for split in SPLITS
            ]
            statistics["splits"] = _write(corpus, tokenizer, writers)
        for writer in writers:
            for name, rows in writer.shards:
                artifact.add(name, rows)
        return artifact.commit(statistics)


class _Corpus:
    """The documents, the split of each, and the reading of them in order."""

    def __init__(
        self, documents: Sequence[Document], config: TokenizeConfig, progress: Progress
    ) -> None:
        self.documents = documents
        self.config = config
        self._progress = progress
        self._fractions = Fractions(config.validation_fraction, config.test_fraction)
        digests, self.sizes = self._hash()
        self.codes = splits.assign_splits(digests, self.sizes, self._fractions, config.seed)
        if (self.codes == splits.REMOVED).all():
            raise UsageError(f"{', '.join(config.inputs)}: all files are empty")

    def parts(self, task: str) -> Iterator[tuple[int, int, Part]]:
        """(number of the document, split, bytes), in the order of the inputs."""
        total, done = int(self.sizes.sum()), 0
        for number, code in enumerate(self.codes):
            if code == splits.BY_POSITION:
                yield from self._cut(number)
            elif code != splits.REMOVED:
                yield number, int(code), Part(self.documents[number], 0, self._read(number))
            done += int(self.sizes[number])
            self._progress.update(task, done, total)

    def counts(self) -> dict[str, int]:
        empty = int((self.sizes == 0).sum())
        removed = int((self.codes == splits.REMOVED).sum())
        return {"empty_documents": empty, "duplicate_documents": removed - empty}

    def _cut(self, number: int) -> Iterator[tuple[int, int, Part]]:
        boundaries = self._fractions.boundaries(int(self.sizes[number]))
        pieces = splits.cut(self._read(number), boundaries)
        for split, group in groupby(pieces, key=itemgetter(0)):
            part = iter(group)
            _, start, first = next(part)
            blocks = chain([first], map(itemgetter(2), part))
            yield number, split, Part(self.documents[number], start, blocks)

    def _read(self, number: int) -> Iterator[bytes]:
        size = 0
        for block in self.documents[number].blocks():
            size += len(block)
            yield block
        if size != self.sizes[number]:
            path = self.documents[number].path
            raise InputOutputError(f"{path}: changed while it was read")

    def _hash(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        digests = np.zeros((len(self.documents), 2), dtype=np.uint64)
        sizes = np.zeros(len(self.documents), dtype=np.int64)
        for number, document in enumerate(self.documents):
            checksum = xxhash.xxh3_128()
            for block in document.blocks():
                checksum.update(block)
                sizes[number] += len(block)
            digests[number] = np.frombuffer(checksum.digest(), dtype=">u8")
            self._progress.update("reading", number + 1, len(self.documents))
        return digests, sizes


def _fit(corpus: _Corpus) -> Tokenizer:
    if corpus.config.tokenizer == "byte":
        return ByteTokenizer()
    texts = (
        text
        for _, split, part in corpus.parts("vocabulary")
        if split == splits.TRAIN
        for text in decode(part, corpus.config.errors)
    )
    return CharTokenizer.fit(texts)


def _write(
    corpus: _Corpus, tokenizer: Tokenizer, writers: Sequence[TokenWriter]
) -> dict[str, dict[str, int | float | None]]:
    """Writes all tokens; returns the counts of each split."""
    end = np.array([tokenizer.end_of_document])
    byte_lengths = tokenizer.byte_lengths()
    sizes = [0] * len(writers)
    unknown = [0] * len(writers)
    document_of_offset, offset = -1, 0
    for number, split, part in corpus.parts("tokenizing"):
        if number != document_of_offset:
            document_of_offset, offset = number, 0
        began = offset
        for tokens in tokenizer.encode_part(part, corpus.config.errors):
            writers[split].append(number, offset, tokens)
            offset += len(tokens)
            sizes[split] += int(byte_lengths[tokens].sum())
            if tokenizer.unknown is not None:
                unknown[split] += int((tokens == tokenizer.unknown).sum())
        if offset > began:
            writers[split].append(number, offset, end)
            writers[split].documents += 1
            offset += 1
    return {
        writer.split: {
            "documents": writer.documents,
            "tokens": writer.tokens,
            "bytes": sizes[split],
            "bytes_per_token": sizes[split] / writer.tokens if writer.tokens else None,
            "unknown_tokens": unknown[split],
        }
        for split, writer in enumerate(writers)
    }


def _listing_digest(documents: Sequence[Document]) -> str:
    """Changes when a file of the inputs comes, goes, or is written."""
    checksum = xxhash.xxh3_128()
    for document in documents:
        try:
            status = document.path.stat()
        except OSError as error:
            raise InputOutputError(f"{document.path}: {error.strerror}") from None
        checksum.update(os.fsencode(document.path))
        checksum.update(f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return checksum.hexdigest()
