"""Tokenizers: text to tokens and back, whole or in blocks, and bytes that are not text."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtkit.config import EvaluateConfig, TokenizeConfig
from smtkit.corpus.files import BLOCK_BYTES, Reader
from smtkit.corpus.formats import Document, TextSource
from smtkit.corpus.segments import cut_at_boundaries
from smtkit.corpus.stored_tokenizer import load_tokenizer
from smtkit.corpus.tokenizers import (
    TOKENIZER,
    ByteTokenizer,
    CharTokenizer,
    PixelTokenizer,
    SymbolTokenizer,
    TextTokenizer,
    Tokenizer,
)
from smtkit.errors import ArtifactError, InputOutputError
from smtkit.storage.artifact import Artifact
from smtkit.storage.run import Run

MIXED = "aé\N{EURO SIGN}\N{PILE OF POO}\n"
"""Characters of one to four bytes."""

texts = st.text() | st.text(alphabet=MIXED)
places = st.lists(st.integers(0, 40))


def encoded(tokenizer: TextTokenizer, text: str) -> list[int]:
    return [int(token) for token in tokenizer.encode(text.encode("utf-8"))]


def fitted_on(*texts: str) -> CharTokenizer:
    return CharTokenizer.fit(text.encode("utf-8") for text in texts)


def saved(tokenizer: Tokenizer, directory: Path) -> Artifact:
    """An artifact that holds the tokenizer alone."""
    with Run(directory, "rnn", EvaluateConfig(), overwrite=True) as run:
        tokenizer.save(run)
        run.commit({})
    return Artifact.open(directory)


def cut_at(content: bytes, positions: list[int]) -> list[bytes]:
    """The content in blocks that end at the positions; empty blocks are left out, as in a file."""
    ends = sorted({position for position in positions if 0 < position < len(content)})
    starts = [0, *ends]
    return [content[start:end] for start, end in zip(starts, [*ends, len(content)], strict=True)]


# There and back


@given(text=texts)
def test_bytes_decode_to_what_was_encoded(text: str) -> None:
    tokenizer = ByteTokenizer()
    tokens = encoded(tokenizer, text)
    assert bytes(tokens) == text.encode("utf-8")
    assert tokenizer.decode(tokens) == text


@given(text=texts, more=texts)
def test_characters_decode_to_what_was_encoded(text: str, more: str) -> None:
    tokenizer = fitted_on(more, text)
    tokens = encoded(tokenizer, text)
    assert len(tokens) == len(text)
    assert all(0 <= token < tokenizer.unknown for token in tokens)
    assert tokenizer.decode(tokens) == text


@given(text=texts, fitted=texts)
def test_a_character_that_was_not_seen_is_unknown(text: str, fitted: str) -> None:
    tokenizer = fitted_on(fitted)
    expected = [sorted(set(fitted)).index(c) if c in fitted else tokenizer.unknown for c in text]
    assert encoded(tokenizer, text) == expected
    assert tokenizer.decode(expected) == "".join(c if c in fitted else "\ufffd" for c in text)


@given(fitted=st.lists(texts))
def test_the_vocabulary_is_every_character_once(fitted: list[str]) -> None:
    tokenizer = fitted_on(*fitted)
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
    for tokenizer in (ByteTokenizer(), fitted_on(text)):
        lengths = tokenizer.byte_lengths()
        assert len(lengths) == tokenizer.vocabulary_size
        assert lengths[tokenizer.end_of_document] == 0
        assert lengths[encoded(tokenizer, text)].sum() == len(text.encode("utf-8"))


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


# Segments


@given(content=st.binary(), positions=places, size=st.integers(4, 20))
def test_segments_of_any_blocks_are_the_whole(
    content: bytes, positions: list[int], size: int
) -> None:
    segments = list(cut_at_boundaries(cut_at(content, positions), size))
    assert b"".join(segments) == content
    assert all(0 < len(segment) <= size for segment in segments)
    assert segments == list(cut_at_boundaries([content], size))


@given(text=texts, size=st.integers(4, 20))
def test_segments_encode_as_the_whole(text: str, size: int) -> None:
    """No character is torn, so each segment can be encoded alone."""
    for tokenizer in (ByteTokenizer(), fitted_on(text)):
        pieces = [tokenizer.encode(s) for s in cut_at_boundaries([text.encode("utf-8")], size)]
        assert [int(t) for piece in pieces for t in piece] == encoded(tokenizer, text)


@given(content=st.binary())
def test_wrong_bytes_count_as_replacement_characters(content: bytes) -> None:
    text = content.decode("utf-8", "replace")
    tokenizer = fitted_on(text)
    assert tokenizer.decode(int(token) for token in tokenizer.encode(content)) == text


def test_bytes_that_are_not_text_are_bytes_to_the_byte_tokenizer() -> None:
    content = bytes(range(256))
    assert ByteTokenizer().encode(content).tolist() == list(content)


# Bytes that are not UTF-8


def source_of(path: Path) -> TextSource:
    settings = TokenizeConfig(inputs=[str(path)], tokenizer="char")
    return TextSource(path, settings, "text", Reader(100), str(path))


@given(content=st.binary(min_size=1), positions=places)
def test_the_first_wrong_byte_is_named_however_it_is_cut(
    content: bytes, positions: list[int]
) -> None:
    document = Document("folder/some.txt", lambda: iter(cut_at(content, positions)))
    source = source_of(Path("folder/some.txt"))
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        with pytest.raises(InputOutputError) as caught:
            source.check(document)
        wrong = error.start
        expected = f"folder/some.txt: byte {wrong}: 0x{content[wrong]:02x} is not UTF-8"
        assert str(caught.value) == expected
    else:
        source.check(document)


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
    (document,) = source_of(path).documents()
    with pytest.raises(InputOutputError) as caught:
        source_of(path).check(document)
    assert str(caught.value).startswith(f"{path}: byte {wrong}: 0x{content[wrong]:02x} ")
    assert caught.value.hint is not None
    assert "`errors` replace" in caught.value.hint


@pytest.mark.parametrize("before", [BLOCK_BYTES - 1, BLOCK_BYTES, 2 * BLOCK_BYTES + 7])
def test_the_offset_is_exact_in_a_later_block_of_a_file(tmp_path: Path, before: int) -> None:
    """The first byte of a two-byte character that is followed by no second one."""
    path = tmp_path / "bad.txt"
    path.write_bytes(b"a" * before + b"\xc3" + b"b" * 10)
    (document,) = source_of(path).documents()
    with pytest.raises(InputOutputError, match=f"byte {before}: 0xc3 "):
        source_of(path).check(document)


# On disk


@given(text=texts)
def test_a_saved_tokenizer_loads_as_the_same(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    directory = tmp_path_factory.mktemp("tokenizer")
    for tokenizer in (ByteTokenizer(), fitted_on(text)):
        loaded = load_tokenizer(saved(tokenizer, directory))
        assert isinstance(loaded, TextTokenizer)
        assert type(loaded) is type(tokenizer)
        assert loaded.description() == tokenizer.description()
        assert encoded(loaded, text) == encoded(tokenizer, text)


def test_different_tokenizers_have_different_descriptions() -> None:
    tokenizers: list[Tokenizer] = [
        ByteTokenizer(),
        CharTokenizer("a"),
        CharTokenizer("ab"),
        PixelTokenizer(16, 8, 8),
        PixelTokenizer(16, 4, 16),
        SymbolTokenizer(["a", "b"]),
    ]
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
    with Run(tmp_path, "rnn", EvaluateConfig()) as run:
        (run.directory / TOKENIZER).write_text(content)
        run.add(TOKENIZER)
        run.commit({})
    artifact = Artifact.open(tmp_path)
    with pytest.raises(ArtifactError) as caught:
        load_tokenizer(artifact)
    assert str(artifact.file(TOKENIZER)) in str(caught.value)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with Run(tmp_path, "rnn", EvaluateConfig()) as run:
        run.commit({})
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        load_tokenizer(Artifact.open(tmp_path))
