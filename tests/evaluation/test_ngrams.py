"""N-gram models against a model of dictionaries."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import split_tokens
from evaluations import NaiveNgrams, assert_ranges
from smtkit import IGNORE
from smtkit.evaluation.ngrams import NgramModel

Row = tuple[list[int], list[int]]


TOKENS = st.lists(st.integers(0, 4), max_size=60)


def _row(values: Sequence[int], present: Sequence[bool] = ()) -> tuple[np.ndarray, np.ndarray]:
    """One row of a text: (1, L) tokens, (1, L + 1) targets, the first masked by `present`."""
    targets = np.array(values, dtype=np.int64)[None]
    masked = targets.copy()
    count = len(present)
    masked[0, :count] = np.where(present[: targets.shape[1]], targets[0, :count], IGNORE)
    return targets[:, :-1], masked


def _rows_of(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return values[:, :-1], values


@given(tokens=TOKENS, scored=st.lists(st.integers(0, 4), min_size=1, max_size=12))
def test_ngrams_equal_a_model_of_dictionaries(tokens, scored):
    model = NgramModel.count(5, 3, [_row(tokens)])
    naive = NaiveNgrams(5, 3, tokens)
    for order in (1, 2, 3):
        nll = model.negative_log_likelihood(*_row(scored), order)[0]
        expected = [
            -math.log(naive.probability(token, tuple(scored[max(0, i - order + 1) : i])))
            for i, token in enumerate(scored)
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
    """Each block is a row; it begins with the two tokens before it, whose targets are masked."""
    ends = np.minimum(np.cumsum(sizes), len(tokens)).tolist()
    blocks = []
    for start, end in zip([0, *ends], [*ends, len(tokens)], strict=True):
        before = min(start, 2)
        present = [False] * before + [True] * (end - start)
        blocks.append(_row(tokens[start - before : end], present))
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
    """The same for rows whose targets are not their tokens."""

    def __init__(self, vocabulary_size: int, order: int, rows: Sequence[Row]) -> None:
        super().__init__(vocabulary_size, order, [])
        for tokens, targets in rows:
            for i, target in enumerate(targets):
                for n in range(min(order, i + 1)):
                    if target != IGNORE:
                        self.after[tuple(tokens[i - n : i])][target] += 1


@st.composite
def _task_rows(draw) -> list[Row]:
    """Rows of one length, in which some positions have a target."""
    length, count = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    tokens = st.lists(st.integers(0, 4), min_size=length, max_size=length)
    targets = st.lists(st.integers(IGNORE, 4), min_size=length + 1, max_size=length + 1)
    return draw(st.lists(st.tuples(tokens, targets), min_size=count, max_size=count))


@given(counted=_task_rows(), scored=_task_rows())
def test_ngrams_of_answers_equal_a_model_of_dictionaries(counted, scored):
    counted_batch, scored_batch = (
        (np.array([tokens for tokens, _ in rows]), np.array([targets for _, targets in rows]))
        for rows in (counted, scored)
    )
    model = NgramModel.count(5, 3, [counted_batch])
    naive = NaiveAnswers(5, 3, counted)
    for order in (1, 2, 3):
        nll = model.negative_log_likelihood(*scored_batch, order)
        for row, (tokens, targets) in enumerate(scored):
            for i, target in enumerate(targets):
                if target == IGNORE:
                    assert math.isnan(nll[row, i])
                    continue
                history = tuple(tokens[max(0, i - order + 1) : i])
                expected = -math.log(naive.probability(target, history))
                assert nll[row, i] == pytest.approx(expected)


def test_ngrams_that_do_not_fit_63_bits_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        NgramModel(2**21, 3)


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
        assert_ranges(evaluation, predictor, nll)
