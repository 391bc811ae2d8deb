"""Means by position, distance and length, against loops over targets."""

import math

import numpy as np
import pytest

from conftest import WINDOW, arrow_columns, shards, split_tokens
from evaluations import (
    END_OF_DOCUMENT,
    NaiveNgrams,
    by_passes,
    by_range,
    by_steps,
    evaluated,
)
from smtkit.corpus.stored_tokenizer import load_tokenizer
from smtkit.evaluation.metrics import position_ranges, summarize_overall
from smtkit.storage.artifact import Artifact


@pytest.mark.parametrize("window", [1, 2, 3, 4, 7, 16, 128])
def test_ranges_cover_all_positions_after_the_first_once(window):
    positions = [
        position
        for _, first, last in position_ranges(window)
        for position in range(first, last + 1)
    ]

    assert positions == list(range(1, 4 * window + 1))


def test_ranges_after_the_window_double():
    names = [name for name, _, _ in position_ranges(8, 16)]

    assert names == ["1..T/2", "T/2..T", "T..2T", "2T..4T", "4T..8T", "8T..16T"]
    assert position_ranges(8, 16)[-1][1:] == (65, 128)
    assert position_ranges(8, 9) == position_ranges(8, 16)
    assert position_ranges(8, 1) == [("1..T/2", 1, 4), ("T/2..T", 5, 8)]


def test_standard_errors_are_over_the_means_of_windows(pipeline, evaluation, windows):
    naive = NaiveNgrams(257, 1, split_tokens(pipeline.tokens, "train"))
    for name, first, last in position_ranges(WINDOW):
        means = [
            np.mean([-math.log(naive.probability(token, ())) for token in window[first : last + 1]])
            for window in windows
        ]
        expected = np.std(means, ddof=1) / math.sqrt(len(means))
        found = by_range(evaluation, "unigram")[name]["nll_standard_error"]
        assert found == pytest.approx(expected, rel=1e-6)


def test_bits_per_byte_are_over_the_bytes_of_the_targets(evaluation, windows):
    assert any(END_OF_DOCUMENT in window[1:] for window in windows)
    for row in evaluation["results"]:
        targets = [
            target
            for window in windows
            for i, target in enumerate(window)
            if row["first"] <= i <= row["last"]
        ]
        size = sum(target != END_OF_DOCUMENT for target in targets)
        expected = row["nll"] / math.log(2) * row["targets"] / size
        assert row["bits_per_byte"] == pytest.approx(expected)


def test_bits_per_byte_of_characters_are_over_their_bytes(character_pipeline, tmp_path):
    """Some of which have two bytes; one window, from the beginning of the split."""
    evaluation = evaluated(character_pipeline, tmp_path, windows=1)
    tokens = split_tokens(character_pipeline.tokens, "test")
    tokenizer = load_tokenizer(Artifact.open(character_pipeline.tokens))
    assert not tokenizer.decode(tokens[1 : 4 * evaluation["window"]]).isascii()
    for row in evaluation["results"]:
        targets = tokens[row["first"] : row["last"] + 1]
        size = sum(len(tokenizer.decode([t]).encode()) for t in targets)
        assert row["targets"] == len(targets)
        expected = row["nll"] / math.log(2) * row["targets"] / size
        assert row["bits_per_byte"] == pytest.approx(expected)


def test_bits_per_byte_leave_out_what_is_unknown():
    nll = np.array([[np.nan, 1.0, 2.0, 4.0], [np.nan, 8.0, np.nan, 16.0]])
    sizes = np.array([[3, 1, -1, 2], [1, 0, 5, -1]])
    (record,) = summarize_overall({"rnn": np.stack([nll, nll])}, sizes)
    assert record["bits_per_token"] == pytest.approx((1 + 2 + 4 + 8 + 16) / 5 / math.log(2))
    assert record["bits_per_byte"] == pytest.approx((1 + 4 + 8) / (1 + 2 + 0) / math.log(2))
    (record,) = summarize_overall({"rnn": np.stack([nll, nll])}, np.full((2, 4), -1))
    assert record["bits_per_byte"] is None


def test_overall_covers_all_positions_after_the_first(evaluation, windows):
    for record in evaluation["overall"]:
        rows = by_range(evaluation, record["predictor"]).values()
        targets = sum(row["targets"] for row in rows)
        nll = sum(row["nll"] * row["targets"] for row in rows) / targets
        assert record["targets"] == targets
        assert record["nll"] == pytest.approx(nll)
        assert record["bits_per_token"] == pytest.approx(nll / math.log(2))
        assert record.keys() == next(iter(rows)).keys() - {"range", "first", "last"}
    (bigram,) = (r for r in evaluation["overall"] if r["predictor"] == "bigram")
    assert bigram["targets"] == sum(len(window) - 1 for window in windows)
    size = sum(token != END_OF_DOCUMENT for window in windows for token in window[1:])
    expected = bigram["bits_per_token"] * bigram["targets"] / size
    assert bigram["bits_per_byte"] == pytest.approx(expected)


@pytest.fixture(scope="module")
def answers(task_pipeline) -> list[tuple[int, int, float, bool]]:
    """(length of the row, distance, nll, correct) of every target of the test split."""
    columns = arrow_columns(shards(task_pipeline.tokens, "test"))
    return [
        (len(row), distance[i], nll, correct)
        for row, targets, distance in zip(
            columns["tokens"], columns["targets"], columns["distance"], strict=True
        )
        for i, nll, correct in by_steps(task_pipeline, row, targets)
    ]


DISTANCES = [("0", 0, 0), ("1", 1, 1), ("2", 2, 2), ("3-4", 3, 4), ("5-8", 5, 8), ("9-16", 9, 16)]


def test_means_by_distance(task_evaluation, answers):
    records = [r for r in task_evaluation["by_distance"] if r["predictor"] == "rnn, free-running"]
    expected = {
        name: [(nll, correct) for _, distance, nll, correct in answers if first <= distance <= last]
        for name, first, last in DISTANCES
    }
    assert [r["range"] for r in records] == [name for name, values in expected.items() if values]
    assert sum(r["targets"] for r in records) == len(answers)
    for record in records:
        nll, correct = zip(*expected[record["range"]], strict=True)
        assert record["targets"] == len(nll)
        assert record["nll"] == pytest.approx(np.mean(nll), rel=1e-5)
        assert record["accuracy"] == pytest.approx(np.mean(correct))


@pytest.mark.parametrize(
    ("predictor", "slow"), [("rnn, free-running", by_steps), ("teacher, decoder", by_passes)]
)
def test_means_by_position_by_length_and_over_all_targets(
    task_pipeline, task_evaluation, predictor, slow
):
    columns = arrow_columns(shards(task_pipeline.tokens, "test"))
    answers = [
        (len(row), i, nll, correct)
        for row, targets in zip(columns["tokens"], columns["targets"], strict=True)
        for i, nll, correct in slow(task_pipeline, row, targets)
    ]

    def assert_means(record, here):
        assert record["targets"] == len(here)
        assert record["nll"] == pytest.approx(np.mean([nll for *_, nll, _ in here]), rel=1e-4)
        assert record["accuracy"] == pytest.approx(np.mean([correct for *_, correct in here]))

    found = {
        key: [record for record in task_evaluation[key] if record["predictor"] == predictor]
        for key in ("overall", "results", "by_length")
    }
    (overall,) = found["overall"]
    assert_means(overall, answers)
    assert sum(record["targets"] for record in found["results"]) == len(answers)
    for record in found["results"]:
        first, last = record["first"], record["last"]
        assert_means(record, [answer for answer in answers if first <= answer[1] <= last])
    assert [record["length"] for record in found["by_length"]] == [8, 12]
    for record in found["by_length"]:
        assert_means(record, [answer for answer in answers if answer[0] == record["length"]])


def test_ngrams_have_an_nll_by_distance_and_no_accuracy(task_evaluation):
    records = [r for r in task_evaluation["by_distance"] if r["predictor"] == "bigram"]

    assert records
    assert {r["accuracy"] for r in records} == {None}


def test_text_has_neither_distance_nor_length(evaluation):
    assert evaluation["by_distance"] is None
    assert evaluation["by_length"] is None
