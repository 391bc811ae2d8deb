"""Tokenizers: text to tokens and back, whole or in blocks, and bytes that are not text."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtkit.data.sources import BLOCK_BYTES, Document, Part, decode
from smtkit.data.tokenizers import (
    TOKENIZER,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    load_tokenizer,
)
from smtkit.errors import ArtifactError, InputOutputError

MIXED = "aé\N{EURO SIGN}\N{PILE OF POO}\n"
"""Characters of one to four bytes."""

texts = st.text() | st.text(alphabet=MIXED)
places = st.lists(st.integers(0, 40))


def part_of(blocks: list[bytes], start: int = 0, name: str = "some.txt") -> Part:
    return Part(Document(Path(name)), start, iter(blocks))


def cut_at(content: bytes, positions: list[int]) -> list[bytes]:
    """The content in blocks that end at the positions; empty blocks are left out, as in a file."""
    ends = sorted({position for position in positions if 0 < position < len(content)})
    starts = [0, *ends]
    return [content[start:end] for start, end in zip(starts, [*ends, len(content)], strict=True)]


def joined(blocks: Iterator[np.ndarray]) -> list[int]:
    return [int(token) for block in blocks for token in block]


# There and back


@given(text=texts)
def test_bytes_decode_to_what_was_encoded(text: str) -> None:
    tokenizer = ByteTokenizer()
    tokens = tokenizer.encode(text)
    assert bytes(tokens) == text.encode("utf-8")
    assert tokenizer.decode(tokens) == text


@given(text=texts, more=texts)
def test_characters_decode_to_what_was_encoded(text: str, more: str) -> None:
    tokenizer = CharTokenizer.fit([more, text])
    tokens = tokenizer.encode(text)
    assert len(tokens) == len(text)
    assert all(0 <= token < tokenizer.unknown for token in tokens)
    assert tokenizer.decode(tokens) == text


@given(text=texts, fitted=texts)
def test_a_character_that_was_not_seen_is_unknown(text: str, fitted: str) -> None:
    tokenizer = CharTokenizer.fit([fitted])
    expected = [sorted(set(fitted)).index(c) if c in fitted else tokenizer.unknown for c in text]
    assert tokenizer.encode(text) == expected
    assert tokenizer.decode(expected) == "".join(c if c in fitted else "\ufffd" for c in text)


@given(fitted=st.lists(texts))
def test_the_vocabulary_is_every_character_once(fitted: list[str]) -> None:
    tokenizer = CharTokenizer.fit(fitted)
    assert tokenizer.characters == "".join(sorted(set("".join(fitted))))
    special = {tokenizer.unknown, tokenizer.end_of_document}
    assert special == {len(tokenizer.characters), len(tokenizer.characters) + 1}
    assert tokenizer.vocabulary_size == len(tokenizer.characters) + 2


def test_characters_out_of_order_are_refused() -> None:
    for characters in ("ba", "aa"):
        with pytest.raises(ValueError, match="order"):
            CharTokenizer(characters)


@given(text=texts)
def test_byte_lengths_add_up_to_the_bytes_of_the_text(text: str) -> None:
    for tokenizer in (ByteTokenizer(), CharTokenizer.fit([text])):
        lengths = tokenizer.byte_lengths()
        assert len(lengths) == tokenizer.vocabulary_size
        assert lengths[tokenizer.end_of_document] == 0
        assert lengths[tokenizer.encode(text)].sum() == len(text.encode("utf-8"))


# Streams


@given(tokens=st.lists(st.integers(0, 255) | st.sampled_from(list(MIXED.encode()))))
def test_pieces_of_bytes_are_the_whole_text(tokens: list[int]) -> None:
    pieces = "".join(ByteTokenizer().pieces(iter(tokens)))
    assert pieces == bytes(tokens).decode("utf-8", "replace")


@given(text=texts)
def test_a_piece_comes_as_soon_as_its_character_is_whole(text: str) -> None:
    """After each token: the text of all bytes so far that make whole characters."""
    content = text.encode("utf-8")
    pieces = ByteTokenizer().pieces(iter(content))
    shown = ""
    for count in range(1, len(content) + 1):
        shown += next(pieces)
        assert shown == content[:count].decode("utf-8", "ignore")
    assert "".join(pieces) == ""


def test_the_end_of_a_document_is_not_text() -> None:
    assert ByteTokenizer().decode([104, 256, 105]) == "hi"
    tokenizer = CharTokenizer("hi")
    assert tokenizer.decode([0, tokenizer.end_of_document, 1]) == "hi"


def test_bytes_before_and_after_an_end_of_document_make_no_character() -> None:
    first, second = "é".encode()
    assert ByteTokenizer().decode([first, 256, second]) == "\ufffd\ufffd"


# Blocks


@given(content=st.binary(), positions=places)
def test_bytes_in_blocks_encode_as_the_whole(content: bytes, positions: list[int]) -> None:
    part = part_of(cut_at(content, positions))
    assert joined(ByteTokenizer().encode_part(part, "strict")) == list(content)


@given(text=texts, positions=places)
def test_characters_torn_between_blocks_encode_as_the_whole(
    text: str, positions: list[int]
) -> None:
    tokenizer = CharTokenizer.fit([text])
    part = part_of(cut_at(text.encode("utf-8"), positions))
    assert joined(tokenizer.encode_part(part, "strict")) == tokenizer.encode(text)


@given(content=st.binary() | texts.map(str.encode), positions=places)
def test_wrong_bytes_are_replaced_alike_however_they_are_cut(
    content: bytes, positions: list[int]
) -> None:
    replaced = "".join(decode(part_of(cut_at(content, positions)), "replace"))
    assert replaced == content.decode("utf-8", "replace")


# Bytes that are not UTF-8


@given(content=st.binary(min_size=1), positions=places, start=st.integers(0, 2**40))
def test_the_first_wrong_byte_is_named_however_it_is_cut(
    content: bytes, positions: list[int], start: int
) -> None:
    try:
        content.decode("utf-8")
        wrong = None
    except UnicodeDecodeError as error:
        wrong = error.start
    part = part_of(cut_at(content, positions), start, "folder/some.txt")
    if wrong is None:
        assert "".join(decode(part, "strict")) == content.decode("utf-8")
        return
    with pytest.raises(InputOutputError) as caught:
        list(decode(part, "strict"))
    expected = f"folder/some.txt: byte {start + wrong}: 0x{content[wrong]:02x} is not UTF-8"
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (b"abc\xffdef", 3),
        (b"\x80", 0),
        (b"caf\xc3", 3),
        (b"\xe2\x82", 0),
        (b"a\xed\xa0\x80", 1),
        (b"ab\xc0\xaf", 2),
        ("aé".encode() + b"\xf5", 3),
    ],
    ids=[
        "never a byte of UTF-8",
        "continuation alone",
        "cut short",
        "cut short in three",
        "surrogate",
        "overlong",
        "after multi-byte",
    ],
)
def test_the_offset_of_a_wrong_byte_is_exact(tmp_path: Path, content: bytes, wrong: int) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    document = Document(path)
    with pytest.raises(InputOutputError) as caught:
        list(decode(Part(document, 0, document.blocks()), "strict"))
    assert str(caught.value).startswith(f"{path}: byte {wrong}: 0x{content[wrong]:02x} ")
    assert caught.value.hint is not None
    assert "--errors replace" in caught.value.hint


@pytest.mark.parametrize("before", [BLOCK_BYTES - 1, BLOCK_BYTES, 2 * BLOCK_BYTES + 7])
def test_the_offset_is_exact_in_a_later_block_of_a_file(tmp_path: Path, before: int) -> None:
    """The first byte of a two-byte character that is followed by no second one."""
    path = tmp_path / "bad.txt"
    path.write_bytes(b"a" * before + b"\xc3" + b"b" * 10)
    document = Document(path)
    with pytest.raises(InputOutputError, match=f"byte {before}: 0xc3 "):
        list(decode(Part(document, 0, document.blocks()), "strict"))


def test_bytes_that_are_not_text_are_bytes_to_the_byte_tokenizer() -> None:
    content = bytes(range(256))
    assert joined(ByteTokenizer().encode_part(part_of([content]), "strict")) == list(content)


def test_characters_replace_what_is_wrong_when_asked_to() -> None:
    tokenizer = CharTokenizer.fit(["ab\ufffd"])
    tokens = joined(tokenizer.encode_part(part_of([b"a\xff", b"b\xc3"]), "replace"))
    assert tokenizer.decode(tokens) == "a\ufffdb\ufffd"


# On disk


@given(text=texts)
def test_a_saved_tokenizer_loads_as_the_same(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    directory = tmp_path_factory.mktemp("tokenizer")
    for tokenizer in (ByteTokenizer(), CharTokenizer.fit([text])):
        tokenizer.save(directory)
        loaded = load_tokenizer(directory / TOKENIZER)
        assert type(loaded) is type(tokenizer)
        assert loaded.description() == tokenizer.description()
        assert loaded.encode(text) == tokenizer.encode(text)


def test_different_tokenizers_have_different_descriptions() -> None:
    tokenizers: list[Tokenizer] = [ByteTokenizer(), CharTokenizer("a"), CharTokenizer("ab")]
    descriptions = {json.dumps(tokenizer.description()) for tokenizer in tokenizers}
    assert len(descriptions) == len(tokenizers)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        '{"kind": "words"}',
        '{"kind": "char"}',
        '{"kind": "char", "characters": "ba"}',
        '{"kind": "char", "characters": 3}',
        '{"kind": "char", "characters": ["a", "b"]}',
    ],
)
def test_a_damaged_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / TOKENIZER).write_text(content)
    with pytest.raises(ArtifactError) as caught:
        load_tokenizer(tmp_path / TOKENIZER)
    assert str(tmp_path / TOKENIZER) in str(caught.value)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path / TOKENIZER)
