"""The tokenize stage with a sentencepiece model, trained or given, and the stages after it."""

import bisect
import calendar
import configparser
import csv
import heapq
import io
import math
import shlex
import statistics
import subprocess
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from conftest import (
    Pipeline,
    Recorder,
    build_pipeline,
    encoder_config,
    evaluate_config,
    rnn_config,
    split_tokens,
)
from smtkit.config import ExtractLabelsConfig, GenerateConfig, TokenizeConfig, resolve
from smtkit.corpus.stored_tokenizer import load_tokenizer
from smtkit.corpus.subwords import MODEL_FILE, ModelType, SentencePieceTokenizer
from smtkit.corpus.text_corpus import TextCorpus
from smtkit.errors import ArtifactError, UsageError
from smtkit.stages import evaluate, extract_labels, generate, tokenize
from smtkit.storage.artifact import Artifact
from subprocesses import smtkit

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What sentencepiece writes for a space; here also a character of the text."""


VOCABULARY = 600


TEXTS = [
    Path(module.__file__).read_bytes()
    for module in (bisect, calendar, configparser, csv, heapq, shlex, statistics, textwrap)
]
"""Real text that does not change with our own."""


both = pytest.mark.parametrize("model_type", ["unigram", "bpe"])


@pytest.fixture(scope="session")
def trained() -> dict[str, SentencePieceTokenizer]:
    """A tokenizer of each type, trained on the texts."""
    types: tuple[ModelType, ...] = ("unigram", "bpe")
    return {each: SentencePieceTokenizer.fit(TEXTS, VOCABULARY, each) for each in types}


def processor_of(model: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def model_of(artifact: Artifact) -> bytes:
    return artifact.file(MODEL_FILE).read_bytes()


def pieces_of(model: bytes) -> list[str]:
    processor = processor_of(model)
    return [processor.id_to_piece(token) for token in range(processor.vocab_size())]


def line_of(result: subprocess.CompletedProcess[str]) -> str:
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line.removeprefix("smtkit: ")


def run(out: Path, *inputs: Path, progress: Recorder | None = None, **options: Any) -> Artifact:
    flags = {
        "inputs": list(map(str, inputs)),
        "tokenizer": "sentencepiece",
        "vocabulary_size": None if "tokenizer_model" in options else 400,
        "workers": 1,
        **options,
    }
    tokenize.run(resolve(TokenizeConfig, flags=flags), out, progress=progress)
    return Artifact.open(out, "tokens")


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our own sources, as a directory of many files."""
    directory = tmp_path_factory.mktemp("sources")
    for number, text in enumerate(TEXTS):
        (directory / f"{number}.py").write_bytes(text)
    return directory


@both
def test_tokens_decode_to_the_files(sources: Path, tmp_path: Path, model_type: str) -> None:
    artifact = run(tmp_path / "out", sources, model_type=model_type)
    artifact.verify()
    tokenizer = load_tokenizer(artifact)
    assert tokenizer.vocabulary_size == artifact.manifest.statistics["vocabulary_size"] == 400
    found = set()
    for split in ("train", "validation", "test"):
        tokens = split_tokens(tmp_path / "out", split)
        ends = [n for n, token in enumerate(tokens) if token == tokenizer.end_of_document]
        starts = [0, *(end + 1 for end in ends)]
        documents = [tokens[start:end] for start, end in zip(starts, ends, strict=False)]
        decoded = [tokenizer.decode(document).encode() for document in documents]
        found |= set(decoded)
        counts = artifact.manifest.statistics["splits"][split]
        assert counts["documents"] == len(decoded)
        assert counts["tokens"] == len(tokens)
        assert counts["bytes"] == sum(map(len, decoded))
        assert counts["bytes_per_token"] == pytest.approx(sum(map(len, decoded)) / len(tokens))
        assert counts["unknown_tokens"] == 0
    assert found == {text for text in TEXTS if text}


def test_training_draws_its_text_by_the_seed(sources: Path, tmp_path: Path) -> None:
    sampled = {"training_bytes": 60_000}
    models = [
        model_of(run(tmp_path / str(n), sources, seed=seed, **sampled))
        for n, seed in enumerate([1, 1, 2])
    ]
    assert models[0] == models[1]
    assert models[0] != models[2]


@pytest.mark.parametrize("seed", range(5))
def test_a_part_of_one_file_is_drawn_for_every_seed(tmp_path: Path, seed: int) -> None:
    """The file is smaller than a segment, and the part is about a tenth of it."""
    (tmp_path / "one.txt").write_bytes(b"".join(TEXTS))
    config = TokenizeConfig(
        inputs=[str(tmp_path / "one.txt")],
        tokenizer="sentencepiece",
        vocabulary_size=400,
        training_bytes=20_000,
        seed=seed,
    )
    corpus = TextCorpus(config, lambda task, done, total: None)
    corpus.assign_splits(tmp_path)
    drawn = list(corpus._sample())
    whole = b"".join(TEXTS)
    train = whole[: round(len(whole) * 0.9)]
    assert all(piece in train for piece in drawn)
    assert 4_000 < sum(map(len, drawn)) < 60_000
    assert corpus.tokenizer.vocabulary_size == 400


def test_the_smallest_part_is_one_piece(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_bytes(b"".join(TEXTS))
    options = {"training_bytes": 1, "model_type": "bpe"}
    model = model_of(run(tmp_path / "out", tmp_path / "one.txt", **options))
    assert processor_of(model).vocab_size() == 399


def test_a_train_split_without_words_is_not_blamed_on_the_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text(" \n" * 1000)
    with pytest.raises(UsageError, match=r"`tokenizer` sentencepiece: .* holds no words"):
        run(tmp_path / "out", tmp_path / "blank.txt")


def test_a_model_is_trained_on_train_alone(tmp_path: Path) -> None:
    """The last tenth of one long text is the test split, and it has a word of its own."""
    words = ["memory of what was read", "slots and cells", "a window of text"]
    common = "".join(f"{words[n % 3]} {words[n * 7 % 3]}\n" for n in range(400))
    own = "quixotic zephyr " * (len(common) // 16 // 9 - 1)
    (tmp_path / "text.txt").write_text(common + own)
    options = {"vocabulary_size": 300, "model_type": "bpe", "validation_fraction": 0}
    held_out = pieces_of(
        model_of(run(tmp_path / "1", tmp_path / "text.txt", test_fraction=0.1, **options))
    )
    seen = pieces_of(
        model_of(run(tmp_path / "2", tmp_path / "text.txt", test_fraction=0, **options))
    )
    assert any("q" in piece for piece in seen)
    assert not any("q" in piece or "z" in piece for piece in held_out)
    assert any("mem" in piece for piece in held_out)


def test_a_model_is_not_trained_on_a_given_test(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("memory of what was read\n" * 100)
    (tmp_path / "test.txt").write_text("quixotic zephyr\n" * 100)
    artifact = run(
        tmp_path / "out",
        tmp_path / "train.txt",
        test_inputs=[str(tmp_path / "test.txt")],
        vocabulary_size=300,
        model_type="bpe",
    )
    assert not any("q" in piece for piece in pieces_of(model_of(artifact)))
    tokenizer = load_tokenizer(artifact)
    decoded = tokenizer.decode(split_tokens(tmp_path / "out", "test"))
    assert decoded == "quixotic zephyr\n" * 100


@both
def test_a_vocabulary_that_is_too_large_is_one_line(tmp_path: Path, model_type: str) -> None:
    (tmp_path / "text.txt").write_text("a few words and no more\n" * 20)
    flags = ["--tokenizer", "sentencepiece", "--vocab-size", 5000, "--model-type", model_type, "-q"]
    result = smtkit("tokenize", tmp_path / "text.txt", "--out", tmp_path / "out", *flags)
    assert result.returncode == 2
    assert line_of(result).startswith("--vocab-size 5000: Vocabulary size too high")
    assert not (tmp_path / "out").exists()


def model_from_elsewhere(lines: Iterable[str], **options: Any) -> bytes:
    """A model that sentencepiece trains by its own defaults, but for `options`."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, minloglevel=2, num_threads=1, **options
    )
    return model.getvalue()


LINES = [line for text in TEXTS[:6] for line in text.decode().splitlines() if line.strip()]


def test_an_exact_model_is_taken_as_it_is(
    trained: dict[str, SentencePieceTokenizer], sources: Path, tmp_path: Path
) -> None:
    path = tmp_path / "exact.model"
    path.write_bytes(trained["bpe"].model)
    recorder = Recorder()
    artifact = run(tmp_path / "out", sources, tokenizer_model=str(path), progress=recorder)
    assert recorder.warnings == []
    assert model_of(artifact) == path.read_bytes()
    assert load_tokenizer(artifact).description() == trained["bpe"].description()
    assert artifact.manifest.statistics["vocabulary_size"] == VOCABULARY


@pytest.mark.parametrize(
    "options",
    [
        {"vocab_size": 200, "character_coverage": 1.0},
        {"vocab_size": 500, "byte_fallback": True},
        {
            "vocab_size": 500,
            "byte_fallback": True,
            "normalization_rule_name": "nfkc",
            "add_dummy_prefix": False,
            "remove_extra_whitespaces": False,
        },
        {
            "vocab_size": 200,
            "normalization_rule_name": "identity",
            "add_dummy_prefix": False,
            "remove_extra_whitespaces": False,
        },
    ],
    ids=["defaults", "dummy prefix", "normalises", "no byte fallback"],
)
def test_a_model_that_is_not_exact_is_warned_of(
    sources: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    path = tmp_path / "other.model"
    path.write_bytes(model_from_elsewhere(LINES, **options))
    recorder = Recorder()
    artifact = run(tmp_path / "out", sources, tokenizer_model=str(path), progress=recorder)
    (warning,) = recorder.warnings
    assert str(path) in warning
    tokenizer = load_tokenizer(artifact)
    assert tokenizer.unknown == processor_of(path.read_bytes()).unk_id()


def test_what_an_inexact_model_lacks_is_unknown(tmp_path: Path) -> None:
    """As of the char tokenizer: it is counted, shown as U+FFFD, and stands for no bytes."""
    model = model_from_elsewhere(LINES, vocab_size=200, add_dummy_prefix=False)
    (tmp_path / "other.model").write_bytes(model)
    (tmp_path / "text.txt").write_text("return \N{SNOWMAN}return", encoding="utf-8")
    artifact = run(
        tmp_path / "out",
        tmp_path / "text.txt",
        tokenizer_model=str(tmp_path / "other.model"),
        validation_fraction=0,
        test_fraction=0,
    )
    tokenizer = load_tokenizer(artifact)
    counts = artifact.manifest.statistics["splits"]["train"]
    assert counts["unknown_tokens"] == 1
    assert tokenizer.unknown is not None
    assert tokenizer.decode(split_tokens(tmp_path / "out", "train")) == "return \ufffdreturn"
    assert tokenizer.byte_lengths()[tokenizer.unknown] == 0
    assert counts["bytes"] == len("return return")


@pytest.mark.parametrize("content", [None, b"", b"no model\n" * 50, "directory"], ids=str)
def test_a_file_that_is_no_model_is_one_line(tmp_path: Path, content: bytes | str | None) -> None:
    (tmp_path / "text.txt").write_text("some text")
    path = tmp_path / "some.model"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        path.mkdir()
    flags = ["--tokenizer", "sentencepiece", "--tokenizer-model", path, "-q"]
    result = smtkit("tokenize", tmp_path / "text.txt", "--out", tmp_path / "out", *flags)
    assert result.returncode == 2
    assert line_of(result).startswith(f"--tokenizer-model {path}: ")
    assert not (tmp_path / "out").exists()


def test_resume_notices_another_model_in_the_same_place(
    trained: dict[str, SentencePieceTokenizer], sources: Path, tmp_path: Path
) -> None:
    path = tmp_path / "some.model"
    flags = {"inputs": [str(sources)], "tokenizer": "sentencepiece", "tokenizer_model": str(path)}
    config = resolve(TokenizeConfig, flags=flags)
    path.write_bytes(trained["bpe"].model)
    first = tokenize.run(config, tmp_path / "out")
    assert tokenize.run(config, tmp_path / "out", resume=True) == first
    path.write_bytes(trained["unigram"].model)
    with pytest.raises(UsageError, match="cannot resume"):
        tokenize.run(config, tmp_path / "out", resume=True)


@pytest.fixture(scope="session")
def subword_pipeline(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    directory = tmp_path_factory.mktemp("subwords")
    run(directory / "tokens", sources, training_bytes=50_000)
    return build_pipeline(
        directory,
        directory / "tokens",
        encoder_config(training={"max_steps": 2}),
        ExtractLabelsConfig(max_windows=20, max_validation_windows=10),
        rnn_config(training={"max_steps": 2}),
    )


def test_the_model_goes_with_every_artifact(subword_pipeline: Pipeline) -> None:
    tokens = Artifact.open(subword_pipeline.tokens)
    for directory in (subword_pipeline.encoder, subword_pipeline.labels, subword_pipeline.rnn):
        artifact = Artifact.open(directory)
        artifact.verify()
        assert model_of(artifact) == model_of(tokens), directory
        assert load_tokenizer(artifact).description() == load_tokenizer(tokens).description()


def test_bits_per_byte_are_over_the_bytes_of_the_targets(
    subword_pipeline: Pipeline, tmp_path: Path
) -> None:
    """One window, from the beginning of the split."""
    config = evaluate_config(windows=1, split="validation")
    result = evaluate.run(config, subword_pipeline.rnn, subword_pipeline.tokens, tmp_path / "out")
    tokenizer = load_tokenizer(Artifact.open(subword_pipeline.tokens))
    window = split_tokens(subword_pipeline.tokens, "validation")[:65]
    assert len(window) == 65
    for row in result.statistics["results"]:
        targets = window[row["first"] : row["last"] + 1]
        assert row["targets"] == len(targets)
        size = sum(len(tokenizer.decode([token]).encode()) for token in targets)
        assert row["bits_per_byte"] == pytest.approx(row["nll"] / math.log(2) * len(targets) / size)


def test_text_is_generated_in_subwords(subword_pipeline: Pipeline) -> None:
    config = GenerateConfig(prompt="def é", seed=0, max_tokens=50)
    first, again = ("".join(generate.run(config, subword_pipeline.rnn)) for _ in range(2))
    assert first == again
    assert first


def test_tokens_of_another_model_are_refused(
    subword_pipeline: Pipeline, sources: Path, tmp_path: Path
) -> None:
    run(tmp_path / "tokens", sources, training_bytes=50_000, seed=1)
    with pytest.raises(ArtifactError, match="its tokenizer"):
        extract_labels.run(
            ExtractLabelsConfig(), subword_pipeline.encoder, tmp_path / "tokens", tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()
