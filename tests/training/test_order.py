"""The order of samples: epochs, slices of ranks, and rows of equal lengths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtkit.training.order import SampleOrder


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("step", [0, 1, 17])
def test_slices_of_the_ranks_make_the_batch_of_one_rank(ranks, step):
    order = SampleOrder(size=50, batch_size=12, seed=3)
    slices = [order.entries(step, rank, ranks) for rank in range(ranks)]

    assert np.concatenate(slices).tolist() == list(range(12 * step, 12 * step + 12))


@given(size=st.integers(1, 200), batch_size=st.integers(1, 50), seed=st.integers(0, 100))
def test_every_epoch_visits_every_row_once(size, batch_size, seed):
    order = SampleOrder(size, batch_size, seed)
    epochs = 3
    visited: dict[int, list[int]] = {}
    for step in range(-(-epochs * size // batch_size)):
        for epoch, row in zip(*order.rows(order.entries(step)), strict=True):
            visited.setdefault(int(epoch), []).append(int(row))

    for epoch in range(epochs):
        assert sorted(visited[epoch]) == list(range(size))


LENGTHS = st.lists(st.integers(1, 5), min_size=1, max_size=200)


@given(lengths=LENGTHS, batch_size=st.integers(1, 50), seed=st.integers(0, 100))
def test_every_epoch_visits_every_row_once_where_lengths_are_mixed(lengths, batch_size, seed):
    order = SampleOrder(len(lengths), batch_size, seed, np.array(lengths))
    visited: dict[int, list[int]] = {}
    for step in range(-(-5 * len(lengths) // batch_size)):
        for epoch, row in zip(*order.rows(order.entries(step)), strict=True):
            visited.setdefault(int(epoch), []).append(int(row))

    for epoch in range(5):
        assert sorted(visited[epoch]) == list(range(len(lengths)))


@given(lengths=LENGTHS, seed=st.integers(0, 100), data=st.data())
def test_the_row_of_an_entry_does_not_depend_on_the_other_entries(lengths, seed, data):
    order = SampleOrder(len(lengths), 7, seed, np.array(lengths))
    entries = np.array(data.draw(st.lists(st.integers(0, 1000), min_size=1, max_size=9)))
    together = order.rows(entries)[1].tolist()

    assert together == [int(order.rows(entries[i : i + 1])[1][0]) for i in range(len(entries))]


def _steps_of_epochs(
    lengths: np.ndarray, batch_size: int, epochs: int, seed: int = 0
) -> list[list[np.ndarray]]:
    """Per epoch, the lengths of the rows of each step that begins in it."""
    order = SampleOrder(len(lengths), batch_size, seed, lengths)
    steps: list[list[np.ndarray]] = [[] for _ in range(epochs)]
    for step in range(epochs * len(lengths) // batch_size):
        entries = order.entries(step)
        steps[entries[0] // len(lengths)].append(lengths[order.rows(entries)[1]])
    return steps


def _padding(steps: list[np.ndarray]) -> float:
    """Fraction of the tokens of padded batches that are padding."""
    padded = sum(len(step) * step.max() for step in steps)
    return 1 - sum(step.sum() for step in steps) / padded


MIXTURES = {
    "not a multiple of the batch": (16, [300, 401, 302]),
    "a multiple of the batch": (16, [304, 400, 304]),
    "groups of whole steps, and a row": (16, [320, 320, 321]),
    "a few steps": (32, [70, 70, 71]),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_steps_take_rows_of_one_length_in_every_epoch(mixture, seed):
    batch_size, counts = MIXTURES[mixture]
    lengths = np.repeat([8, 16, 32], counts)[np.random.default_rng(0).permutation(sum(counts))]
    for steps in _steps_of_epochs(lengths, batch_size, epochs=6, seed=seed):
        assert sum(len(np.unique(step)) > 1 for step in steps) <= 3
        # At most three steps of mixed lengths, whose padding is at most three quarters.
        assert _padding(steps) < 3 * 0.75 * batch_size * 32 / (lengths.sum() + batch_size * 32)
        if len(steps) > 50:
            assert _padding(steps) < 0.04


def test_padding_is_small_where_all_lengths_differ():
    lengths = np.random.default_rng(0).permutation(np.arange(1, 1004))
    for steps in _steps_of_epochs(lengths, 16, epochs=6):
        assert _padding(steps) < 0.04


def test_steps_that_span_two_epochs_take_rows_of_every_length():
    lengths = np.repeat([8, 16, 32], [300, 401, 302])
    shared = [steps[-1] for steps in _steps_of_epochs(lengths, 16, epochs=40)]

    assert {int(length) for step in shared for length in step} == {8, 16, 32}
    assert sum(len(np.unique(step)) == 1 for step in shared) > 30


def test_the_steps_of_mixed_lengths_change_with_the_epoch():
    lengths = np.repeat([8, 16, 32], [300, 401, 302])
    mixed = {
        tuple(sorted(tuple(sorted(step.tolist())) for step in steps if len(np.unique(step)) > 1))
        for steps in _steps_of_epochs(lengths, 16, epochs=8)
    }

    assert len(mixed) > 4


def test_the_rows_of_a_step_change_with_the_epoch():
    lengths = np.repeat([8, 16], [160, 160])
    order = SampleOrder(320, 16, 0, lengths)
    steps = [frozenset(order.rows(order.entries(step))[1].tolist()) for step in range(3 * 20)]

    assert len(set(steps)) == 60


@pytest.mark.parametrize("parts", [2, 4])
def test_slices_of_a_step_ordered_by_length_make_the_batch(parts):
    order = SampleOrder(103, 8, 0, np.repeat([8, 16, 32], [31, 41, 31]))
    for step in range(30):
        pieces = [order.rows(order.entries(step, part, parts))[1] for part in range(parts)]
        assert np.concatenate(pieces).tolist() == order.rows(order.entries(step))[1].tolist()


def _row_order(seed: int, epoch: int, size: int = 500) -> list[int]:
    order = SampleOrder(size, size, seed)
    return order.rows(order.entries(epoch))[1].tolist()


def test_seeds_give_different_orders():
    assert _row_order(seed=0, epoch=0) != _row_order(seed=1, epoch=0)


def test_epochs_give_different_orders():
    assert _row_order(seed=0, epoch=0) != _row_order(seed=0, epoch=1)


def test_an_order_is_repeatable():
    assert _row_order(seed=5, epoch=2) == _row_order(seed=5, epoch=2)
