"""Subwords: text to tokens and back, segments, and training."""

import bisect
import calendar
import configparser
import csv
import heapq
import shlex
import statistics
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from smtkit.corpus.segments import cut_at_boundaries
from smtkit.corpus.subwords import ModelType, SentencePieceTokenizer
from smtkit.errors import UsageError

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What sentencepiece writes for a space; here also a character of the text."""


VOCABULARY = 600


TEXTS = [
    Path(module.__file__).read_bytes()
    for module in (bisect, calendar, configparser, csv, heapq, shlex, statistics, textwrap)
]
"""Real text that does not change with our own."""


@pytest.fixture(scope="session")
def trained() -> dict[str, SentencePieceTokenizer]:
    """A tokenizer of each type, trained on the texts."""
    types: tuple[ModelType, ...] = ("unigram", "bpe")
    return {each: SentencePieceTokenizer.fit(TEXTS, VOCABULARY, each) for each in types}


@pytest.fixture(params=["unigram", "bpe"])
def tokenizer(
    request: pytest.FixtureRequest, trained: dict[str, SentencePieceTokenizer]
) -> SentencePieceTokenizer:
    return trained[request.param]


def processor_of(model: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def pieces_of(model: bytes) -> list[str]:
    processor = processor_of(model)
    return [processor.id_to_piece(token) for token in range(processor.vocab_size())]


def encoded(tokenizer: SentencePieceTokenizer, text: str) -> list[int]:
    return [int(token) for token in tokenizer.encode(text.encode("utf-8"))]


PARTS = [" ", "  ", "   ", "\t", "\n", "\r\n", "\0", SPACE, "é", "東", "\N{PILE OF POO}", "e\u0301"]


WORDS = ["def", "self", "return", "the", "tokens", "memory", "(self)", "    return", ":\n"]


texts = st.text() | st.lists(st.sampled_from(PARTS + WORDS)).map("".join)


both = pytest.mark.parametrize("model_type", ["unigram", "bpe"])


@both
@given(text=texts)
def test_any_text_decodes_to_itself(
    trained: dict[str, SentencePieceTokenizer], model_type: str, text: str
) -> None:
    tokenizer = trained[model_type]
    tokens = encoded(tokenizer, text)
    assert all(0 <= token < tokenizer.end_of_document for token in tokens)
    assert tokenizer.decode(tokens) == text


AWKWARD = ["", " ", "   ", " a", "a ", "  a  b  ", "\n", "\t\n \t", "\0", "a\0b", "<0x41>", "<unk>"]


AWKWARD += [
    SPACE,
    f" {SPACE} a",
    f"{SPACE}{SPACE}",
    "\ufffd",
    "\ufeff",
    "\U0010ffff",
    "\u3000",
    "ﬁ",
]


@pytest.mark.parametrize("text", AWKWARD)
def test_characters_that_tokenizers_trip_over(tokenizer: SentencePieceTokenizer, text: str) -> None:
    assert tokenizer.decode(encoded(tokenizer, text)) == text


@both
@given(text=texts)
def test_tokens_are_those_of_sentencepiece(
    trained: dict[str, SentencePieceTokenizer], model_type: str, text: str
) -> None:
    """Where the text has no character that sentencepiece cannot tell from a space."""
    text = text.replace(SPACE, "")
    tokenizer = trained[model_type]
    assert encoded(tokenizer, text) == processor_of(tokenizer.model).encode(text)


@both
@given(text=texts)
def test_byte_lengths_add_up_to_the_bytes_of_the_text(
    trained: dict[str, SentencePieceTokenizer], model_type: str, text: str
) -> None:
    tokenizer = trained[model_type]
    lengths = tokenizer.byte_lengths()
    assert len(lengths) == tokenizer.vocabulary_size
    assert lengths[tokenizer.end_of_document] == 0
    assert sum(lengths[token] for token in encoded(tokenizer, text)) == len(text.encode())


@both
@given(text=texts)
def test_a_piece_comes_as_soon_as_its_characters_are_whole(
    trained: dict[str, SentencePieceTokenizer], model_type: str, text: str
) -> None:
    tokenizer = trained[model_type]
    tokens = encoded(tokenizer, text)
    lengths = tokenizer.byte_lengths()
    content, shown, read = text.encode("utf-8"), "", 0
    pieces = tokenizer.pieces(iter(tokens))
    for token in tokens:
        shown += next(pieces)
        read += int(lengths[token])
        assert shown == content[:read].decode("utf-8", "ignore")
    assert "".join(pieces) == ""
    assert shown == text


def test_the_end_of_a_document_is_not_text(tokenizer: SentencePieceTokenizer) -> None:
    end = tokenizer.end_of_document
    assert end == tokenizer.vocabulary_size - 1
    assert tokenizer.decode([*encoded(tokenizer, "hi "), end, *encoded(tokenizer, "ho")]) == "hi ho"
    first, second = tokenizer._tokens_of_bytes("é".encode()).tolist()
    assert tokenizer.decode([first, end, second]) == "\ufffd\ufffd"
    assert tokenizer.decode([first, second]) == "é"


def test_bytes_that_are_not_utf8_count_as_replaced(tokenizer: SentencePieceTokenizer) -> None:
    tokens = tokenizer.encode(b"a\xffb\xc3").tolist()
    assert tokenizer.decode(tokens) == "a\ufffdb\ufffd"


def test_many_threads_encode_as_one(tokenizer: SentencePieceTokenizer) -> None:
    alone = [tokenizer.encode(data).tolist() for data in TEXTS]
    with ThreadPoolExecutor(4) as pool:
        together = [tokens.tolist() for tokens in pool.map(tokenizer.encode, TEXTS)]
    assert together == alone


def encoded_in_segments(tokenizer: SentencePieceTokenizer, content: bytes, size: int) -> list[int]:
    arrays = [tokenizer.encode(segment) for segment in cut_at_boundaries([content], size)]
    return [int(token) for tokens in arrays for token in tokens]


word = st.sampled_from(["a", "def", "return", "tokens", "é", "東京", "memory", f"x{SPACE}y", "(x)"])


@both
@given(lines=st.lists(st.lists(word, max_size=5).map(" ".join)), size=st.integers(60, 100))
def test_lines_in_segments_encode_as_the_whole(
    trained: dict[str, SentencePieceTokenizer], model_type: str, lines: list[str], size: int
) -> None:
    content = "\n".join(lines).encode()
    tokenizer = trained[model_type]
    assert encoded_in_segments(tokenizer, content, size) == tokenizer.encode(content).tolist()


@both
@given(words=st.lists(word, min_size=10), size=st.integers(12, 40))
def test_one_long_line_in_segments_encodes_as_the_whole(
    trained: dict[str, SentencePieceTokenizer], model_type: str, words: list[str], size: int
) -> None:
    content = " ".join(words).encode()
    tokenizer = trained[model_type]
    assert encoded_in_segments(tokenizer, content, size) == tokenizer.encode(content).tolist()


@both
@given(words=st.lists(st.tuples(word, st.integers(1, 4)), min_size=10), size=st.integers(20, 40))
def test_runs_of_spaces_in_segments_encode_as_the_whole(
    trained: dict[str, SentencePieceTokenizer],
    model_type: str,
    words: list[tuple[str, int]],
    size: int,
) -> None:
    """No run is cut, though the model has pieces of several spaces."""
    content = "".join(text + " " * spaces for text, spaces in words).encode()
    tokenizer = trained[model_type]
    assert encoded_in_segments(tokenizer, content, size) == tokenizer.encode(content).tolist()


@both
def test_sources_in_segments_encode_as_the_whole(
    trained: dict[str, SentencePieceTokenizer], model_type: str
) -> None:
    """As likely as the whole, that is: between equals rounding decides, and it depends on all that
    comes before."""
    tokenizer = trained[model_type]
    score = processor_of(tokenizer.model).get_score
    for content in TEXTS:
        segmented = encoded_in_segments(tokenizer, content, 500)
        whole = tokenizer.encode(content).tolist()
        assert tokenizer.decode(segmented) == content.decode()
        if model_type == "bpe":
            assert segmented == whole
        assert sum(map(score, segmented)) == pytest.approx(sum(map(score, whole)), rel=1e-6)


@both
def test_training_is_reproducible(
    trained: dict[str, SentencePieceTokenizer], model_type: ModelType
) -> None:
    again = SentencePieceTokenizer.fit(iter(TEXTS), VOCABULARY, model_type)
    assert again.model == trained[model_type].model
    assert again.vocabulary_size == VOCABULARY
    assert again.unknown is None


def test_the_types_differ(trained: dict[str, SentencePieceTokenizer]) -> None:
    unigram, bpe = trained["unigram"], trained["bpe"]
    assert unigram.description() != bpe.description()
    content = b"".join(TEXTS)
    assert len(unigram.encode(content)) < len(content) / 1.5
    assert len(bpe.encode(content)) < len(content) / 1.5


@pytest.mark.parametrize("segments", [[], [b""], [b" \n\n  "], [b"\0\n"]])
def test_a_text_without_words_trains_nothing(segments: list[bytes]) -> None:
    with pytest.raises(UsageError):
        SentencePieceTokenizer.fit(segments, 300, "unigram")
