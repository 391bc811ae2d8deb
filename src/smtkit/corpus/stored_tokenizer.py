"""Loads the tokenizer of an artifact, of any kind, and compares those of two artifacts."""

from collections.abc import Callable
from typing import Any

from pydantic_core import from_json

from smtkit.corpus.subwords import MODEL_FILE, SentencePieceTokenizer
from smtkit.corpus.tokenizers import (
    TOKENIZER,
    ByteTokenizer,
    CharTokenizer,
    PixelTokenizer,
    SymbolTokenizer,
    Tokenizer,
)
from smtkit.errors import ArtifactError
from smtkit.storage.artifact import Artifact

KINDS: dict[str, Callable[[dict[str, Any], Artifact], Tokenizer]] = {
    "byte": lambda saved, _: ByteTokenizer(),
    "char": lambda saved, _: CharTokenizer(saved["characters"]),
    "sentencepiece": lambda _, artifact: SentencePieceTokenizer(artifact.read(MODEL_FILE)[1]),
    "pixel": lambda saved, _: PixelTokenizer(saved["levels"], saved["height"], saved["width"]),
    "symbols": lambda saved, _: SymbolTokenizer(saved["symbols"]),
}
"""How to make each kind of tokenizer from its description and the artifact that holds it."""


def load_tokenizer(artifact: Artifact) -> Tokenizer:
    """The tokenizer saved in an artifact. Raises ArtifactError."""
    path, content = artifact.read(TOKENIZER)
    try:
        description = from_json(content)
        if (kind := description["kind"]) not in KINDS:
            raise ValueError(f"kind is {kind}, expected one of {', '.join(KINDS)}")
        return KINDS[kind](description, artifact)
    except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise ArtifactError(f"{path}: not a tokenizer of smtkit: {str(error)[:200]}") from None


def check_tokenizers(one: Artifact, other: Artifact) -> None:
    """Raises ArtifactError where the tokenizers of two artifacts differ."""
    first, second = (load_tokenizer(artifact).description() for artifact in (one, other))
    if first != second:
        raise ArtifactError(
            f"{other.directory}: its tokenizer ({_summary(second)}) is not that of "
            f"{one.directory} ({_summary(first)})",
            "use tokens of the same `smtkit tokenize`",
        )


def check_vocabulary(artifact: Artifact, size: int) -> None:
    """Raises ArtifactError where the network of an artifact has a vocabulary of another `size` than
    its tokenizer."""
    if (found := load_tokenizer(artifact).vocabulary_size) != size:
        raise ArtifactError(
            f"{artifact.directory}: its tokenizer has {found} tokens, its network {size}"
        )


def _summary(description: dict[str, object]) -> str:
    characters = description.get("characters")
    size = f" of {len(characters)} characters" if isinstance(characters, str) else ""
    return f"{description['kind']}{size}"
