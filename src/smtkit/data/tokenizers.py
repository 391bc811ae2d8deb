"""Tokenizers: from bytes to token numbers and back."""

import codecs
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smtkit.data.sources import Errors, Part, decode
from smtkit.errors import ArtifactError

TOKENIZER = "tokenizer.json"
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

TokenArray = NDArray[np.integer[Any]]


class Tokenizer(ABC):
    """Encodes documents a block at a time; decodes tokens one by one."""

    vocabulary_size: int
    end_of_document: int
    unknown: int | None = None
    """The token of what the vocabulary lacks, where there is one."""

    @abstractmethod
    def encode_part(self, part: Part, errors: Errors) -> Iterator[TokenArray]:
        """Tokens of a document's bytes, without the end-of-document token.

        Raises InputOutputError that names file and offset where the bytes cannot be decoded.
        """

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""

    @abstractmethod
    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        """Text of a stream of tokens, as soon as it is known."""

    @abstractmethod
    def byte_lengths(self) -> NDArray[np.int64]:
        """(vocabulary,) bytes of text that each token stands for."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """What `tokenizer.json` holds: equal if and only if the tokenizers are."""

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(self.pieces(tokens))

    def save(self, directory: Path) -> None:
        text = json.dumps(self.description(), ensure_ascii=True, sort_keys=True)
        (directory / TOKENIZER).write_text(text + "\n", encoding="utf-8")


class ByteTokenizer(Tokenizer):
    """Every byte is a token; 256 is the end of a document. Any file can be encoded."""

    vocabulary_size = 257
    end_of_document = 256

    def encode_part(self, part: Part, errors: Errors) -> Iterator[TokenArray]:
        for block in part.blocks:
            yield np.frombuffer(block, dtype=np.uint8)

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", "surrogateescape"))

    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in tokens:
            at_end = token == self.end_of_document
            yield decoder.decode(b"" if at_end else bytes([token]), at_end)
        yield decoder.decode(b"", True)

    def byte_lengths(self) -> NDArray[np.int64]:
        lengths = np.ones(self.vocabulary_size, dtype=np.int64)
        lengths[self.end_of_document] = 0
        return lengths

    def description(self) -> dict[str, Any]:
        return {"kind": "byte"}


class CharTokenizer(Tokenizer):
    """Every character of the training split is a token; then come unknown and end of document."""

    def __init__(self, characters: str) -> None:
        if not isinstance(characters, str) or list(characters) != sorted(set(characters)):
            raise ValueError("characters must be distinct and in order of code point")
        self.characters = characters
        self.unknown: int = len(characters)
        self.end_of_document = len(characters) + 1
        self.vocabulary_size = len(characters) + 2
        self._code_points = _code_points(characters)

    @classmethod
    def fit(cls, texts: Iterable[str]) -> "CharTokenizer":
        """The tokenizer of all characters that come in `texts`."""
        seen: NDArray[np.uint32] = np.empty(0, dtype=np.uint32)
        for text in texts:
            seen = np.union1d(seen, _code_points(text))
        return cls("".join(map(chr, seen)))

    def encode_part(self, part: Part, errors: Errors) -> Iterator[TokenArray]:
        for text in decode(part, errors):
            yield self._encode(text)

    def encode(self, text: str) -> list[int]:
        return [int(token) for token in self._encode(text)]

    def pieces(self, tokens: Iterable[int]) -> Iterator[str]:
        for token in tokens:
            if token == self.unknown:
                yield _REPLACEMENT
            elif token != self.end_of_document:
                yield self.characters[token]

    def byte_lengths(self) -> NDArray[np.int64]:
        lengths = [len(character.encode("utf-8")) for character in self.characters]
        return np.array([*lengths, 0, 0], dtype=np.int64)

    def description(self) -> dict[str, Any]:
        return {"kind": "char", "characters": self.characters}

    def _encode(self, text: str) -> TokenArray:
        points = _code_points(text)
        if not self.characters:
            return np.full(len(points), self.unknown, dtype=np.int64)
        places = np.searchsorted(self._code_points, points)
        places = np.minimum(places, len(self.characters) - 1)
        known = self._code_points[places] == points
        return np.where(known, places, self.unknown)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote. Raises ArtifactError."""
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        if description["kind"] == "byte":
            return ByteTokenizer()
        if description["kind"] == "char":
            return CharTokenizer(description["characters"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: not a tokenizer of smtkit: {error}") from None
    raise ArtifactError(f"{path}: kind is {description['kind']}, expected byte or char")


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
