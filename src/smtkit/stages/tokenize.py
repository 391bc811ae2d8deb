"""`smtkit tokenize`: files to a `tokens` artifact.

Passes over the inputs, none of which holds more than some segments of them: content hashes (for
duplicates and splits), the tokenizer's vocabulary, tokens.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smtkit.config import TokenizeConfig
from smtkit.corpus import splits
from smtkit.corpus.documents import SEGMENT_BYTES, Corpus, Segment
from smtkit.corpus.files import STDIN, Meter, Reader, listing_digest, spool
from smtkit.corpus.formats import TextSettings, TextSource, find_sources
from smtkit.corpus.parallel import ordered_map
from smtkit.corpus.seeded import random_key, uniform
from smtkit.corpus.splits import SPLITS, Fractions
from smtkit.corpus.stream import TokenWriter
from smtkit.corpus.subwords import SentencePieceTokenizer
from smtkit.corpus.tokenizers import ByteTokenizer, CharTokenizer, TextTokenizer, TokenArray
from smtkit.errors import UsageError
from smtkit.stages import tokenize_images
from smtkit.storage.manifest import Manifest
from smtkit.storage.run import Run
from smtkit.training.progress import Progress, Silent


def run(
    config: TokenizeConfig,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Tokenizes `config.inputs` into the artifact `out`.

    Raises UsageError (nothing to read), InputOutputError (unreadable, undecodable, broken).
    """
    if config.tokenizer == "pixel":
        return tokenize_images.run(
            config, out, overwrite=overwrite, resume=resume, progress=progress
        )
    work = _Work(config, progress or Silent())
    with Run(
        out,
        "tokens",
        config,
        seed=config.seed,
        overwrite=overwrite,
        resume=resume,
        inputs={"input files": listing_digest(work.paths())},
    ) as artifact:
        if artifact.finished:
            return artifact.finished
        work.spool_stdin(artifact.directory)
        corpus = work.survey()
        tokenizer = work.fit(corpus)
        tokenizer.save(artifact)
        with ExitStack() as stack:
            size = tokenizer.vocabulary_size
            writers = [stack.enter_context(TokenWriter(artifact, split, size)) for split in SPLITS]
            counts = work.write(corpus, tokenizer, writers)
        return artifact.commit(
            {
                "layout": "stream",
                "documents": len(corpus),
                "empty_documents": corpus.empty,
                "duplicate_documents": corpus.duplicates,
                "broken_documents": corpus.broken,
                "binary_files_passed_over": work.binary,
                "vocabulary_size": tokenizer.vocabulary_size,
                "splits": counts,
            }
        )


class _Work:
    """The passes over the inputs."""

    def __init__(self, config: TokenizeConfig, progress: Progress) -> None:
        self._config = config
        self._progress = progress
        self._workers = config.workers or os.cpu_count() or 1
        meter = Meter(lambda done: progress.update("reading", done, max(done, self._size)))
        settings = TextSettings(
            config.include,
            config.exclude,
            config.text_field,
            config.errors,
            config.tokenizer == "byte",
            config.format,
        )
        found = find_sources(config.inputs, settings, Reader(config.max_expansion, meter))
        self.sources, self.binary, self._size = found.sources, found.binary, found.size
        self.test_sources: list[TextSource] = []
        if config.test_inputs:
            test = find_sources(config.test_inputs, settings, found.sources[0].reader)
            self.test_sources = test.sources
            self.binary, self._size = self.binary + test.binary, self._size + test.size

    def paths(self) -> list[Path]:
        """All files that the result depends on."""
        paths = [source.path for source in (*self.sources, *self.test_sources)]
        model = self._config.tokenizer_model
        if model is not None and not Path(model).is_file():
            raise UsageError(f"--tokenizer-model {model}: no such file")
        return paths if model is None else [*paths, Path(model)]

    def spool_stdin(self, directory: Path) -> None:
        """Standard input comes once, and is read more than once."""
        for sources in (self.sources, self.test_sources):
            for place, source in enumerate(sources):
                if str(source.path) == STDIN:
                    sources[place] = source.at(spool(sys.stdin.buffer, directory))

    def survey(self) -> Corpus:
        config = self._config
        fractions = Fractions(config.validation_fraction, config.test_fraction)
        corpus = Corpus(self.sources, self.test_sources, fractions, config.seed, self._workers)
        self._progress.update("reading", self._size, self._size)
        if (corpus.codes == splits.REMOVED).all():
            raise UsageError(f"{', '.join(config.inputs)}: no text in it")
        if not np.isin(corpus.codes, (splits.TRAIN, splits.BY_POSITION)).any():
            raise UsageError(
                f"{', '.join(config.inputs)}: nothing is left for train",
                "the test inputs hold all of it",
            )
        return corpus

    def fit(self, corpus: Corpus) -> TextTokenizer:
        config = self._config
        if config.tokenizer == "byte":
            return ByteTokenizer()
        if config.tokenizer == "char":
            train = (s.data for s in self._told("vocabulary", corpus) if s.split == splits.TRAIN)
            return CharTokenizer.fit(train)
        if config.tokenizer_model is not None:
            return _existing_model(config.tokenizer_model, self._progress)
        return SentencePieceTokenizer.fit(
            self._sample(corpus), config.vocabulary_size, config.model_type
        )

    def write(
        self, corpus: Corpus, tokenizer: TextTokenizer, writers: Sequence[TokenWriter]
    ) -> dict[str, dict[str, int | float | None]]:
        """Writes all tokens; returns the counts of each split."""
        encoder = _Encoder(tokenizer)
        sizes, unknown = [0] * len(writers), [0] * len(writers)
        document, offset = -1, 0
        batches = _batched(self._told("tokenizing", corpus))
        with ThreadPoolExecutor(self._workers) as pool:
            for batch in ordered_map(pool, encoder.encode, batches, 2 * self._workers):
                for segment, encoded in batch:
                    if segment.document != document:
                        document, offset = segment.document, 0
                    writer = writers[segment.split]
                    writer.append(document, offset, encoded.tokens)
                    offset += len(encoded.tokens)
                    sizes[segment.split] += encoded.bytes
                    unknown[segment.split] += encoded.unknown
                    writer.documents += segment.last
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

    def _told(self, task: str, corpus: Corpus) -> Iterator[Segment]:
        total, done = int(corpus.sizes[corpus.codes != splits.REMOVED].sum()), 0
        for segment in corpus.segments():
            done += len(segment.data)
            self._progress.update(task, done, total)
            yield segment

    def _sample(self, corpus: Corpus) -> Iterator[bytes]:
        """Segments of train, each with the same chance, that hold about `training_bytes`."""
        config = self._config
        train = int(corpus.sizes[corpus.codes == splits.TRAIN].sum())
        train += round(
            int(corpus.sizes[corpus.codes == splits.BY_POSITION].sum())
            * (1 - config.validation_fraction - config.test_fraction)
        )
        share = config.training_bytes / max(train, 1)
        key, number = random_key(config.seed, "tokenizer"), 0
        for segment in self._told("vocabulary", corpus):
            if segment.split != splits.TRAIN:
                continue
            if share >= 1 or uniform(key, np.array([number]), 1)[0, 0] < share:
                yield segment.data
            number += 1


@dataclass(frozen=True)
class _Encoded:
    """Tokens of a segment, with the end of the document where it ends; and what they count."""

    tokens: TokenArray
    bytes: int
    unknown: int


class _Encoder:
    """Encodes batches of segments, in any thread."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._byte_lengths = tokenizer.byte_lengths()
        self._one_byte_each = isinstance(tokenizer, ByteTokenizer)

    def encode(self, segments: Sequence[Segment]) -> list[tuple[Segment, _Encoded]]:
        return [(segment, self._encode(segment)) for segment in segments]

    def _encode(self, segment: Segment) -> _Encoded:
        tokenizer = self._tokenizer
        tokens = tokenizer.encode(segment.data)
        size = len(tokens) if self._one_byte_each else int(self._byte_lengths[tokens].sum())
        unknown = 0 if tokenizer.unknown is None else int((tokens == tokenizer.unknown).sum())
        if segment.last:
            tokens = np.append(tokens, np.int32(tokenizer.end_of_document))
        return _Encoded(tokens, size, unknown)


def _batched(segments: Iterable[Segment]) -> Iterator[list[Segment]]:
    """Segments in lists of about a mebibyte: short documents are encoded many at a time."""
    batch: list[Segment] = []
    size = 0
    for segment in segments:
        batch.append(segment)
        size += len(segment.data)
        if size >= SEGMENT_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _existing_model(path: str, progress: Progress) -> SentencePieceTokenizer:
    try:
        model = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"--tokenizer-model {path}: {error.strerror}") from None
    if not model:
        raise UsageError(f"--tokenizer-model {path}: not a sentencepiece model: it is empty")
    try:
        tokenizer = SentencePieceTokenizer(model)
    except (RuntimeError, OSError, IndexError) as error:
        raise UsageError(f"--tokenizer-model {path}: not a sentencepiece model: {error}") from None
    if tokenizer.unknown is not None:
        progress.warn(
            f"{path}: does not decode every text to itself (no byte fallback, or it normalises): "
            "bits a byte will not be told"
        )
    return tokenizer
