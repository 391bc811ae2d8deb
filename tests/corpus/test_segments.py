"""Segments: where documents are cut, and that the cuts lose nothing."""

from collections.abc import Iterable
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from corpora import (
    some_text,
    write_plain,
)
from smtkit.config import TokenizeConfig
from smtkit.corpus import splits
from smtkit.corpus.segments import SEGMENT_BYTES, cut_at_boundaries
from smtkit.corpus.text_corpus import TextCorpus
from smtkit.corpus.tokenizers import ByteTokenizer, CharTokenizer


def blocks_of(content: bytes, positions: Iterable[int]) -> list[bytes]:
    ends = sorted({position for position in positions if position < len(content)} | {0})
    return [content[start:end] for start, end in zip(ends, [*ends[1:], None], strict=True)]


def cut_slowly(content: bytes, size: int) -> list[bytes]:
    """Cuts at the end of the last line within `size`; else at the start of the last run of spaces,
    unless that is the first byte; else at the last boundary between two characters."""
    pieces = []
    while len(content) > size:
        line_ends = [n for n in range(1, size + 1) if content[n - 1 : n] == b"\n"]
        spaces = [n for n in range(1, size) if content[n] == 0x20 and content[n - 1] != 0x20]
        characters = [n for n in range(1, size + 1) if content[n] & 0xC0 != 0x80]
        cut = (line_ends or spaces or characters)[-1]
        pieces.append(content[:cut])
        content = content[cut:]
    return [*pieces, content] if content else pieces


ALPHABET = "aé\N{EURO SIGN}\N{PILE OF POO} \n"


written = st.text(alphabet=ALPHABET, max_size=200) | st.text(max_size=100)


positions_of_blocks = st.lists(st.integers(0, 300), max_size=10)


@given(text=written, positions=positions_of_blocks, size=st.integers(4, 60))
def test_segments_equal_a_slow_cut_for_any_blocks(
    text: str, positions: list[int], size: int
) -> None:
    content = text.encode()
    segments = list(cut_at_boundaries(blocks_of(content, positions), size))
    assert segments == cut_slowly(content, size)
    assert "".join(segment.decode() for segment in segments) == text


@given(content=st.binary(max_size=300), positions=positions_of_blocks, size=st.integers(4, 60))
def test_segments_of_any_bytes_are_bounded_and_complete(
    content: bytes, positions: list[int], size: int
) -> None:
    segments = list(cut_at_boundaries(blocks_of(content, positions), size))
    assert b"".join(segments) == content
    assert all(0 < len(segment) <= size for segment in segments)
    assert segments == list(cut_at_boundaries([content], size))


@given(content=st.binary(max_size=300), size=st.integers(4, 60))
def test_invalid_bytes_are_replaced_in_segments_as_in_the_whole(content: bytes, size: int) -> None:
    replaced = [
        segment.decode("utf-8", "replace") for segment in cut_at_boundaries([content], size)
    ]
    assert "".join(replaced) == content.decode("utf-8", "replace")


def test_segments_mark_the_end_of_a_document_in_each_split(tmp_path: Path) -> None:
    texts = {"a.txt": some_text(300_000), "b.txt": "short", "c.txt": some_text(9, 9)}
    for name, text in texts.items():
        write_plain(tmp_path / name, [text])
    config = TokenizeConfig(
        inputs=[str(tmp_path / name) for name in texts],
        tokenizer="char",
        validation_fraction=0.2,
        test_fraction=0.2,
        workers=1,
    )
    corpus = TextCorpus(config, lambda task, done, total: None)
    corpus.assign_splits(tmp_path)
    assert corpus.codes[0] == splits.BY_POSITION
    assert corpus.sizes.tolist() == [len(text.encode()) for text in texts.values()]
    joined: dict[tuple[int, int], bytes] = {}
    ended = set()
    for segment in corpus.segments():
        key = (segment.document, segment.split)
        assert key not in ended
        assert 0 < len(segment.data) <= SEGMENT_BYTES
        joined[key] = joined.get(key, b"") + segment.data
        if segment.last:
            ended.add(key)
    assert ended == joined.keys()
    assert list(joined)[:3] == [(0, 0), (0, 1), (0, 2)]
    for number, text in enumerate(texts.values()):
        parts = [data for (document, _), data in joined.items() if document == number]
        assert b"".join(parts) == text.encode()


@given(text=written, size=st.integers(4, 20))
def test_segments_encode_as_the_whole(text: str, size: int) -> None:
    """No character is torn, so each segment can be encoded alone."""
    for tokenizer in (ByteTokenizer(), CharTokenizer.fit([text.encode()])):
        pieces = [tokenizer.encode(s) for s in cut_at_boundaries([text.encode("utf-8")], size)]
        assert [int(t) for piece in pieces for t in piece] == tokenizer.encode(
            text.encode()
        ).tolist()
