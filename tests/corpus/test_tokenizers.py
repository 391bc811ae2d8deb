"""Tokenizers: text to tokens and back, streams of pieces, and tokenizers on disk."""

import contextlib
import json
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtkit.config import EvaluateConfig
from smtkit.corpus.stored_tokenizer import load_tokenizer
from smtkit.corpus.subwords import MODEL_FILE, SentencePieceTokenizer
from smtkit.corpus.tokenizers import (
    TOKENIZER,
    ByteTokenizer,
    CharTokenizer,
    PixelTokenizer,
    SymbolTokenizer,
    TextTokenizer,
    Tokenizer,
)
from smtkit.errors import ArtifactError
from smtkit.storage.artifact import Artifact
from smtkit.storage.run import Run

MIXED = "aé\N{EURO SIGN}\N{PILE OF POO}\n"
"""Characters of one to four bytes."""


texts = st.text() | st.text(alphabet=MIXED)


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


@given(content=st.binary())
def test_wrong_bytes_count_as_replacement_characters(content: bytes) -> None:
    text = content.decode("utf-8", "replace")
    tokenizer = fitted_on(text)
    assert tokenizer.decode(int(token) for token in tokenizer.encode(content)) == text


def test_bytes_that_are_not_text_are_bytes_to_the_byte_tokenizer() -> None:
    content = bytes(range(256))
    assert ByteTokenizer().encode(content).tolist() == list(content)


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
        '{"kind": "char", "characters": "\\ud800"}',
        '{"kind": ["char"]}',
        '{"kind": "pixel", "levels": "2", "height": 2, "width": 2}',
        '{"kind": "pixel", "levels": 2, "height": -2, "width": 2}',
        '{"kind": "pixel", "levels": 2, "height": true, "width": 2}',
        '{"kind": "symbols", "symbols": 3}',
        '{"kind": "symbols", "symbols": ["a", 3]}',
        '{"kind": "byte", "n": ' + "1" * 5000 + "}",
        "[" * 100_000,
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


@pytest.mark.parametrize("model", [b"", b"abc", bytes(1000), b"\x0a\x05hello", b"\x12\x00"])
def test_a_sentencepiece_model_that_is_none_is_named(tmp_path: Path, model: bytes) -> None:
    with Run(tmp_path, "rnn", EvaluateConfig()) as run:
        (run.directory / TOKENIZER).write_text('{"kind": "sentencepiece", "model": "?"}')
        (run.directory / MODEL_FILE).write_bytes(model)
        run.add(TOKENIZER)
        run.add(MODEL_FILE)
        run.commit({})
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: not a tokenizer of smtkit"):
        load_tokenizer(Artifact.open(tmp_path))


def test_a_changed_sentencepiece_model_is_one_or_an_error() -> None:
    draw = Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(1, 6))) for _ in range(2000)]
    good = SentencePieceTokenizer.fit([" ".join(words).encode()], 320, "unigram").model
    for _ in range(200):
        model = bytearray(good)
        for _ in range(draw.choice([1, 2, 8])):
            model[draw.randrange(len(model))] = draw.randrange(256)
        with contextlib.suppress(RuntimeError, ValueError, LookupError):
            SentencePieceTokenizer(bytes(model)).encode(b"abc def")


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with Run(tmp_path, "rnn", EvaluateConfig()) as run:
        run.commit({})
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        load_tokenizer(Artifact.open(tmp_path))
