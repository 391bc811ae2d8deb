"""Subwords: every text decodes to itself, whatever is in it."""

from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from smtkit.artifacts.manifest import Artifact
from smtkit.config import TokenizeConfig
from smtkit.data.corpus import cut_at_boundaries
from smtkit.data.subwords import MODEL_FILE, SPACE, SentencePieceTokenizer
from smtkit.errors import UsageError
from smtkit.progress import Silent
from smtkit.resolve import resolve
from smtkit.stages import tokenize

SOURCE = Path(__file__).parent.parent / "src" / "smtkit"
TEXT = "".join(path.read_text(encoding="utf-8") for path in sorted(SOURCE.glob("*.py")))

texts = st.text() | st.text(alphabet=f" \t\n\0{SPACE}aé\N{PILE OF POO}<>0x")


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def tokenizer(request) -> SentencePieceTokenizer:
    return SentencePieceTokenizer.fit([TEXT.encode()], 400, request.param)


def encoded(tokenizer: SentencePieceTokenizer, text: str) -> list[int]:
    return [int(token) for token in tokenizer.encode(text.encode("utf-8"))]


@given(text=texts)
def test_every_text_decodes_to_itself(tokenizer, text: str) -> None:
    tokens = encoded(tokenizer, text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.unknown is None
    assert tokenizer.byte_lengths()[tokens].sum() == len(text.encode("utf-8"))


@given(text=texts)
def test_pieces_are_the_text_in_a_stream(tokenizer, text: str) -> None:
    assert "".join(tokenizer.pieces(iter(encoded(tokenizer, text)))) == text


def test_subwords_are_shorter_than_bytes(tokenizer) -> None:
    assert len(encoded(tokenizer, TEXT)) < 0.75 * len(TEXT.encode())


def test_segments_encode_as_the_whole(tokenizer) -> None:
    """They are cut at the ends of lines, and no piece reaches across one."""
    segments = list(cut_at_boundaries([TEXT.encode()], 500))
    pieces = [token for segment in segments for token in tokenizer.encode(segment).tolist()]
    assert len(segments) > 10
    assert pieces == encoded(tokenizer, TEXT)


def test_training_is_reproducible() -> None:
    models = [SentencePieceTokenizer.fit([TEXT.encode()], 350, "unigram") for _ in range(2)]
    assert models[0].description() == models[1].description()


def test_a_vocabulary_too_large_for_the_text_is_one_line() -> None:
    with pytest.raises(UsageError) as caught:
        SentencePieceTokenizer.fit([b"so little text\n" * 3], 5000, "unigram")
    assert str(caught.value).startswith("--vocab-size 5000: ")
    assert "\n" not in str(caught.value)


def run(tmp_path: Path, **settings) -> Artifact:
    config = resolve(TokenizeConfig, flags={"tokenizer": "sentencepiece", **settings})
    tokenize.run(config, tmp_path / "tokens", overwrite=True)
    return Artifact.open(tmp_path / "tokens")


def test_the_model_is_fitted_on_train_alone(tmp_path: Path) -> None:
    """The test file repeats one word that train does not have."""
    (tmp_path / "train.py").write_text(TEXT)
    (tmp_path / "test.py").write_text("Zyxgwfq " * 2000)
    artifact = run(
        tmp_path,
        inputs=[str(tmp_path / "train.py")],
        test_inputs=[str(tmp_path / "test.py")],
        vocabulary_size=400,
    )
    model = artifact.verified(MODEL_FILE).read_bytes()
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = {processor.id_to_piece(number) for number in range(processor.vocab_size())}
    assert not any("yxg" in piece for piece in pieces)


def test_an_existing_model_is_taken_and_a_lossy_one_is_told(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"),
        model_prefix=str(tmp_path / "lossy"),
        vocab_size=300,
        minloglevel=2,
    )
    heard: list[str] = []

    class Listener(Silent):
        def warn(self, message: str) -> None:
            heard.append(message)

    config = resolve(
        TokenizeConfig,
        flags={
            "inputs": [str(tmp_path / "text.txt")],
            "tokenizer": "sentencepiece",
            "tokenizer_model": str(tmp_path / "lossy.model"),
        },
    )
    tokenize.run(config, tmp_path / "tokens", progress=Listener())
    artifact = Artifact.open(tmp_path / "tokens")
    assert artifact.verified(MODEL_FILE).read_bytes() == (tmp_path / "lossy.model").read_bytes()
    assert len(heard) == 1
    assert "does not decode every text to itself" in heard[0]


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "no.model").write_bytes(np.arange(50, dtype=np.uint8).tobytes())
    for name in ("no.model", "missing.model"):
        with pytest.raises(UsageError, match=name):
            run(
                tmp_path,
                inputs=[str(tmp_path / "text.txt")],
                tokenizer_model=str(tmp_path / name),
            )
