"""Seeded random numbers and permutations: pure functions of a key and an index."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import xxhash
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

_ROUNDS = 6
_GOLDEN = 0x9E3779B97F4A7C15


def random_key(*parts: int | str) -> int:
    """A 64-bit key; different for different parts."""
    return xxhash.xxh3_64_intdigest("/".join(map(str, parts)).encode())


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele, Lea and Flood, 2014): a bijection of 64 bits."""
    values = values + np.uint64(_GOLDEN)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def uniform(key: int, entries: IntArray, draws: int) -> NDArray[np.float64]:
    """(len(entries), draws) numbers in [0, 1), each a function of key, entry and draw alone."""
    seeds = mix(entries.astype(np.uint64) ^ np.uint64(key))
    bits = mix(seeds[:, None] + mix(np.arange(draws, dtype=np.uint64))[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


class UniformStream:
    """Numbers in [0, 1) from a seed, one after the other: SplitMix64 (Steele, Lea and Flood, 2014),
    whose upper 53 bits any language computes in a few lines."""

    def __init__(self, seed: int) -> None:
        self._state = seed

    def draw(self, count: int) -> NDArray[np.float64]:
        """The next `count` numbers, (count,)."""
        steps = np.arange(count, dtype=np.uint64) * np.uint64(_GOLDEN)
        bits = mix(steps + np.uint64(self._state % 2**64))
        self._state += count * _GOLDEN
        return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def stratified(key: int, entries: IntArray, draws: int, sizes: IntArray) -> IntArray:
    """(len(entries), draws) ascending integers: row r lies in [0, sizes[r]), evenly spaced from a
    random phase, so that all integers are equally likely.

    No integer is drawn twice where draws <= sizes[r]; all are drawn where they are equal.
    """
    if (sizes == draws).all():
        return np.tile(np.arange(draws), (len(entries), 1))
    fractions = (np.arange(draws) + uniform(key, entries, 1)) / draws
    return np.minimum((fractions * sizes[:, None]).astype(np.int64), sizes[:, None] - 1)


@dataclass(frozen=True)
class RowDraws:
    """Random numbers for n rows: each a function of `parts`, row, purpose and column alone."""

    parts: tuple[int | str, ...]
    rows: IntArray  # (n,) row numbers

    def uniform(self, purpose: str, count: int) -> NDArray[np.float64]:
        """(n, count) numbers in [0, 1)."""
        return uniform(random_key(*self.parts, purpose), self.rows, count)

    def integers(self, purpose: str, count: int, size: int | IntArray) -> IntArray:
        """(n, count) integers in [0, size); size: one for all rows, or (n, 1)."""
        return (self.uniform(purpose, count) * size).astype(np.int64)

    def distinct(self, purpose: str, count: int, size: int) -> IntArray:
        """(n, count) integers in [0, size), distinct within each row.

        Floyd's sampling (Bentley and Floyd, "A sample of brilliance", 1987), whose cost does not
        grow with `size`; then a shuffle, because large numbers tend to come last.
        """
        numbers = self.uniform(purpose, count)
        sample = np.empty(numbers.shape, dtype=np.int64)
        for column, limit in enumerate(range(size - count + 1, size + 1)):
            drawn = (numbers[:, column] * limit).astype(np.int64)
            repeated = (sample[:, :column] == drawn[:, None]).any(axis=1)
            sample[:, column] = np.where(repeated, limit - 1, drawn)
        order = np.argsort(self.uniform(f"{purpose} order", count), axis=1)
        return np.take_along_axis(sample, order, axis=1)


def choose(count: int, size: int, key: int) -> IntArray:
    """`count` distinct integers of [0, size), or all of them, in random order."""
    return permute(np.arange(min(count, size)), size, key)


def permute(indices: IntArray, size: int, key: int) -> IntArray:
    """Images of `indices` under a seeded permutation of [0, size).

    A Feistel network on the next even number of bits, walked along its cycle until the image lies
    in range (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    images = indices.astype(np.uint64)
    outside = np.ones(len(images), dtype=bool)
    while outside.any():
        images[outside] = _feistel(images[outside], half_bits, key)
        outside = images >= np.uint64(size)
    return images.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half_bits: int, key: int) -> NDArray[np.uint64]:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for round_key in _round_keys(key):
        left, right = right, left ^ (mix(right ^ round_key) & mask)
    return (left << shift) | right


@lru_cache(maxsize=1024)
def _round_keys(key: int) -> list[np.uint64]:
    return [np.uint64(random_key(key, number)) for number in range(_ROUNDS)]
