"""Seeded permutations and random numbers."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtkit.corpus.seeded import (
    UniformStream,
    mix,
    permute,
    random_key,
    stratified,
    uniform,
)

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
def test_the_image_of_an_index_does_not_depend_on_the_others(size, key, data):
    indices = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=5))
    whole = permute(np.arange(size), size, key)

    assert permute(np.array(indices), size, key).tolist() == whole[indices].tolist()


def test_permute_depends_on_the_key():
    first, second = (permute(np.arange(1000), 1000, key) for key in (1, 2))

    assert (first != second).mean() > 0.9


def test_random_keys_of_different_parts_differ():
    parts = [(seed, purpose) for seed in range(50) for purpose in ("anchors", "phase", "")]

    assert len({random_key(*each) for each in parts}) == len(parts)


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


def test_a_stream_is_splitmix64() -> None:
    """As its authors wrote it, in whole numbers of Python; however many are drawn at once."""

    def reference(seed: int) -> Iterator[float]:
        state, mask = seed, 2**64 - 1
        while True:
            state = (state + 0x9E3779B97F4A7C15) & mask
            z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
            yield ((z ^ (z >> 31)) >> 11) / 2**53

    # The first output for seed 1234567, as the authors publish it.
    assert int(mix(np.array([1234567], dtype=np.uint64))[0]) == 6457827717110365317
    for seed in (0, 1, 1234567, 2**64 - 1, -5):
        stream = UniformStream(seed)
        found = [*stream.draw(1), *stream.draw(5), *stream.draw(0), *stream.draw(100)]
        assert found == list(islice(reference(seed % 2**64), 106))
