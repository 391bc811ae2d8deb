"""Evaluation: baselines, drift and likelihoods, each against a slow second way."""

import json
import math
import sys
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
    Command,
    Pipeline,
    Recorder,
    arrow_columns,
    build_pipeline,
    encoder_config,
    evaluate_config,
    rnn_config,
    shards,
    split_tokens,
    tokenized,
    write_text,
)
from smtkit import IGNORE
from smtkit.config import EncoderConfig, ExtractLabelsConfig, SynthesizeConfig, TrainRnnConfig
from smtkit.corpus.windows import Windows
from smtkit.errors import ArtifactError
from smtkit.evaluation import gradients, inference_cost, predictors
from smtkit.evaluation.metrics import Drift, position_ranges
from smtkit.evaluation.ngrams import NgramModel
from smtkit.methods.losses import memory_health
from smtkit.networks.loading import load_rnn, load_teacher
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.stages import evaluate, synthesize, train_encoder, train_rnn
from smtkit.storage.manifest import Artifact

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


def test_ranges_go_on_by_doubling():
    names = [name for name, _, _ in position_ranges(8, 16)]

    assert names == ["1..T/2", "T/2..T", "T..2T", "2T..4T", "4T..8T", "8T..16T"]
    assert position_ranges(8, 16)[-1][1:] == (65, 128)
    assert position_ranges(8, 9) == position_ranges(8, 16)
    assert position_ranges(8, 1) == [("1..T/2", 1, 4), ("T/2..T", 5, 8)]


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


def test_drift_of_pieces_of_a_window_is_that_of_the_whole():
    torch.manual_seed(0)
    rolled, label = torch.randn(2, 5, 7, 2, 3)
    whole, pieces = Drift(7), Drift(7)
    whole.add(rolled, label)
    for first, last in ((1, 3), (4, 4), (5, 7)):
        pieces.add(rolled[:, first - 1 : last], label[:, first - 1 : last], first)

    assert pieces.by_position() == pytest.approx(whole.by_position())


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


# Further than trained, and what rows say of themselves.


@torch.no_grad()
def _by_steps(pipeline: Pipeline, row: Sequence[int], targets: Sequence[int]) -> list[tuple]:
    """(position, nll, right) of the free-running RNN at every target that is asked."""
    network, _ = load_rnn(Artifact.open(pipeline.rnn))
    memory, found = network.empty_memory[None], []
    for i, target in enumerate(targets):
        logits = network.readout(memory)[0]
        if target != IGNORE:
            found.append((i, _nll(logits, target), int(logits.argmax()) == target))
        if i < len(row):
            memory = network.step(memory, torch.tensor([row[i]]))
    return found


def test_windows_of_sixteen_times_the_trained_length(pipeline, tmp_path):
    evaluation = _evaluate(pipeline, tmp_path, lengths=16)
    tokens = split_tokens(pipeline.tokens, "test")
    length = 16 * WINDOW
    values: dict[str, list[float]] = {}
    for start in range(0, len(tokens) - length + 1, length):
        window = tokens[start : start + length + 1]
        for i, nll, _ in _by_steps(pipeline, window[:length], window):
            for name, first, last in position_ranges(WINDOW, 16):
                if first <= i <= last:
                    values.setdefault(name, []).append(nll)
    rows = _rows(evaluation, "rnn, free-running")

    assert list(rows) == list(values)
    assert list(rows)[-1] == "8T..16T"
    for name, row in rows.items():
        assert row["targets"] == len(values[name])
        assert row["nll"] == pytest.approx(np.mean(values[name]), rel=1e-4)
    assert set(_rows(evaluation, "teacher, decoder")) == set(rows)
    assert set(_rows(evaluation, "rnn, one step")) == {"1..T/2", "T/2..T"}


def test_how_many_positions_are_held_at_once_changes_nothing(
    pipeline, evaluation, tmp_path, monkeypatch
):
    monkeypatch.setattr(predictors, "_POSITIONS", 5)
    monkeypatch.setattr(evaluate, "_HELD_BYTES", 4 * 2 * 16 * 3 * (LENGTH + 1))
    other = _evaluate(pipeline, tmp_path)

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
        monkeypatch.setattr(evaluate, "_HELD_BYTES", held)
        counts.clear()
        _evaluate(pipeline, tmp_path / str(held), windows=7, batch_size=7, **changes)
        assert max(counts) == expected
        assert sum(counts) == 7


def test_padding_is_not_computed(pipeline, evaluation, tmp_path, monkeypatch):
    """A split shorter than the windows asked for is read to its end, and no further."""
    rolled, rollout = [], RecurrentNetwork.rollout

    def counted(self, tokens, memory=None):
        rolled.append(tokens.shape[1])
        return rollout(self, tokens, memory)

    monkeypatch.setattr(RecurrentNetwork, "rollout", counted)
    tokens = split_tokens(pipeline.tokens, "test")
    longer = 2 * (len(tokens) // WINDOW + 1)
    padded = _evaluate(pipeline, tmp_path, lengths=longer)

    assert sum(rolled) == len(tokens)
    assert (
        list(_rows(padded, "unigram"))[-1]
        == position_ranges(WINDOW, math.ceil(len(tokens) / WINDOW))[-1][0]
    )
    steps = _by_steps(pipeline, tokens, tokens)
    for row in _rows(padded, "rnn, free-running").values():
        here = [nll for i, nll, _ in steps if row["first"] <= i <= row["last"]]
        assert row["targets"] == len(here)
        assert row["nll"] == pytest.approx(np.mean(here), rel=1e-4)


def test_padding_of_rows_changes_nothing(task_pipeline, task_evaluation, tmp_path, monkeypatch):
    """Rows of two lengths, one at a time, each without padding."""
    alone = _evaluate(task_pipeline, tmp_path, batch_size=1)

    for key in ("overall", "results", "by_distance", "by_length"):
        for one, two in zip(alone[key], task_evaluation[key], strict=True):
            assert one.keys() == two.keys()
            assert one["predictor"] == two["predictor"]
            assert one["targets"] == two["targets"]
            assert one["nll"] == pytest.approx(two["nll"], rel=1e-5)
            assert one["accuracy"] == two["accuracy"]


def _rows_of_recency(out: Path, lengths: list[int], train: int = 60) -> Path:
    config = SynthesizeConfig(
        task="recency",
        lengths=lengths,
        sequences=train,
        validation_sequences=20,
        test_sequences=20,
        vocabulary=6,
    )
    synthesize.run(config, out)
    return out


@pytest.fixture(scope="module")
def task_pipeline(tmp_path_factory) -> Pipeline:
    """Of rows of two lengths."""
    directory = tmp_path_factory.mktemp("task")
    return build_pipeline(
        directory,
        _rows_of_recency(directory / "tokens", [8, 12]),
        encoder_config(data={"window": None}, objective={"future_length": "rest"}),
        ExtractLabelsConfig(dtype="float32"),
        rnn_config(data={"positions": 4}),
    )


@pytest.fixture(scope="module")
def task_evaluation(task_pipeline, tmp_path_factory) -> dict:
    return _evaluate(task_pipeline, tmp_path_factory.mktemp("task-evaluation"))


@pytest.fixture(scope="module")
def answers(task_pipeline) -> list[tuple[int, int, float, bool]]:
    """(length of the row, distance, nll, right) of every answer of the test split."""
    columns = arrow_columns(shards(task_pipeline.tokens, "test"))
    return [
        (len(row), distance[i], nll, right)
        for row, targets, distance in zip(
            columns["tokens"], columns["targets"], columns["distance"], strict=True
        )
        for i, nll, right in _by_steps(task_pipeline, row, targets)
    ]


DISTANCES = [("0", 0, 0), ("1", 1, 1), ("2", 2, 2), ("3-4", 3, 4), ("5-8", 5, 8), ("9-16", 9, 16)]


def test_answers_are_counted_by_distance(task_evaluation, answers):
    records = [r for r in task_evaluation["by_distance"] if r["predictor"] == "rnn, free-running"]
    expected = {
        name: [(nll, right) for _, distance, nll, right in answers if first <= distance <= last]
        for name, first, last in DISTANCES
    }
    assert [r["range"] for r in records] == [name for name, values in expected.items() if values]
    assert sum(r["targets"] for r in records) == len(answers)
    for record in records:
        nll, right = zip(*expected[record["range"]], strict=True)
        assert record["targets"] == len(nll)
        assert record["nll"] == pytest.approx(np.mean(nll), rel=1e-5)
        assert record["accuracy"] == pytest.approx(np.mean(right))


@torch.no_grad()
def _by_passes(pipeline: Pipeline, row: Sequence[int], targets: Sequence[int]) -> list[tuple]:
    """As `_by_steps`, of the teacher's decoder, each from a pass over what was read before."""
    teacher, _ = load_teacher(Artifact.open(pipeline.encoder))
    nothing, found = torch.empty(1, 0, dtype=torch.int64), []
    for i, target in enumerate(targets):
        if target != IGNORE:
            memory = teacher.encoder(torch.tensor([row[:i]]))[:, -1]
            logits = teacher.decoder(memory, nothing)[0, 0]
            found.append((i, _nll(logits, target), int(logits.argmax()) == target))
    return found


@pytest.mark.parametrize(
    ("predictor", "slow"), [("rnn, free-running", _by_steps), ("teacher, decoder", _by_passes)]
)
def test_answers_are_counted_by_position_and_length_and_overall(
    task_pipeline, task_evaluation, predictor, slow
):
    columns = arrow_columns(shards(task_pipeline.tokens, "test"))
    answers = [
        (len(row), i, nll, right)
        for row, targets in zip(columns["tokens"], columns["targets"], strict=True)
        for i, nll, right in slow(task_pipeline, row, targets)
    ]

    def assert_told(record, here):
        assert record["targets"] == len(here)
        assert record["nll"] == pytest.approx(np.mean([nll for *_, nll, _ in here]), rel=1e-4)
        assert record["accuracy"] == pytest.approx(np.mean([right for *_, right in here]))

    told = {
        key: [record for record in task_evaluation[key] if record["predictor"] == predictor]
        for key in ("overall", "results", "by_length")
    }
    (overall,) = told["overall"]
    assert_told(overall, answers)
    assert sum(record["targets"] for record in told["results"]) == len(answers)
    for record in told["results"]:
        first, last = record["first"], record["last"]
        assert_told(record, [answer for answer in answers if first <= answer[1] <= last])
    assert [record["length"] for record in told["by_length"]] == [8, 12]
    for record in told["by_length"]:
        assert_told(record, [answer for answer in answers if answer[0] == record["length"]])


def test_overall_is_of_all_positions_after_the_first(evaluation, windows):
    for record in evaluation["overall"]:
        rows = _rows(evaluation, record["predictor"]).values()
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


def test_ngrams_have_an_nll_by_distance_and_no_accuracy(task_evaluation):
    records = [r for r in task_evaluation["by_distance"] if r["predictor"] == "bigram"]

    assert records
    assert {r["accuracy"] for r in records} == {None}


def test_text_has_neither_distance_nor_length(evaluation):
    assert evaluation["by_distance"] is None
    assert evaluation["by_length"] is None


@torch.no_grad()
def test_rows_longer_than_trained_are_read_whole(task_pipeline, tmp_path):
    longer = _rows_of_recency(tmp_path / "tokens", [60])
    evaluation = _evaluate(task_pipeline, tmp_path / "out", tokens=longer)
    columns = arrow_columns(shards(longer, "test"))
    steps = [
        found
        for row, targets in zip(columns["tokens"], columns["targets"], strict=True)
        for found in _by_steps(task_pipeline, row, targets)
    ]
    teacher, _ = load_teacher(Artifact.open(task_pipeline.encoder))
    decoded: dict[int, list[float]] = {}
    for row, targets in zip(columns["tokens"], columns["targets"], strict=True):
        memory = teacher.encoder(torch.tensor([row]))[0]
        logits = teacher.decoder(memory, torch.empty(61, 0, dtype=torch.int64))[:, 0]
        for i, target in enumerate(targets):
            if target != IGNORE:
                decoded.setdefault(i, []).append(_nll(logits[i], target))

    assert evaluation["window"] == 12
    assert len(evaluation["drift"]) == 12
    assert evaluation["by_length"] is None
    rows = _rows(evaluation, "rnn, free-running")
    assert list(rows) == ["1..T/2", "T/2..T", "T..2T", "2T..4T", "4T..8T"]
    for row in rows.values():
        here = [nll for i, nll, _ in steps if row["first"] <= i <= row["last"]]
        assert row["targets"] == len(here)
        assert row["nll"] == pytest.approx(np.mean(here), rel=1e-4)
    for row in _rows(evaluation, "teacher, decoder").values():
        here = [nll for i in range(row["first"], row["last"] + 1) for nll in decoded.get(i, [])]
        assert row["nll"] == pytest.approx(np.mean(here), rel=1e-4)


def test_rows_shorter_than_trained_are_evaluated(task_pipeline, tmp_path):
    shorter = _rows_of_recency(tmp_path / "tokens", [5])
    evaluation = _evaluate(task_pipeline, tmp_path / "out", tokens=shorter)

    assert evaluation["drift"] is None
    assert list(_rows(evaluation, "rnn, one step")) == ["1..T/2"]


# Memories.


@torch.no_grad()
def test_memory_health_is_that_of_all_memories_where_they_are_few(pipeline, evaluation, windows):
    network, _ = load_rnn(Artifact.open(pipeline.rnn))
    teacher, _ = load_teacher(Artifact.open(pipeline.encoder))
    read = torch.tensor([window[:WINDOW] for window in windows])
    assert len(windows) * WINDOW < 4096
    expected = {
        "teacher": memory_health(teacher.encoder(read)[:, 1:].flatten(0, 1)),
        "rnn, free-running": memory_health(network.rollout(read)[:, 1:].flatten(0, 1)),
    }

    assert evaluation["memory"].keys() == expected.keys()
    for name, health in expected.items():
        assert evaluation["memory"][name] == pytest.approx(health, rel=1e-3)


def test_memory_health_is_of_a_sample_where_they_are_many(pipeline, tmp_path, monkeypatch):
    sizes = []

    def health(memory):
        sizes.append(len(memory))
        return {"variance": 1.0}

    monkeypatch.setattr(predictors, "_HEALTH_MEMORIES", 11)
    monkeypatch.setattr(predictors, "memory_health", health)
    evaluation = _evaluate(pipeline, tmp_path)

    assert sizes == [11, 11]
    assert evaluation["memory"]["teacher"] == {"variance": 1.0}


@torch.no_grad()
def test_padding_and_what_is_drawn_twice_are_no_memories(task_pipeline, tmp_path, monkeypatch):
    """Of rows of two lengths, few enough: every memory that a row has, once."""
    found = []
    monkeypatch.setattr(predictors, "memory_health", lambda memory: found.append(memory) or {})
    _evaluate(task_pipeline, tmp_path, batch_size=20)
    network, _ = load_rnn(Artifact.open(task_pipeline.rnn))
    teacher, _ = load_teacher(Artifact.open(task_pipeline.encoder))
    rows = arrow_columns(shards(task_pipeline.tokens, "test"))["tokens"]
    assert len({len(row) for row in rows}) == 2
    for memory, remember in zip(found, (teacher.encoder, network.rollout), strict=True):
        expected = torch.cat([remember(torch.tensor([row]))[0, 1:] for row in rows]).flatten(1)
        assert len(memory) == len(expected) == sum(map(len, rows))
        apart = torch.cdist(memory.flatten(1).double(), expected.double())
        assert apart.min(1).values.max() < 1e-5
        assert apart.min(0).values.max() < 1e-5


# Gradients.


@pytest.fixture(scope="module")
def decay(pipeline, tmp_path_factory) -> tuple[dict, Artifact]:
    out = tmp_path_factory.mktemp("gradients")
    return _evaluate(pipeline, out, gradients=True), Artifact.open(out)


def test_gradients_are_measured_along_both_paths_before_and_after_training(decay):
    records = decay[0]["gradients"]
    assert [(record["path"], record["weights"]) for record in records] == [
        ("decoder", "trained"),
        ("cell", "trained"),
        ("decoder", "initial"),
        ("cell", "initial"),
    ]
    for record in records:
        furthest = 4 if record["path"] == "decoder" else WINDOW
        distances = [point["distance"] for point in record["curve"]]
        assert distances == [d for d in (0, 1, 2, 3, 4, 6, 8, 12, 16) if d <= furthest]
        assert all(point["norm"] > 0 for point in record["curve"])
        assert record["fits"]["better"] in ("power law", "exponential", "flat")
        assert record["fits"]["left_out"] == 0
    assert records[0]["curve"] != records[2]["curve"]
    assert records[1]["curve"] != records[3]["curve"]


def test_gradients_at_distance_zero_are_those_of_the_readout(pipeline, decay):
    """The mean over a sample is within four standard errors of that over every position."""
    network, _ = load_rnn(Artifact.open(pipeline.rnn))
    tokens = split_tokens(pipeline.tokens, "test")
    count = len(tokens) // WINDOW
    chosen = np.linspace(0, count - 1, min(count, 256)).round().astype(int)
    pairs, norms = 0, []
    for start in chosen * WINDOW:
        window = tokens[start : start + WINDOW + 1]
        memories = network.rollout(torch.tensor([window[:WINDOW]]))[0]
        pairs += len(window)
        for memory, target in zip(memories, window, strict=False):
            read = memory.detach()[None].requires_grad_()
            (-network.readout(read)[0].log_softmax(-1)[target]).backward()
            norms.append(float(read.grad.norm()))
    found = decay[0]["gradients"][1]["curve"][0]

    assert found["samples"] == min(pairs, 256)
    deviation = 4 * np.std(norms) / math.sqrt(found["samples"])
    assert found["norm"] == pytest.approx(np.mean(norms), abs=deviation)


def test_initial_weights_are_of_a_fixed_seed_and_leave_the_generator_alone(pipeline):
    network, window = load_rnn(Artifact.open(pipeline.rnn))
    teacher, _ = load_teacher(Artifact.open(pipeline.encoder))
    before = torch.get_rng_state()
    trained = gradients.TrainedTeacher(teacher, encoder_config(), window)
    one, two = (gradients.with_initial_weights(network, trained)["initial"] for _ in range(2))

    assert torch.equal(torch.get_rng_state(), before)
    for first, second, trained in zip(one, two, (network, teacher), strict=True):
        states = first.state_dict(), second.state_dict(), trained.state_dict()
        assert states[0].keys() == states[2].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])
    assert torch.equal(one[0].empty_memory, network.empty_memory)


def test_the_figure_is_part_of_the_artifact(decay):
    pytest.importorskip("matplotlib")
    figure = decay[1].verified("gradients.svg").read_text(encoding="utf-8")

    assert "<svg" in figure
    assert "through the decoder (SMT), trained" in figure
    assert "through d steps of the cell (BPTT), at initialisation" in figure


def test_without_matplotlib_there_is_a_warning_and_no_figure(task_pipeline, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    recorder = Recorder()
    evaluate.run(
        evaluate_config(gradients=True),
        task_pipeline.rnn,
        task_pipeline.tokens,
        tmp_path,
        encoder=task_pipeline.encoder,
        progress=recorder,
    )

    assert recorder.warnings == [
        "no gradients.svg: matplotlib is not installed (pip install 'smtkit[figures]')"
    ]
    assert [entry.logical_name for entry in Artifact.open(tmp_path).manifest.files] == [
        "evaluation.json"
    ]


def test_of_tasks_gradients_are_of_what_is_asked(task_pipeline, tmp_path):
    evaluation = _evaluate(task_pipeline, tmp_path, gradients=True)
    targets = arrow_columns(shards(task_pipeline.tokens, "test"))["targets"]
    for record in evaluation["gradients"]:
        for point in record["curve"]:
            asked = sum(t != IGNORE for row in targets for t in row[point["distance"] :])
            assert point["samples"] == min(asked, 256)


def _mean_norm(remember, nll, tokens: torch.Tensor, targets: torch.Tensor, distance: int) -> float:
    """Over all pairs, one at a time: memories are those that `remember` has of each row."""
    norms = []
    for row, wanted in zip(tokens, targets, strict=True):
        memories = remember(row[None])[0].detach()
        for i in range(len(memories) - distance):
            if wanted[i + distance] != IGNORE:
                memory = memories[i : i + 1].clone().requires_grad_()
                nll(memory, row[None, i : i + distance], wanted[i + distance]).backward()
                norms.append(float(memory.grad.norm()))
    return float(np.mean(norms))


@pytest.mark.parametrize("path", ["cell", "decoder"])
def test_each_path_starts_from_the_memories_that_it_meets(pipeline, path):
    """The cell's from the RNN's own rollout, the decoder's from the teacher's: few enough windows
    that all pairs count, so that the memories of the other give another norm."""
    network, window = load_rnn(Artifact.open(pipeline.rnn))
    teacher, _ = load_teacher(Artifact.open(pipeline.encoder))
    stream = split_tokens(pipeline.tokens, "test")
    targets = torch.tensor([stream[WINDOW * n :][: WINDOW + 1] for n in range(3)])
    tokens = targets[:, :WINDOW]
    read = Windows(tokens.numpy(), targets.numpy(), np.full(3, WINDOW))
    trained = gradients.TrainedTeacher(teacher, encoder_config(), window)
    records = gradients.measure(network, trained, read, window, Recorder())

    def through_cell(memory, between, target):
        for token in between.unbind(1):
            memory = network.step(memory, token)
        return -network.readout(memory)[0].log_softmax(-1)[target]

    def through_decoder(memory, between, target):
        return -teacher.decoder(memory, between)[0, -1].log_softmax(-1)[target]

    nll = through_cell if path == "cell" else through_decoder
    right, wrong = network.rollout, teacher.encoder
    if path == "decoder":
        right, wrong = wrong, right
    (record,) = (r for r in records if (r["path"], r["weights"]) == (path, "trained"))
    norms = {point["distance"]: point["norm"] for point in record["curve"]}
    for distance in (0, 1, 4):
        expected = _mean_norm(right, nll, tokens, targets, distance)
        assert norms[distance] == pytest.approx(expected, rel=1e-4)
        other = _mean_norm(wrong, nll, tokens, targets, distance)
        assert other != pytest.approx(expected, rel=1e-3)


def test_without_its_teacher_an_rnn_has_the_path_of_its_cell_alone(pipeline, decay, tmp_path):
    alone = _evaluate(pipeline, tmp_path, encoder=None, gradients=True)["gradients"]

    assert [(r["path"], r["weights"]) for r in alone] == [("cell", "trained"), ("cell", "initial")]
    beside = [record for record in decay[0]["gradients"] if record["path"] == "cell"]
    for one, two in zip(alone, beside, strict=True):
        assert [p["distance"] for p in one["curve"]] == [p["distance"] for p in two["curve"]]
        for point, other in zip(one["curve"], two["curve"], strict=True):
            assert point["norm"] == pytest.approx(other["norm"], rel=1e-4)


def test_an_rnn_that_never_had_a_teacher_has_the_path_of_its_cell(
    command: Command, pipeline, tmp_path
):
    config = TrainRnnConfig(
        method="bptt",
        cell={"kind": "gru", "width": 8},
        memory={"slots": 2, "slot_width": 4},
        data={"window": WINDOW},
        training={"batch_size": 8, "max_steps": 2},
    )
    train_rnn.run(config, pipeline.tokens, tmp_path / "rnn")
    arguments = ["eval", tmp_path / "rnn", "--tokens", pipeline.tokens, "--out", tmp_path / "out"]
    result = command(*arguments, "--gradients")

    assert result.code == 0
    assert "cell, trained" in result.stdout
    assert "decoder, trained" not in result.stdout


# Cost.


def test_cost_has_a_record_for_each_number_of_tokens(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(inference_cost, "TOKENS", (10, 150, 400))
    records = _evaluate(pipeline, tmp_path, windows=1, cost=True)["cost"]
    rnn, teacher = ([r for r in records if r["predictor"] == name] for name in ("rnn", "teacher"))

    for told in (rnn, teacher):
        assert [record["tokens"] for record in told] == [10, 150, 400]
    assert all(record["seconds_per_token"] > 0 for record in rnn)
    assert {record["bytes"] for record in rnn} == {4 * 2 * 8}
    assert all(record["seconds_per_token"] > 0 for record in teacher)
    assert {record["skipped"] for record in records} == {None}
    sizes = [record["bytes"] for record in teacher]
    assert sizes == [8 * n + 4 * 4 * 16 * (n + 1) for n in (10, 150, 400)]
    assert {record["peak_bytes"] for record in records} == {None}


def test_cost_reads_as_many_tokens_as_it_says(pipeline, monkeypatch):
    monkeypatch.setattr(inference_cost, "TOKENS", (10, 250, 1000))
    network, _ = load_rnn(Artifact.open(pipeline.rnn))
    steps, read = network.step, []
    monkeypatch.setattr(network, "step", lambda m, t: read.append(t) or steps(m, t))
    inference_cost.of_rnn(network, torch.device("cpu"), Recorder())

    assert len(read) == 1000


def test_what_would_take_too_long_is_not_timed_and_says_so(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(inference_cost, "TOKENS", (10, 1000, 2000))
    monkeypatch.setattr(inference_cost, "_RNN_SECONDS", 0.0)
    monkeypatch.setattr(inference_cost, "_SECONDS", 0.0)
    recorder = Recorder()
    evaluate.run(
        evaluate_config(windows=1, cost=True),
        pipeline.rnn,
        pipeline.tokens,
        tmp_path,
        encoder=pipeline.encoder,
        progress=recorder,
    )
    records = Artifact.open(tmp_path).manifest.statistics["cost"]

    timed = [(r["predictor"], r["tokens"]) for r in records if r["seconds_per_token"] is not None]
    assert timed == [("rnn", 10), ("teacher", 10)]
    untimed = [record for record in records if record["seconds_per_token"] is None]
    assert recorder.warnings == [
        f"{r['predictor']}, {r['tokens']:,} tokens: not timed: {r['skipped']}" for r in untimed
    ]
    assert [" s " in record["skipped"] for record in untimed] == [True] * 4


def _cost_of_teacher(config: EncoderConfig, window: int = 16) -> list[dict]:
    teacher = train_encoder.build_teacher(encoder_config(encoder=config.model_dump()), 7, window)
    teacher.eval().requires_grad_(False)
    cpu = torch.device("cpu")
    return inference_cost.of_teacher(teacher, config, window, 7, cpu, Recorder())


BIDIRECTIONAL = {"kind": "bidirectional", "slots": 2, "slot_width": 8, "width": 16, "heads": 2}


@pytest.mark.parametrize(("context", "read"), [(None, 16), (40, 40)])
def test_a_context_that_is_capped_is_timed_at_every_length(context, read):
    records = _cost_of_teacher(EncoderConfig(**BIDIRECTIONAL, context_length=context))

    assert [record["tokens"] for record in records] == [100, 1_000, 10_000, 100_000]
    assert {record["skipped"] for record in records} == {None}
    assert {record["bytes"] for record in records} == {8 * read + 4 * 4 * 16 * (read + 2)}


@pytest.mark.parametrize("free", [None, 2**40])
def test_what_fits_into_memory_is_timed(monkeypatch, free):
    monkeypatch.setattr(inference_cost, "TOKENS", (10, 100))
    monkeypatch.setattr(inference_cost, "free_bytes", lambda device: free)
    records = _cost_of_teacher(EncoderConfig(slots=2, slot_width=8, width=16, heads=2))

    assert all(record["seconds_per_token"] > 0 for record in records)


@pytest.mark.parametrize("memory", ["projection", "registers"])
def test_what_would_not_fit_into_memory_is_not_timed(monkeypatch, memory):
    monkeypatch.setattr(inference_cost, "TOKENS", (10, 10_000))
    monkeypatch.setattr(inference_cost, "_SECONDS", 1e9)
    monkeypatch.setattr(inference_cost, "free_bytes", lambda device: 2**22)
    config = EncoderConfig(slots=2, slot_width=8, width=16, heads=2, memory=memory)
    short, long = _cost_of_teacher(config)

    assert short["seconds_per_token"] > 0
    assert long["seconds_per_token"] is None
    assert "more than 50% of 0.0 GiB free" in long["skipped"]


@given(
    linear=st.floats(0, 1),
    quadratic=st.floats(0, 1),
    near=st.integers(1, 1000),
    more=st.integers(1, 1000),
)
def test_a_cost_that_is_linear_and_quadratic_is_forecast(linear, quadratic, near, more):
    def seconds(tokens):
        return linear * tokens + quadratic * tokens**2

    passes = [(tokens, seconds(tokens)) for tokens in (near, near + more)]
    expected = seconds(5000)
    found = inference_cost.forecast(passes, 5000)
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("passes", "expected"),
    [
        ([], 0),
        ([(10, 2.0)], 20_000),  # quadratic, until more is known
        ([(10, 2.5), (10, 2.0)], 20_000),
        ([(10, 2.0), (100, 3.0)], 30),  # never less than linear
        ([(10, 1.0), (100, 1000.0)], 100_000),  # nor more than quadratic
    ],
)
def test_forecasts_stay_between_linear_and_quadratic(passes, expected):
    assert inference_cost.forecast(passes, 1000) == pytest.approx(expected)


def test_free_memory_is_what_the_system_says(monkeypatch, tmp_path):
    cpu = torch.device("cpu")
    monkeypatch.setattr(inference_cost, "_MEMORY_INFO", tmp_path / "meminfo")
    assert inference_cost.free_bytes(cpu) is None
    (tmp_path / "meminfo").write_text("MemTotal:  9 kB\nMemAvailable:    3 kB\n")
    assert inference_cost.free_bytes(cpu) == 3 * 1024


def test_nothing_is_added_that_was_not_asked_for(evaluation):
    assert evaluation["gradients"] is None
    assert evaluation["cost"] is None


# The command.


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
