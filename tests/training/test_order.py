"""The order of samples: permutations, slices of ranks, epochs, and keyed random numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtkit.corpus.seeded import permute, random_key, stratified, uniform
from smtkit.training.order import SampleOrder

KEYS = st.integers(0, 2**64 - 1)
SIZES = st.integers(1, 3000)


@given(size=SIZES, key=KEYS)
def test_permute_is_a_bijection(size, key):
    images = permute(np.arange(size), size, key)

    assert sorted(images.tolist()) == list(range(size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 255, 256, 257, 4**6, 4**6 + 1])
def test_permute_is_a_bijection_around_powers_of_four(size):
    images = permute(np.arange(size), size, 7)

    assert sorted(images.tolist()) == list(range(size))


@given(size=SIZES, key=KEYS, data=st.data())
def test_permute_maps_each_index_by_itself(size, key, data):
    asked = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=5))
    whole = permute(np.arange(size), size, key)

    assert permute(np.array(asked), size, key).tolist() == whole[asked].tolist()


def test_permute_depends_on_the_key():
    first, second = (permute(np.arange(1000), 1000, key) for key in (1, 2))

    assert (first != second).mean() > 0.9


def test_random_keys_of_different_parts_differ():
    parts = [(seed, purpose) for seed in range(50) for purpose in ("anchors", "phase", "")]

    assert len({random_key(*each) for each in parts}) == len(parts)


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
def test_each_entry_finds_its_row_by_itself(lengths, seed, data):
    order = SampleOrder(len(lengths), 7, seed, np.array(lengths))
    asked = np.array(data.draw(st.lists(st.integers(0, 1000), min_size=1, max_size=9)))
    together = order.rows(asked)[1].tolist()

    assert together == [int(order.rows(asked[i : i + 1])[1][0]) for i in range(len(asked))]


def _steps_of_epochs(
    lengths: np.ndarray, batch_size: int, epochs: int, seed: int = 0
) -> list[list[np.ndarray]]:
    """Of each epoch, the lengths in the steps that begin in it."""
    order = SampleOrder(len(lengths), batch_size, seed, lengths)
    steps: list[list[np.ndarray]] = [[] for _ in range(epochs)]
    for step in range(epochs * len(lengths) // batch_size):
        entries = order.entries(step)
        steps[entries[0] // len(lengths)].append(lengths[order.rows(entries)[1]])
    return steps


def _padding(steps: list[np.ndarray]) -> float:
    """The share of all places that hold no token."""
    places = sum(len(step) * step.max() for step in steps)
    return 1 - sum(step.sum() for step in steps) / places


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
        # What one such step costs, at most, three times.
        assert _padding(steps) < 3 * 0.75 * batch_size * 32 / (lengths.sum() + batch_size * 32)
        if len(steps) > 50:
            assert _padding(steps) < 0.04


def test_padding_is_small_where_all_lengths_differ():
    lengths = np.random.default_rng(0).permutation(np.arange(1, 1004))
    for steps in _steps_of_epochs(lengths, 16, epochs=6):
        assert _padding(steps) < 0.04


def test_the_rows_that_epochs_share_a_step_for_are_of_every_length():
    lengths = np.repeat([8, 16, 32], [300, 401, 302])
    shared = [steps[-1] for steps in _steps_of_epochs(lengths, 16, epochs=40)]

    assert {int(length) for step in shared for length in step} == {8, 16, 32}
    assert sum(len(np.unique(step)) == 1 for step in shared) > 30


def test_where_lengths_meet_changes_with_the_epoch():
    lengths = np.repeat([8, 16, 32], [300, 401, 302])
    meetings = {
        tuple(sorted(tuple(sorted(step.tolist())) for step in steps if len(np.unique(step)) > 1))
        for steps in _steps_of_epochs(lengths, 16, epochs=8)
    }

    assert len(meetings) > 4


def test_which_rows_of_a_length_come_together_changes_with_the_epoch():
    lengths = np.repeat([8, 16], [160, 160])
    order = SampleOrder(320, 16, 0, lengths)
    steps = [frozenset(order.rows(order.entries(step))[1].tolist()) for step in range(3 * 20)]

    assert len(set(steps)) == 60


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_step_of_one_length_make_the_whole(parts):
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


@given(key=KEYS, entries=st.lists(st.integers(0, 2**62), min_size=1, max_size=20))
def test_uniform_numbers_of_an_entry_do_not_depend_on_the_other_entries(key, entries):
    together = uniform(key, np.array(entries), 4)
    alone = [uniform(key, np.array([entry]), 4)[0].tolist() for entry in entries]

    assert together.tolist() == alone


@given(key=KEYS, entry=st.integers(0, 2**62), draws=st.integers(1, 20))
def test_uniform_numbers_do_not_depend_on_how_many_are_drawn(key, entry, draws):
    some, more = (uniform(key, np.array([entry]), count) for count in (draws, 20))

    assert some[0].tolist() == more[0, :draws].tolist()


def test_uniform_numbers_are_uniform():
    numbers = uniform(11, np.arange(4000), 5)

    assert numbers.min() >= 0
    assert numbers.max() < 1
    observed, _ = np.histogram(numbers, bins=10, range=(0, 1))
    expected = numbers.size / 10
    # 99.99th percentile of chi squared with 9 degrees of freedom
    assert ((observed - expected) ** 2 / expected).sum() < 33.7


def test_uniform_numbers_of_neighbouring_draws_and_entries_are_uncorrelated():
    numbers = uniform(12, np.arange(4000), 2)

    assert abs(np.corrcoef(numbers[:, 0], numbers[:, 1])[0, 1]) < 0.06
    assert abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 0.06


@given(
    key=KEYS,
    draws=st.integers(1, 40),
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=10),
)
def test_stratified_draws_are_in_range_and_ascending(key, draws, sizes):
    drawn = stratified(key, np.arange(len(sizes)), draws, np.array(sizes))

    assert drawn.shape == (len(sizes), draws)
    for row, size in zip(drawn.tolist(), sizes, strict=True):
        assert row[0] >= 0
        assert row == sorted(row)
        assert row[-1] < size


@given(key=KEYS, draws=st.integers(1, 40), spare=st.integers(0, 40))
def test_stratified_draws_are_distinct_where_there_are_enough(key, draws, spare):
    drawn = stratified(key, np.arange(20), draws, np.full(20, draws + spare))

    for row in drawn.tolist():
        assert len(set(row)) == draws


@given(key=KEYS, size=st.integers(1, 200))
def test_stratified_draws_of_the_whole_range_are_all_of_it(key, size):
    drawn = stratified(key, np.arange(5), size, np.full(5, size))

    assert drawn.tolist() == [list(range(size))] * 5


@pytest.mark.parametrize(("size", "draws"), [(16, 4), (17, 2), (7, 3)])
def test_stratified_draws_reach_every_integer_equally_often(size, draws):
    rows = 20_000
    drawn = stratified(5, np.arange(rows), draws, np.full(rows, size))
    share = np.bincount(drawn.flatten(), minlength=size) / (rows * draws)

    assert np.abs(share - 1 / size).max() < 5 * np.sqrt(1 / size / (rows * draws))
