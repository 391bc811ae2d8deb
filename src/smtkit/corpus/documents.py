"""A corpus: documents, the split of each, and their bytes in segments of bounded size."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

import numpy as np
import xxhash

from smtkit.corpus import splits
from smtkit.corpus.formats import Document, TextSource
from smtkit.corpus.parallel import ordered_map
from smtkit.corpus.splits import Fractions
from smtkit.errors import BrokenDocumentError, InputOutputError, SmtkitError

SEGMENT_BYTES = 2**20


@dataclass(frozen=True)
class Segment:
    """Consecutive bytes of a document, all in one split; `last`: no more of it in that split."""

    document: int
    split: int
    data: bytes
    last: bool


class Corpus:
    """All documents of some sources; none is held in memory, but 24 bytes about each.

    `sizes` (documents,) bytes; `codes` (documents,) as `assign_splits` gives them; `broken`: how
    many documents were passed over. The documents of `test_sources` are the test split. Raises what
    is wrong with a document, unless it is to be skipped.
    """

    def __init__(
        self,
        sources: Sequence[TextSource],
        test_sources: Sequence[TextSource],
        fractions: Fractions,
        seed: int,
        workers: int,
    ) -> None:
        # A given test comes first: of equal documents, the one in train goes.
        sources = [*test_sources, *sources]
        if test_sources:
            fractions = Fractions(fractions.validation, 0.0)
        self._fractions = fractions
        with ThreadPoolExecutor(workers) as pool:
            surveys = list(ordered_map(pool, _survey, sources, 2 * workers))
        self._sources = [
            (source, len(survey.sizes))
            for source, survey in zip(sources, surveys, strict=True)
            if len(survey.sizes)
        ]
        self.broken = sum(survey.broken for survey in surveys)
        self.sizes = np.concatenate([np.array(survey.sizes, np.int64) for survey in surveys])
        digests = np.concatenate(
            [np.array(survey.digests, np.uint64).reshape(-1, 2) for survey in surveys]
        )
        given = sum(len(survey.sizes) for survey in surveys[: len(test_sources)])
        self.codes = splits.assign_splits(digests, self.sizes, fractions, seed, given_test=given)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def empty(self) -> int:
        return int((self.sizes == 0).sum())

    @property
    def duplicates(self) -> int:
        return int((self.codes == splits.REMOVED).sum()) - self.empty

    def segments(self) -> Iterator[Segment]:
        """The bytes of all documents that are in a split, in order."""
        for number, document in enumerate(self._documents()):
            code = int(self.codes[number])
            if code == splits.BY_POSITION:
                boundaries = self._fractions.boundaries(int(self.sizes[number]))
                parts = splits.cut(self._read(number, document), boundaries)
                for split, part in groupby(parts, key=itemgetter(0)):
                    yield from _segments(number, split, map(itemgetter(1), part))
            elif code != splits.REMOVED:
                yield from _segments(number, code, self._read(number, document))

    def _documents(self) -> Iterator[Document]:
        for source, expected in self._sources:
            count = 0
            for found in source.documents():
                if isinstance(found, Document) and count < expected:
                    yield found
                count += isinstance(found, Document)
            if count != expected:
                raise InputOutputError(f"{source.name}: changed while it was read")

    def _read(self, number: int, document: Document) -> Iterator[bytes]:
        size = 0
        for block in document.blocks():
            size += len(block)
            yield block
        if size != self.sizes[number]:
            raise InputOutputError(f"{document.name}: changed while it was read")


@dataclass
class _Survey:
    """Sizes and 128-bit digests of the documents of one source."""

    sizes: "array[int]" = field(default_factory=lambda: array("q"))
    digests: "array[int]" = field(default_factory=lambda: array("Q"))
    broken: int = 0


def _survey(source: TextSource) -> _Survey:
    survey = _Survey()
    for found in source.documents():
        try:
            if isinstance(found, SmtkitError):
                raise found
            source.check(found)
        except BrokenDocumentError:
            if source.errors != "skip":
                raise
            survey.broken += 1
            continue
        checksum, size = xxhash.xxh3_128(), 0
        for block in found.blocks():
            checksum.update(block)
            size += len(block)
        survey.sizes.append(size)
        survey.digests.extend(np.frombuffer(checksum.digest(), dtype=">u8").tolist())
    return survey


def _segments(document: int, split: int, blocks: Iterable[bytes]) -> Iterator[Segment]:
    pieces = cut_at_boundaries(blocks)
    held = next(pieces, None)
    for piece in pieces:
        assert held is not None
        yield Segment(document, split, held, last=False)
        held = piece
    if held is not None:
        yield Segment(document, split, held, last=True)


def cut_at_boundaries(blocks: Iterable[bytes], size: int = SEGMENT_BYTES) -> Iterator[bytes]:
    """The bytes in pieces of at most `size`, cut after a line's end; where there is none, before
    spaces; else between two UTF-8 characters. The cuts do not depend on the blocks."""
    pending = bytearray()
    for block in blocks:
        pending += block
        while len(pending) > size:
            place = _boundary(pending, size)
            yield bytes(pending[:place])
            del pending[:place]
    if pending:
        yield bytes(pending)


def _boundary(data: bytearray, size: int) -> int:
    line_end = data.rfind(b"\n", 0, size) + 1
    if line_end:
        return line_end
    space = data.rfind(b" ", 1, size)
    while space > 0 and data[space - 1] == 0x20:  # a run of spaces may be one token
        space -= 1
    if space > 0:
        return space
    place = size
    while place > size - 4 and data[place] & 0xC0 == 0x80:
        place -= 1
    return place
