"""Subwords by sentencepiece, such that decoding is the exact inverse of encoding."""

import io
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Literal

import numpy as np
import sentencepiece
import xxhash

from smtkit.corpus.tokenizers import TextTokenizer, TokenArray
from smtkit.errors import UsageError
from smtkit.storage.run import Run

MODEL_FILE = "tokenizer.model"
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""Sentencepiece's character for a space; in a text, the character is encoded as its bytes."""
_LONGEST_LINE = 4096
_PROBES = ("  a  b ", "\n\tx\n", "e\u0301 \ufb01 \u3000\x00")
_THREADS = 2  # the number of threads changes the model's last digits, so it is fixed

ModelType = Literal["unigram", "bpe"]


class SentencePieceTokenizer(TextTokenizer):
    """A sentencepiece model, and after its pieces one token that ends a document.

    A model with byte fallback and without normalisation is exact: every text decodes to itself. For
    other models `unknown` is set.
    """

    def __init__(self, model: bytes) -> None:
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        size = self._processor.vocab_size()
        self.end_of_document = size
        self.vocabulary_size = size + 1
        self.token_bytes = [self._bytes_of(token) for token in range(size)] + [b""]
        self._space_tokens = self._tokens_of_bytes(SPACE.encode())
        self.is_exact = self._inverts_probes()
        if not self.is_exact:
            self.unknown = int(self._processor.unk_id())

    @classmethod
    def fit(
        cls, segments: Iterable[bytes], vocabulary_size: int, model_type: ModelType
    ) -> "SentencePieceTokenizer":
        """Trains a model with byte fallback on UTF-8 bytes; the same for the same segments.

        Raises UsageError where there is no text but spaces, or the vocabulary is too small or too
        large for the text.
        """
        model, lines = io.BytesIO(), _lines(segments)
        first = next(lines, None)
        if first is None:
            raise UsageError("`tokenizer` sentencepiece: train holds no words to learn from")
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=chain([first], lines),
                model_writer=model,
                vocab_size=vocabulary_size - 1,
                model_type=model_type,
                byte_fallback=True,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True,
                character_coverage=0.9995,
                max_sentence_length=4 * _LONGEST_LINE,
                unk_id=0,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                num_threads=_THREADS,
                minloglevel=2,
            )
        except (RuntimeError, OSError) as error:
            reason = str(error).rpartition("] ")[2].strip() or "training failed"
            raise UsageError(f"`vocabulary_size` {vocabulary_size}: {reason}") from None
        return cls(model.getvalue())

    def encode(self, data: bytes) -> TokenArray:
        texts = data.decode("utf-8", "replace").split(SPACE)
        arrays: list[TokenArray] = self._processor.encode_as_numpy(texts)
        if len(arrays) == 1:
            return arrays[0]
        parts = [arrays[0]]
        for tokens in arrays[1:]:
            parts += [self._space_tokens, tokens]
        return np.concatenate(parts)

    def description(self) -> dict[str, Any]:
        return {"kind": "sentencepiece", "model": xxhash.xxh3_128_hexdigest(self.model)}

    def save(self, run: Run) -> None:
        super().save(run)
        (run.directory / MODEL_FILE).write_bytes(self.model)
        run.add(MODEL_FILE)

    def _bytes_of(self, token: int) -> bytes:
        piece: str = self._processor.id_to_piece(token)
        if self._processor.is_byte(token):
            return bytes([int(piece[3:-1], 16)])
        if self._processor.is_control(token) or self._processor.is_unknown(token):
            return b""
        return piece.replace(SPACE, " ").encode("utf-8")

    def _tokens_of_bytes(self, data: bytes) -> TokenArray:
        tokens = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in data]
        return np.array(tokens, dtype=np.int32)

    def _inverts_probes(self) -> bool:
        has_bytes = all(self._processor.is_byte(int(t)) for t in self._space_tokens)
        return has_bytes and all(
            self.decode(int(token) for token in self.encode(text.encode())) == text
            for text in _PROBES
        )


def _lines(segments: Iterable[bytes]) -> Iterator[str]:
    """Lines for training; long ones in pieces."""
    for data in segments:
        for line in data.decode("utf-8", "replace").replace(SPACE, " ").split("\n"):
            for start in range(0, len(line), _LONGEST_LINE):
                piece = line[start : start + _LONGEST_LINE].replace("\0", "")
                if piece.strip():
                    yield piece
