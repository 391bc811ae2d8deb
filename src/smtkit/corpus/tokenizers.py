"""Tokenizers: from text, pixels and symbols to token numbers, and back."""

import codecs
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smtkit.storage.run import Run

TOKENIZER = "tokenizer.json"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

TokenArray = NDArray[np.integer[Any]]


class Tokenizer(ABC):
    """Maps the token numbers of an artifact to what they stand for."""

    vocabulary_size: int

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """The content of `tokenizer.json`: equal if and only if the tokenizers are."""

    @abstractmethod
    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        """Text of a stream of tokens, each piece as soon as its tokens are complete."""

    def decode(self, tokens: Iterable[int]) -> str:
        return "".join(self.pieces(tokens))

    def save(self, run: Run) -> None:
        """Writes the tokenizer to the artifact that `run` makes."""
        text = json.dumps(self.description(), ensure_ascii=True, sort_keys=True)
        (run.directory / TOKENIZER).write_text(text + "\n", encoding="utf-8")
        run.add(TOKENIZER)


class TextTokenizer(Tokenizer):
    """Encodes and decodes text."""

    end_of_document: int
    unknown: int | None = None
    """Token of characters that the vocabulary lacks; None where all text can be encoded."""
    is_exact: bool = True
    """Whether text decodes to itself, apart from unknown characters."""
    token_bytes: Sequence[bytes]
    """The text that each token stands for, in UTF-8; a token may be a part of a character."""

    @abstractmethod
    def encode(self, data: bytes) -> TokenArray:
        """Tokens of UTF-8 bytes, without the end-of-document token. Bytes that are not UTF-8 count
        as U+FFFD, unless every byte is a token. May be called from many threads."""

    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in tokens:
            lost = token == self.unknown
            yield decoder.decode(self.token_bytes[token], lost or token == self.end_of_document)
            if lost:
                yield REPLACEMENT
        yield decoder.decode(b"", True)

    def byte_lengths(self) -> NDArray[np.int64]:
        """(vocabulary,) bytes of text that each token stands for."""
        return np.array([len(text) for text in self.token_bytes], dtype=np.int64)


class ByteTokenizer(TextTokenizer):
    """Every byte is a token; 256 ends a document. Any file can be encoded."""

    vocabulary_size = 257
    end_of_document = 256
    token_bytes = (*(bytes([byte]) for byte in range(256)), b"")

    def encode(self, data: bytes) -> TokenArray:
        return np.frombuffer(data, dtype=np.uint8)

    def description(self) -> dict[str, Any]:
        return {"kind": "byte"}


class CharTokenizer(TextTokenizer):
    """Every character of train is a token; two more are unknown and the end of a document."""

    def __init__(self, characters: str) -> None:
        if not isinstance(characters, str) or list(characters) != sorted(set(characters)):
            raise ValueError("characters must be distinct and in order of code point")
        self.characters = characters
        self.unknown: int = len(characters)
        self.end_of_document = len(characters) + 1
        self.vocabulary_size = len(characters) + 2
        self.token_bytes = [*(character.encode() for character in characters), b"", b""]
        points = _code_points(characters)
        # One entry more than the highest code point: all higher ones are looked up there.
        self._tokens = np.full(int(points.max(initial=0)) + 2, self.unknown, dtype=np.int32)
        self._tokens[points] = np.arange(len(points))

    @classmethod
    def fit(cls, segments: Iterable[bytes]) -> "CharTokenizer":
        """The tokenizer of all characters that occur in `segments` of UTF-8 bytes."""
        seen = np.zeros(0x110000, dtype=bool)
        for data in segments:
            seen[_code_points(data.decode("utf-8", "replace"))] = True
        return cls("".join(map(chr, np.flatnonzero(seen))))

    def encode(self, data: bytes) -> TokenArray:
        points = _code_points(data.decode("utf-8", "replace"))
        return self._tokens[np.minimum(points, len(self._tokens) - 1)]

    def description(self) -> dict[str, Any]:
        return {"kind": "char", "characters": self.characters}


class PixelTokenizer(Tokenizer):
    """Every grey level is a token; a row is an image, line by line from its top left corner."""

    def __init__(self, levels: int, height: int, width: int) -> None:
        if not all(type(size) is int and 0 < size < 2**31 for size in (levels, height, width)):
            raise ValueError("levels, height and width must be positive integers")
        self.vocabulary_size = self.levels = levels
        self.height, self.width = height, width

    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        return (f"{token} " for token in tokens)

    def description(self) -> dict[str, Any]:
        return {
            "kind": "pixel",
            "levels": self.levels,
            "height": self.height,
            "width": self.width,
            "order": "raster",
        }


class SymbolTokenizer(Tokenizer):
    """Every symbol of a synthetic task is a token."""

    def __init__(self, symbols: Sequence[str]) -> None:
        self.symbols = list(symbols)
        if not all(isinstance(symbol, str) for symbol in self.symbols):
            raise ValueError("symbols must be text")
        self.vocabulary_size = len(self.symbols)

    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        return (f"{self.symbols[token]} " for token in tokens)

    def description(self) -> dict[str, Any]:
        return {"kind": "symbols", "symbols": self.symbols}


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
