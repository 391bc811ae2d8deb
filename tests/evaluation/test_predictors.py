"""Scores of the RNN and its teacher, against one step and one pass at a time."""

import math

import numpy as np
import pytest
import torch

from conftest import WINDOW, arrow_columns, shards, split_tokens
from evaluations import (
    LENGTH,
    assert_ranges,
    by_range,
    by_steps,
    evaluated,
    nll_of,
    rows_of_recency,
)
from smtkit import IGNORE
from smtkit.evaluation import free_running, predictors, subject
from smtkit.evaluation.metrics import position_ranges
from smtkit.networks.loading import load_rnn, load_teacher
from smtkit.networks.transition import Transition
from smtkit.storage.artifact import Artifact


@torch.no_grad()
def test_free_running_is_a_loop_of_steps(pipeline, evaluation, windows):
    network = load_rnn(Artifact.open(pipeline.rnn))
    nll = {}
    for number, window in enumerate(windows):
        memory = network.empty_memory[None]
        for i, target in enumerate(window):
            nll[number, i] = nll_of(network.readout(memory)[0], target)
            memory = network.step(memory, torch.tensor([target]))

    assert_ranges(evaluation, "rnn, free-running", nll)


@torch.no_grad()
def test_the_teacher_predicts_from_its_own_memories(pipeline, evaluation, windows):
    teacher = load_teacher(Artifact.open(pipeline.encoder))
    nothing = torch.empty(1, 0, dtype=torch.int64)
    decoded, read = {}, {}
    for number, window in enumerate(windows):
        memory = teacher.encoder(torch.tensor([window[:LENGTH]]))[0]
        for i, target in enumerate(window):
            decoded[number, i] = nll_of(teacher.decoder(memory[i][None], nothing)[0, 0], target)
            read[number, i] = nll_of(teacher.readout(memory[i][None])[0], target)

    assert_ranges(evaluation, "teacher, decoder", decoded)
    assert_ranges(evaluation, "teacher, readout", read)


@torch.no_grad()
def test_one_step_starts_from_the_teachers_memory(pipeline, evaluation, windows):
    teacher = load_teacher(Artifact.open(pipeline.encoder))
    network = load_rnn(Artifact.open(pipeline.rnn))
    nll = {}
    for number, window in enumerate(windows):
        memory = teacher.encoder(torch.tensor([window[:WINDOW]]))[0]
        for i in range(WINDOW):
            after = network.step(memory[i][None], torch.tensor([window[i]]))
            nll[number, i + 1] = nll_of(network.readout(after)[0], window[i + 1])

    assert_ranges(evaluation, "rnn, one step", nll)


def test_the_batch_size_changes_nothing(pipeline, evaluation, tmp_path):
    other = evaluated(pipeline, tmp_path, batch_size=5)
    for one, two in zip(evaluation["results"], other["results"], strict=True):
        assert one["nll"] == pytest.approx(two["nll"], rel=1e-6)


def test_windows_of_sixteen_times_the_trained_length(pipeline, tmp_path):
    evaluation = evaluated(pipeline, tmp_path, lengths=16)
    tokens = split_tokens(pipeline.tokens, "test")
    length = 16 * WINDOW
    values: dict[str, list[float]] = {}
    for start in range(0, len(tokens) - length + 1, length):
        window = tokens[start : start + length + 1]
        for i, nll, _ in by_steps(pipeline, window[:length], window):
            for name, first, last in position_ranges(WINDOW, 16):
                if first <= i <= last:
                    values.setdefault(name, []).append(nll)
    rows = by_range(evaluation, "rnn, free-running")

    assert list(rows) == list(values)
    assert list(rows)[-1] == "8T..16T"
    for name, row in rows.items():
        assert row["targets"] == len(values[name])
        assert row["nll"] == pytest.approx(np.mean(values[name]), rel=1e-4)
    assert set(by_range(evaluation, "teacher, decoder")) == set(rows)
    assert set(by_range(evaluation, "rnn, one step")) == {"1..T/2", "T/2..T"}


def test_the_number_of_positions_held_at_once_changes_nothing(
    pipeline, evaluation, tmp_path, monkeypatch
):
    monkeypatch.setattr(free_running, "POSITIONS", 5)
    monkeypatch.setattr(subject, "_MEMORY_BYTES", 4 * 2 * 16 * 3 * (LENGTH + 1))
    other = evaluated(pipeline, tmp_path)

    assert other["drift"] == pytest.approx(evaluation["drift"], rel=1e-5)
    for one, two in zip(evaluation["results"], other["results"], strict=True):
        assert one["nll"] == pytest.approx(two["nll"], rel=1e-6)


@pytest.mark.parametrize(
    ("with_teacher", "bytes_of_a_memory"),
    [(True, 4 * 2 * 16), (False, 4 * 2 * 8)],  # the encoder is wider than a slot
)
def test_memories_held_at_once_are_bounded_in_bytes(
    pipeline, tmp_path, monkeypatch, with_teacher, bytes_of_a_memory
):
    counts, score = [], predictors.Predictors.score
    limit = 3 * bytes_of_a_memory * (LENGTH + 1)

    def counted(self, windows, first):
        counts.append(len(windows.tokens))
        return score(self, windows, first)

    monkeypatch.setattr(predictors.Predictors, "score", counted)
    changes = {} if with_teacher else {"encoder": None}
    for held, expected in ((limit, 3), (limit - 1, 2), (1, 1), (10**9, 7)):
        monkeypatch.setattr(subject, "_MEMORY_BYTES", held)
        counts.clear()
        evaluated(pipeline, tmp_path / str(held), windows=7, batch_size=7, **changes)
        assert max(counts) == expected
        assert sum(counts) == 7


def test_padding_is_not_computed(pipeline, evaluation, tmp_path, monkeypatch):
    """A split shorter than one window, which `eval` refuses, is read to its end, and no further."""
    monkeypatch.setattr("smtkit.stages.evaluate.check_fit", lambda *_: None)
    rolled, rollout = [], Transition.rollout

    def counted(self, memory, tokens):
        rolled.append(tokens.shape[1])
        return rollout(self, memory, tokens)

    monkeypatch.setattr(Transition, "rollout", counted)
    tokens = split_tokens(pipeline.tokens, "test")
    longer = 2 * (len(tokens) // WINDOW + 1)
    padded = evaluated(pipeline, tmp_path, lengths=longer)

    assert sum(rolled) == len(tokens)
    assert (
        list(by_range(padded, "unigram"))[-1]
        == position_ranges(WINDOW, math.ceil(len(tokens) / WINDOW))[-1][0]
    )
    steps = by_steps(pipeline, tokens, tokens)
    for row in by_range(padded, "rnn, free-running").values():
        here = [nll for i, nll, _ in steps if row["first"] <= i <= row["last"]]
        assert row["targets"] == len(here)
        assert row["nll"] == pytest.approx(np.mean(here), rel=1e-4)


def test_padding_of_rows_changes_nothing(task_pipeline, task_evaluation, tmp_path, monkeypatch):
    """Rows of two lengths, evaluated one by one without padding."""
    alone = evaluated(task_pipeline, tmp_path, batch_size=1)

    for key in ("overall", "results", "by_distance", "by_length"):
        for one, two in zip(alone[key], task_evaluation[key], strict=True):
            assert one.keys() == two.keys()
            assert one["predictor"] == two["predictor"]
            assert one["targets"] == two["targets"]
            assert one["nll"] == pytest.approx(two["nll"], rel=1e-5)
            assert one["accuracy"] == two["accuracy"]


@torch.no_grad()
def test_rows_longer_than_the_trained_window_are_read_whole(task_pipeline, tmp_path):
    longer = rows_of_recency(tmp_path / "tokens", [60])
    evaluation = evaluated(task_pipeline, tmp_path / "out", tokens=longer)
    columns = arrow_columns(shards(longer, "test"))
    steps = [
        found
        for row, targets in zip(columns["tokens"], columns["targets"], strict=True)
        for found in by_steps(task_pipeline, row, targets)
    ]
    teacher = load_teacher(Artifact.open(task_pipeline.encoder))
    decoded: dict[int, list[float]] = {}
    for row, targets in zip(columns["tokens"], columns["targets"], strict=True):
        memory = teacher.encoder(torch.tensor([row]))[0]
        logits = teacher.decoder(memory, torch.empty(61, 0, dtype=torch.int64))[:, 0]
        for i, target in enumerate(targets):
            if target != IGNORE:
                decoded.setdefault(i, []).append(nll_of(logits[i], target))

    assert evaluation["window"] == 12
    assert len(evaluation["drift"]) == 12
    assert evaluation["by_length"] is None
    rows = by_range(evaluation, "rnn, free-running")
    assert list(rows) == ["1..T/2", "T/2..T", "T..2T", "2T..4T", "4T..8T"]
    for row in rows.values():
        here = [nll for i, nll, _ in steps if row["first"] <= i <= row["last"]]
        assert row["targets"] == len(here)
        assert row["nll"] == pytest.approx(np.mean(here), rel=1e-4)
    for row in by_range(evaluation, "teacher, decoder").values():
        here = [nll for i in range(row["first"], row["last"] + 1) for nll in decoded.get(i, [])]
        assert row["nll"] == pytest.approx(np.mean(here), rel=1e-4)


def test_rows_shorter_than_the_trained_window_are_evaluated(task_pipeline, tmp_path):
    shorter = rows_of_recency(tmp_path / "tokens", [5])
    evaluation = evaluated(task_pipeline, tmp_path / "out", tokens=shorter)

    assert evaluation["drift"] is None
    assert list(by_range(evaluation, "rnn, one step")) == ["1..T/2"]
