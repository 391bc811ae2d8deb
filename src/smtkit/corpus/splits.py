"""Splits: each document is assigned to one by its content and the seed alone."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smtkit.corpus.seeded import mix, random_key

SPLITS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)
BY_POSITION, REMOVED = 3, 4


@dataclass(frozen=True)
class Fractions:
    """Shares of the bytes that are held out of training."""

    validation: float
    test: float

    def boundaries(self, size: int) -> tuple[int, int]:
        """Offsets of validation and test in a document of `size` bytes split by position."""
        test = round(size * (1 - self.test))
        return min(round(size * (1 - self.test - self.validation)), test), test


def assign_splits(
    digests: NDArray[np.uint64],
    sizes: NDArray[np.int64],
    fractions: Fractions,
    seed: int,
    *,
    given_test: int = 0,
    by_position: bool = True,
) -> NDArray[np.int8]:
    """A code for each document: TRAIN, VALIDATION, TEST, BY_POSITION or REMOVED.

    digests: (documents, 2), 128 bits of each content; sizes: (documents,), bytes. The first
    `given_test` documents are a given test split: all of them are kept, and no other document is
    added. Other documents are REMOVED where they are empty or equal an earlier one. A document
    that holds half of all bytes or more is split BY_POSITION, if that is allowed. The rest are
    ranked by a hash of seed and content, so that the order of the inputs does not matter: the first
    go to test until it has its share of their bytes, the next to validation; a document of more
    than twice the share stays in train while there are smaller ones.
    """
    codes = np.full(len(sizes), REMOVED, dtype=np.int8)
    _, first = np.unique(digests, axis=0, return_index=True)
    codes[first] = TRAIN
    codes[sizes == 0] = REMOVED
    codes[:given_test] = np.where(sizes[:given_test] > 0, TEST, REMOVED)
    kept = np.flatnonzero(codes == TRAIN)
    if by_position:
        long = kept[sizes[kept] * 2 >= int(sizes[kept].sum())]
        codes[long] = BY_POSITION

    whole = np.flatnonzero(codes == TRAIN)
    key = np.uint64(random_key(seed, "split"))
    whole = whole[np.lexsort((digests[whole, 1], mix(digests[whole, 0] ^ key)))]
    size = int(sizes[whole].sum())
    test_share = 0.0 if given_test else fractions.test
    for code, share in ((TEST, test_share), (VALIDATION, fractions.validation)):
        chosen = _held_out(sizes[whole], share * size)
        codes[whole[chosen]] = code
        whole = np.delete(whole, chosen)
    return codes


def cut(blocks: Iterable[bytes], boundaries: tuple[int, int]) -> Iterator[tuple[int, bytes]]:
    """(split, bytes) of one document that is split by position.

    A boundary inside a UTF-8 character moves to its end, so that no character is torn.
    """
    position, split = 0, TRAIN
    for block in blocks:
        start = 0
        while split < TEST and position + len(block) > boundaries[split]:
            stop = max(boundaries[split] - position, start)
            limit = boundaries[split] + 3 - position
            while stop < min(len(block), limit) and block[stop] & 0xC0 == 0x80:
                stop += 1
            if stop == len(block) < limit:
                break  # the character may go on in the next block
            if stop > start:
                yield split, block[start:stop]
            start, split = stop, split + 1
        if start < len(block):
            yield split, block[start:]
        position += len(block)


def _held_out(sizes: NDArray[np.int64], share: float) -> NDArray[np.intp]:
    """Indices of the first documents that reach `share` bytes, without documents of more than twice
    the share; the smallest document where there are no others."""
    if share <= 0 or len(sizes) == 0:
        return np.empty(0, dtype=np.intp)
    eligible = np.flatnonzero(sizes <= 2 * share)
    if len(eligible) == 0:
        eligible = np.array([sizes.argmin()])
    reached = int(np.searchsorted(np.cumsum(sizes[eligible]), share)) + 1
    return eligible[:reached]
