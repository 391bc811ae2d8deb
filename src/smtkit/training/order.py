"""The order of samples and the random numbers of a run: pure functions of (seed, step).

Sample number e of a run ("entry") is row `permutation(epoch)[e mod n]` of n rows. Step s takes
entries [s G, (s+1) G), G the global batch; a rank takes its slice. Nothing is stored, and nothing
depends on ranks, threads, or on what was read before.
"""

from functools import lru_cache

import numpy as np

from smtkit.corpus.seeded import IntArray, permute, random_key, uniform

_BLOCK = 4096
"""Rows of an order that are found together: for those of a batch, numpy's calls are most of it."""


class SampleOrder:
    """Which rows, out of `size`, each step of `batch_size` samples takes.

    `lengths` (size,), where rows differ in length: a step then takes rows of one length, as far as
    they go, so that little of it is padding; which rows come together changes with the epoch.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, lengths: IntArray | None = None
    ) -> None:
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self._lengths = lengths
        self._block = lru_cache(maxsize=8)(self._found)
        if lengths is not None:
            self._sorted = np.argsort(lengths, kind="stable")
            self._starts = np.flatnonzero(np.diff(lengths[self._sorted], prepend=-1))
            self._counts = np.diff(self._starts, append=size)

    def entries(self, step: int, part: int = 0, parts: int = 1) -> IntArray:
        """Numbers of the samples that slice `part` of `parts` of the step takes."""
        share = self.batch_size // parts
        first = step * self.batch_size + part * share
        return np.arange(first, first + share, dtype=np.int64)

    def rows(self, entries: IntArray) -> tuple[IntArray, IntArray]:
        """Epoch and row of each entry."""
        epochs, indices = np.divmod(entries, self.size)
        blocks, within = np.divmod(indices, _BLOCK)
        rows = np.empty_like(indices)
        for epoch, block in set(zip(epochs.tolist(), blocks.tolist(), strict=True)):
            chosen = (epochs == epoch) & (blocks == block)
            rows[chosen] = self._block(epoch, block)[within[chosen]]
        return epochs, rows

    def _found(self, epoch: int, block: int) -> IntArray:
        """The rows of the indices of a block of an epoch."""
        first = block * _BLOCK
        return self._permuted(np.arange(first, min(first + _BLOCK, self.size)), epoch)

    def _permuted(self, indices: IntArray, epoch: int) -> IntArray:
        key = random_key(self.seed, "permutation", epoch)
        if self._lengths is None:
            return permute(indices, self.size, key)
        return self._of_one_length(self._places(indices, epoch, key), key)

    def _places(self, indices: IntArray, epoch: int, key: int) -> IntArray:
        """Where among the rows sorted by length each index of the epoch takes its row.

        The sorted rows are cut into a run for each step; which step gets which is shuffled. The
        steps that an epoch shares with those before and after it are of `head` and `tail` rows of
        its own, which lie where both epochs draw alike: so they are of about one length too.
        """
        head = min(-epoch * self.size % self.batch_size, self.size)
        whole, tail = divmod(self.size - head, self.batch_size)
        shuffled = permute(np.arange(whole), whole, key)
        before_head, before_tail = (int(self._shared(e) * (whole + 1)) for e in (epoch, epoch + 1))
        # Of head, whole steps and tail: rows, first index, and from short to long.
        rows = np.concatenate(([head], np.full(whole, self.batch_size), [tail]))
        first = np.cumsum(rows) - rows
        line = np.argsort(np.concatenate(([before_head - 0.5], shuffled, [before_tail - 0.25])))
        places = np.empty_like(rows)
        places[line] = np.cumsum(rows[line]) - rows[line]
        steps = (indices - head) // self.batch_size + 1
        return places[steps] + indices - first[steps]

    def _shared(self, epoch: int) -> float:
        """Which share of the rows is shorter than those of the step that begins in the epoch before
        and ends in this one."""
        return float(uniform(random_key(self.seed, "shared"), np.array([epoch]), 1)[0, 0])

    def _of_one_length(self, places: IntArray, key: int) -> IntArray:
        """Rows at `places` among those sorted by length, permuted within each length."""
        groups = np.searchsorted(self._starts, places, side="right") - 1
        for group in np.unique(groups):
            chosen, first = groups == group, self._starts[group]
            count = int(self._counts[group])
            within = permute(places[chosen] - first, count, random_key(key, int(group)))
            places[chosen] = first + within
        return self._sorted[places]
