"""Segments: the bytes of a document in pieces of bounded size, which can be encoded one by one."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

SEGMENT_BYTES = 2**20


@dataclass(frozen=True)
class Segment:
    """Consecutive bytes of a document, all in one split; `last`: its last bytes in that split."""

    document: int
    split: int
    data: bytes
    last: bool


def segments_of(document: int, split: int, blocks: Iterable[bytes]) -> Iterator[Segment]:
    """The segments of the part of a document that is in one split."""
    held = b""
    for piece in cut_at_boundaries(blocks):
        if held:
            yield Segment(document, split, held, last=False)
        held = piece
    if held:
        yield Segment(document, split, held, last=True)


def batches_of(segments: Iterable[Segment]) -> Iterator[list[Segment]]:
    """Segments in lists of about 1 MiB, so that short documents are encoded many at a time."""
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


def cut_at_boundaries(blocks: Iterable[bytes], size: int = SEGMENT_BYTES) -> Iterator[bytes]:
    """The bytes in pieces of at most `size`, cut after a line's end; where there is none, before
    spaces; else between two UTF-8 characters. The cuts do not depend on the blocks."""
    pending = bytearray()
    for block in blocks:
        pending += block
        while len(pending) > size:
            cut = _boundary(pending, size)
            yield bytes(pending[:cut])
            del pending[:cut]
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
    cut = size
    while cut > size - 4 and data[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut
