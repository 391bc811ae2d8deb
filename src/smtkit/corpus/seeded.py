"""Seeded random numbers and permutations: pure functions of a key and an index."""

from functools import lru_cache

import numpy as np
import xxhash
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


_ROUNDS = 6


def random_key(*parts: int | str) -> int:
    """A 64-bit key; different for different parts."""
    return xxhash.xxh3_64_intdigest("/".join(map(str, parts)).encode())


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele, Lea and Flood, 2014): a bijection of 64 bits."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def uniform(key: int, entries: IntArray, draws: int) -> NDArray[np.float64]:
    """(len(entries), draws) numbers in [0, 1), each a function of its key, entry and draw alone."""
    seeds = mix(entries.astype(np.uint64) ^ np.uint64(key))
    bits = mix(seeds[:, None] + mix(np.arange(draws, dtype=np.uint64))[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def stratified(key: int, entries: IntArray, draws: int, sizes: IntArray) -> IntArray:
    """(len(entries), draws) integers, ascending, row r of them in [0, sizes[r]), evenly spaced from
    a random phase: each is as likely as any other.

    No integer comes twice where draws <= sizes[r]; all come where they are equal.
    """
    if (sizes == draws).all():
        return np.tile(np.arange(draws), (len(entries), 1))
    fractions = (np.arange(draws) + uniform(key, entries, 1)) / draws
    return np.minimum((fractions * sizes[:, None]).astype(np.int64), sizes[:, None] - 1)


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
