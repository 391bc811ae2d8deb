"""Evaluation: baselines, drift and likelihoods, each against a slow second way."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import (
    WINDOW,
    Pipeline,
    encoder_config,
    evaluate_config,
    split_tokens,
    tokenized,
    write_text,
)
from smtkit.artifacts.manifest import Artifact
from smtkit.convention import IGNORE
from smtkit.data.ngrams import NgramModel
from smtkit.errors import ArtifactError
from smtkit.metrics import Drift, position_ranges
from smtkit.stages import evaluate, train_encoder
from smtkit.stages.train_encoder import load_teacher
from smtkit.stages.train_rnn import load_rnn

LENGTH = 4 * WINDOW
END_OF_DOCUMENT = 256


# Baselines.

Row = tuple[list[int], list[int]]


class NaiveNgrams:
    """Interpolated Witten-Bell, straight from its definition, on dictionaries."""

    def __init__(self, vocabulary_size: int, order: int, tokens: list[int]) -> None:
        self.vocabulary_size = vocabulary_size
        self.after: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for n in range(1, order + 1):
            for end in range(n, len(tokens) + 1):
                *history, last = tokens[end - n : end]
                self.after[tuple(history)][last] += 1

    def probability(self, token: int, history: tuple[int, ...]) -> float:
        shorter = self.probability(token, history[1:]) if history else 1 / self.vocabulary_size
        seen = self.after.get(history, Counter())
        if not seen:
            return shorter
        return (seen[token] + len(seen) * shorter) / (seen.total() + len(seen))


TOKENS = st.lists(st.integers(0, 4), max_size=60)


def _row(values: Sequence[int], ask: Sequence[bool] = ()) -> tuple[np.ndarray, np.ndarray]:
    """A batch of one row of a text, whose targets are its tokens; all are asked, or those said."""
    targets = np.array(values, dtype=np.int64)[None]
    asked = targets.copy()
    asked[0, : len(ask)] = np.where(ask[: targets.shape[1]], targets[0, : len(ask)], IGNORE)
    return targets[:, :-1], asked


def _rows_of(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return values[:, :-1], values


@given(tokens=TOKENS, asked=st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_ngrams_equal_a_model_of_dictionaries(tokens, asked):
    model = NgramModel.count(5, 3, [_row(tokens)])
    naive = NaiveNgrams(5, 3, tokens)
    for order in (1, 2, 3):
        nll = model.negative_log_likelihood(*_row(asked), order)[0]
        expected = [
            -math.log(naive.probability(token, tuple(asked[max(0, i - order + 1) : i])))
            for i, token in enumerate(asked)
        ]
        assert nll.tolist() == pytest.approx(expected)


@given(tokens=TOKENS, history=st.lists(st.integers(0, 4), max_size=2))
def test_probabilities_of_all_tokens_sum_to_one(tokens, history):
    model = NgramModel.count(5, 3, [_row(tokens)])
    rows = np.array([[*history, token] for token in range(5)])
    for order in (1, 2, 3):
        last = np.exp(-model.negative_log_likelihood(*_rows_of(rows), order)[:, -1])
        assert last.sum() == pytest.approx(1)


@given(tokens=TOKENS, sizes=st.lists(st.integers(0, 9), min_size=1, max_size=20))
def test_blocks_of_any_size_give_the_same_counts(tokens, sizes):
    """Each block is a row; it begins with the two tokens before, which are not asked again."""
    ends = np.minimum(np.cumsum(sizes), len(tokens)).tolist()
    blocks = []
    for start, end in zip([0, *ends], [*ends, len(tokens)], strict=True):
        before = min(start, 2)
        ask = [False] * before + [True] * (end - start)
        blocks.append(_row(tokens[start - before : end], ask))
    whole, piecewise = (NgramModel.count(5, 3, each) for each in ([_row(tokens)], blocks))
    rows = _rows_of(np.array(np.meshgrid(*[range(5)] * 3)).reshape(3, -1).T)
    for order in (1, 2, 3):
        np.testing.assert_array_equal(
            whole.negative_log_likelihood(*rows, order),
            piecewise.negative_log_likelihood(*rows, order),
        )


def test_rows_are_scored_independently():
    model = NgramModel.count(5, 3, [_row((np.arange(50) % 5).tolist())])
    rows = np.array([[0, 1, 2, 3], [4, 4, 1, 0]])
    alone = [model.negative_log_likelihood(*_rows_of(row[None]), 3) for row in rows]

    np.testing.assert_array_equal(
        model.negative_log_likelihood(*_rows_of(rows), 3), np.concatenate(alone)
    )


class NaiveAnswers(NaiveNgrams):
    """The same of rows whose targets are not their tokens: what was asked after which tokens."""

    def __init__(self, vocabulary_size: int, order: int, rows: Sequence[Row]) -> None:
        super().__init__(vocabulary_size, order, [])
        for tokens, targets in rows:
            for i, target in enumerate(targets):
                for n in range(min(order, i + 1)):
                    if target != IGNORE:
                        self.after[tuple(tokens[i - n : i])][target] += 1


@st.composite
def _task_rows(draw) -> list[Row]:
    """Rows of one length, with answers here and there."""
    length, count = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    tokens = st.lists(st.integers(0, 4), min_size=length, max_size=length)
    targets = st.lists(st.integers(IGNORE, 4), min_size=length + 1, max_size=length + 1)
    return draw(st.lists(st.tuples(tokens, targets), min_size=count, max_size=count))


@given(counted=_task_rows(), asked=_task_rows())
def test_ngrams_of_answers_equal_a_model_of_dictionaries(counted, asked):
    counted_batch, asked_batch = (
        (np.array([tokens for tokens, _ in rows]), np.array([targets for _, targets in rows]))
        for rows in (counted, asked)
    )
    model = NgramModel.count(5, 3, [counted_batch])
    naive = NaiveAnswers(5, 3, counted)
    for order in (1, 2, 3):
        nll = model.negative_log_likelihood(*asked_batch, order)
        for row, (tokens, targets) in enumerate(asked):
            for i, target in enumerate(targets):
                if target == IGNORE:
                    assert math.isnan(nll[row, i])
                    continue
                history = tuple(tokens[max(0, i - order + 1) : i])
                expected = -math.log(naive.probability(target, history))
                assert nll[row, i] == pytest.approx(expected)


def test_a_vocabulary_whose_ngrams_cannot_be_numbered_is_refused():
    with pytest.raises(ValueError, match="do not fit"):
        NgramModel(2**21, 3)


# Ranges and drift.


@pytest.mark.parametrize("window", [1, 2, 3, 4, 7, 16, 128])
def test_ranges_part_all_positions_after_the_first(window):
    positions = [
        position
        for _, first, last in position_ranges(window)
        for position in range(first, last + 1)
    ]

    assert positions == list(range(1, 4 * window + 1))


def _naive_drift(rolled: np.ndarray, label: np.ndarray) -> list[float]:
    """(B, T, Z) both."""
    rows, window, _ = label.shape
    mean = np.mean([label[b, i] for b in range(rows) for i in range(window)], axis=0)
    spread = np.mean(
        [((label[b, i] - mean) ** 2).sum() for b in range(rows) for i in range(window)]
    )
    return [
        np.mean([((rolled[b, i] - label[b, i]) ** 2).sum() for b in range(rows)]) / spread
        for i in range(window)
    ]


def test_drift_equals_its_definition():
    torch.manual_seed(0)
    rolled, label = torch.randn(2, 10, 4, 2, 3)
    label += 2
    drift = Drift(4)
    drift.add(rolled[:3], label[:3])
    drift.add(rolled[3:], label[3:])
    expected = _naive_drift(rolled.flatten(2).numpy(), label.flatten(2).numpy())

    assert drift.by_position() == pytest.approx(expected, rel=1e-4)


def test_drift_of_the_teacher_itself_is_zero():
    drift = Drift(4)
    label = torch.randn(5, 4, 2, 3)
    drift.add(label, label)

    assert drift.by_position() == [0, 0, 0, 0]


def test_drift_of_the_mean_memory_is_one():
    torch.manual_seed(0)
    label = torch.randn(50, 4, 2, 3, dtype=torch.float64)
    drift = Drift(4)
    drift.add(label.mean((0, 1)).expand_as(label), label)

    assert np.mean(drift.by_position()) == pytest.approx(1)


# The whole stage.


def _evaluate(pipeline: Pipeline, out: Path, **changes) -> dict:
    tokens = changes.pop("tokens", pipeline.tokens)
    encoder = changes.pop("encoder", pipeline.encoder)
    evaluate.run(evaluate_config(**changes), pipeline.rnn, tokens, out, encoder=encoder)
    return json.loads(Artifact.open(out).file("evaluation.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def evaluation(pipeline, tmp_path_factory) -> dict:
    return _evaluate(pipeline, tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def windows(pipeline) -> list[list[int]]:
    """Whole windows of 4 T tokens and one more, where there is one, of the test split."""
    tokens = split_tokens(pipeline.tokens, "test")
    starts = range(0, len(tokens) - LENGTH + 1, LENGTH)
    return [tokens[start : start + LENGTH + 1] for start in starts]


def _rows(evaluation: dict, predictor: str) -> dict[str, dict]:
    return {row["range"]: row for row in evaluation["results"] if row["predictor"] == predictor}


def _nll(logits: torch.Tensor, target: int) -> float:
    return -float(logits.double().log_softmax(-1)[target])


def _assert_rows(
    evaluation: dict, predictor: str, nll: dict[tuple[int, int], float], *, tolerance=1e-5
) -> None:
    """nll: by (window, position)."""
    rows = _rows(evaluation, predictor)
    for name, first, last in position_ranges(WINDOW):
        values = [value for (_, i), value in nll.items() if first <= i <= last]
        if not values:
            assert name not in rows
            continue
        assert rows[name]["targets"] == len(values)
        assert rows[name]["nll"] == pytest.approx(np.mean(values), rel=tolerance)
        assert rows[name]["bits_per_token"] == pytest.approx(rows[name]["nll"] / math.log(2))
        assert rows[name]["perplexity"] == pytest.approx(math.exp(rows[name]["nll"]))


@torch.no_grad()
def test_free_running_is_a_loop_of_steps(pipeline, evaluation, windows):
    network, _ = load_rnn(Artifact.open(pipeline.rnn))
    nll = {}
    for number, window in enumerate(windows):
        memory = network.empty_memory[None]
        for i, target in enumerate(window):
            nll[number, i] = _nll(network.readout(memory)[0], target)
            memory = network.step(memory, torch.tensor([target]))

    _assert_rows(evaluation, "rnn, free-running", nll)


@torch.no_grad()
def test_teacher_rows_are_its_own_predictions(pipeline, evaluation, windows):
    teacher, _ = load_teacher(Artifact.open(pipeline.encoder))
    nothing = torch.empty(1, 0, dtype=torch.int64)
    decoded, read = {}, {}
    for number, window in enumerate(windows):
        memory = teacher.encoder(torch.tensor([window[:LENGTH]]))[0]
        for i, target in enumerate(window):
            decoded[number, i] = _nll(teacher.decoder(memory[i][None], nothing)[0, 0], target)
            read[number, i] = _nll(teacher.readout(memory[i][None])[0], target)

    _assert_rows(evaluation, "teacher, decoder", decoded)
    _assert_rows(evaluation, "teacher, readout", read)


@torch.no_grad()
def test_one_step_starts_from_the_teachers_memory(pipeline, evaluation, windows):
    teacher, _ = load_teacher(Artifact.open(pipeline.encoder))
    network, _ = load_rnn(Artifact.open(pipeline.rnn))
    nll = {}
    for number, window in enumerate(windows):
        memory = teacher.encoder(torch.tensor([window[:WINDOW]]))[0]
        for i in range(WINDOW):
            after = network.step(memory[i][None], torch.tensor([window[i]]))
            nll[number, i + 1] = _nll(network.readout(after)[0], window[i + 1])

    _assert_rows(evaluation, "rnn, one step", nll)


def test_baselines_are_counted_on_train(pipeline, evaluation, windows):
    train = split_tokens(pipeline.tokens, "train")
    for order, predictor in enumerate(("unigram", "bigram", "trigram"), start=1):
        naive = NaiveNgrams(257, order, train)
        nll = {
            (number, i): -math.log(
                naive.probability(target, tuple(window[max(0, i - order + 1) : i]))
            )
            for number, window in enumerate(windows)
            for i, target in enumerate(window)
        }
        _assert_rows(evaluation, predictor, nll)


@torch.no_grad()
def test_drift_is_measured_on_the_windows(pipeline, evaluation, windows):
    teacher, _ = load_teacher(Artifact.open(pipeline.encoder))
    network, _ = load_rnn(Artifact.open(pipeline.rnn))
    rolled, label = [], []
    for window in windows:
        label.append(teacher.encoder(torch.tensor([window[:WINDOW]]))[0, 1:].flatten(1).numpy())
        memory, rolled_here = network.empty_memory[None], []
        for token in window[:WINDOW]:
            memory = network.step(memory, torch.tensor([token]))
            rolled_here.append(memory.flatten().numpy())
        rolled.append(rolled_here)

    expected = _naive_drift(np.array(rolled), np.array(label))
    assert evaluation["drift"] == pytest.approx(expected, rel=1e-3)


def test_the_standard_error_is_that_of_the_means_of_windows(pipeline, evaluation, windows):
    naive = NaiveNgrams(257, 1, split_tokens(pipeline.tokens, "train"))
    for name, first, last in position_ranges(WINDOW):
        means = [
            np.mean([-math.log(naive.probability(token, ())) for token in window[first : last + 1]])
            for window in windows
        ]
        expected = np.std(means, ddof=1) / math.sqrt(len(means))
        found = _rows(evaluation, "unigram")[name]["nll_standard_error"]
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


def test_bits_per_byte_are_null_where_the_vocabulary_has_an_unknown(character_pipeline, tmp_path):
    evaluation = _evaluate(character_pipeline, tmp_path)

    assert {row["bits_per_byte"] for row in evaluation["results"]} == {None}


def test_the_batch_size_changes_nothing(pipeline, evaluation, tmp_path):
    other = _evaluate(pipeline, tmp_path, batch_size=5)
    for one, two in zip(evaluation["results"], other["results"], strict=True):
        assert one["nll"] == pytest.approx(two["nll"], rel=1e-6)


def test_fewer_windows_are_spread_over_the_split(pipeline, tmp_path):
    evaluation = _evaluate(pipeline, tmp_path, windows=3)

    assert evaluation["windows"] == 3
    assert _rows(evaluation, "unigram")["1..T/2"]["targets"] == 3 * WINDOW // 2


def test_an_rnn_is_evaluated_without_its_teacher(pipeline, evaluation, tmp_path):
    alone = _evaluate(pipeline, tmp_path, encoder=None)
    predictors = {row["predictor"] for row in alone["results"]}

    assert alone["drift"] is None
    assert predictors == {"unigram", "bigram", "trigram", "rnn, free-running"}
    assert _rows(alone, "rnn, free-running") == _rows(evaluation, "rnn, free-running")


def test_a_split_shorter_than_the_window_has_no_drift(pipeline, tmp_path):
    tokens = tokenized(write_text(tmp_path / "text.txt", 20), tmp_path / "tokens")
    assert len(split_tokens(tokens, "test")) < WINDOW
    evaluation = _evaluate(pipeline, tmp_path / "out", tokens=tokens)

    assert evaluation["drift"] is None
    assert _rows(evaluation, "rnn, free-running")


def test_another_encoder_than_the_rnns_is_refused(pipeline, tmp_path):
    other = tmp_path / "encoder"
    train_encoder.run(encoder_config(seed=1, training={"max_steps": 1}), pipeline.tokens, other)

    with pytest.raises(ArtifactError, match="not the encoder that"):
        _evaluate(pipeline, tmp_path / "out", encoder=other)
    assert not (tmp_path / "out").exists()


def test_tokens_of_another_tokenizer_are_refused(pipeline, character_pipeline, tmp_path):
    with pytest.raises(ArtifactError, match="tokenizer"):
        evaluate.run(evaluate_config(), pipeline.rnn, character_pipeline.tokens, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_labels_are_no_rnn(pipeline, tmp_path):
    with pytest.raises(ArtifactError, match="kind is labels, expected rnn"):
        evaluate.run(evaluate_config(), pipeline.labels, pipeline.tokens, tmp_path / "out")
