"""`smtkit eval`: what it reads, what it refuses, and what its result holds."""

import pytest
from pydantic import ValidationError

from conftest import (
    WINDOW,
    Command,
    encoder_config,
    evaluate_config,
    split_tokens,
    tokenized,
    write_text,
)
from evaluations import by_range, evaluated
from smtkit.config import TrainRnnConfig
from smtkit.errors import ArtifactError, UsageError
from smtkit.evaluation import inference_cost
from smtkit.stages import evaluate, train_encoder, train_rnn
from smtkit.storage.artifact import Artifact


def test_fewer_windows_are_spread_over_the_split(pipeline, tmp_path):
    evaluation = evaluated(pipeline, tmp_path, windows=3)

    assert evaluation["windows"] == 3
    assert by_range(evaluation, "unigram")["1..T/2"]["targets"] == 3 * WINDOW // 2


def test_an_rnn_is_evaluated_without_its_teacher(pipeline, evaluation, tmp_path):
    alone = evaluated(pipeline, tmp_path, encoder=None)
    predictors = {row["predictor"] for row in alone["results"]}

    assert alone["drift"] is None
    assert predictors == {"unigram", "bigram", "trigram", "rnn, free-running"}
    assert by_range(alone, "rnn, free-running") == by_range(evaluation, "rnn, free-running")


def test_drift_is_shown_over_both_variances(pipeline, command: Command, tmp_path):
    arguments = ["--tokens", pipeline.tokens, "--encoder", pipeline.encoder, "--out", tmp_path]
    lines = command("eval", pipeline.rnn, *arguments).stdout.splitlines()
    statistics = Artifact.open(tmp_path).manifest.statistics
    first = next(n for n, line in enumerate(lines) if "drift of the free-running memory" in line)
    for line, key in zip(lines[first:], ("drift", "drift_between_sequences"), strict=False):
        shown = ", ".join(f"{statistics[key][i - 1]:.3f} at {i}" for i in (1, 4, 8, 16))
        assert line.endswith(f": {shown}")


def test_a_split_shorter_than_the_window_has_no_drift(pipeline, tmp_path):
    tokens = tokenized(write_text(tmp_path / "text.txt", 20), tmp_path / "tokens")
    assert len(split_tokens(tokens, "test")) < WINDOW
    evaluation = evaluated(pipeline, tmp_path / "out", tokens=tokens)

    assert evaluation["drift"] is None
    assert by_range(evaluation, "rnn, free-running")


def test_more_lengths_than_the_split_has_are_refused(pipeline, tmp_path):
    tokens = len(split_tokens(pipeline.tokens, "test"))
    config = evaluate_config(lengths=4000)
    with pytest.raises(UsageError) as caught:
        evaluate.run(config, pipeline.rnn, pipeline.tokens, tmp_path / "out")
    found = f"windows of {4000 * WINDOW:,} tokens, but the test split has {tokens:,}"
    assert str(caught.value) == f"`lengths` 4000: {found}"
    assert not (tmp_path / "out").exists()


def test_a_window_longer_than_the_train_split_is_refused(pipeline, tmp_path):
    tokens = len(split_tokens(pipeline.tokens, "train"))
    for window in (tokens + 1, 2**20):
        data = {"window": window}
        with pytest.raises(UsageError, match=rf"^data\.window = {window}: .*{tokens:,}$"):
            train_encoder.run(encoder_config(data=data), pipeline.tokens, tmp_path / "encoder")
        config = TrainRnnConfig(method="bptt", data=data, training={"max_steps": 1})
        with pytest.raises(UsageError, match=rf"^data\.window = {window}: .*{tokens:,}$"):
            train_rnn.run(config, pipeline.tokens, tmp_path / "rnn")
    with pytest.raises(ValidationError, match="less than or equal to 1048576"):
        encoder_config(data={"window": 10**7})


def test_another_encoder_than_the_rnns_is_refused(pipeline, tmp_path):
    other = tmp_path / "encoder"
    train_encoder.run(encoder_config(seed=1, training={"max_steps": 1}), pipeline.tokens, other)

    with pytest.raises(ArtifactError, match="not the encoder that"):
        evaluated(pipeline, tmp_path / "out", encoder=other)
    assert not (tmp_path / "out").exists()


def test_tokens_of_another_tokenizer_are_refused(pipeline, character_pipeline, tmp_path):
    with pytest.raises(ArtifactError, match="tokenizer"):
        evaluate.run(evaluate_config(), pipeline.rnn, character_pipeline.tokens, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_labels_in_place_of_an_rnn_are_refused(pipeline, tmp_path):
    with pytest.raises(ArtifactError, match="kind is labels, expected rnn"):
        evaluate.run(evaluate_config(), pipeline.labels, pipeline.tokens, tmp_path / "out")


def test_gradients_and_cost_are_null_by_default(evaluation):
    assert evaluation["gradients"] is None
    assert evaluation["cost"] is None


def test_the_command_shows_a_table_of_everything(
    command: Command, task_pipeline, tmp_path, monkeypatch
):
    monkeypatch.setattr(inference_cost, "TOKENS", (10, 20))
    arguments = ["eval", task_pipeline.rnn, "--tokens", task_pipeline.tokens, "--out", tmp_path]
    flags = ["--encoder", task_pipeline.encoder, "--gradients", "--cost", "--lengths", 2]
    result = command(*arguments, *flags)

    assert result.code == 0
    for title in ("accuracy by distance", "accuracy by length", "memory of teacher", "better"):
        assert title in result.stdout
    assert "decoder" in result.stdout
    assert "milliseconds and MiB" in result.stdout
    assert Artifact.open(tmp_path).manifest.config["lengths"] == 2
