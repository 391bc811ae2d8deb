"""The order of samples in training: a pure function of the seed and the step.

The samples of a run are numbered; sample number e ("entry") is row `permutation(e // n)[e % n]` of
n rows, so that every epoch visits every row once. Step s takes entries s G .. (s + 1) G - 1, with
G the global batch size; a rank takes a slice of them. Nothing is stored, and the order does not
depend on the number of ranks or threads.
"""

from functools import lru_cache

import numpy as np

from smtkit.corpus.seeded import IntArray, permute, random_key, uniform

_BLOCK = 4096


class SampleOrder:
    """The rows, out of `size`, that each step of `batch_size` samples takes.

    Given the `lengths` of the rows, (size,), a step takes rows of about one length, so that little
    of a batch is padding. Which rows share a step changes with the epoch.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, lengths: IntArray | None = None
    ) -> None:
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self._lengths = lengths
        self._cached_block = lru_cache(maxsize=8)(self._block)
        if lengths is not None:
            self._by_length = np.argsort(lengths, kind="stable")  # rows, the shortest first
            # First position in `_by_length` and number of rows of each length.
            self._starts = np.flatnonzero(np.diff(lengths[self._by_length], prepend=-1))
            self._counts = np.diff(self._starts, append=size)

    def entries(self, step: int, part: int = 0, parts: int = 1) -> IntArray:
        """Numbers of the samples in slice `part` of `parts` of the step's batch."""
        count = self.batch_size // parts
        first = step * self.batch_size + part * count
        return np.arange(first, first + count, dtype=np.int64)

    def rows(self, entries: IntArray) -> tuple[IntArray, IntArray]:
        """Epoch and row of each entry."""
        # Permute in blocks: NumPy call overhead dominates per batch.
        epochs, indices = np.divmod(entries, self.size)
        blocks, within = np.divmod(indices, _BLOCK)
        rows = np.empty_like(indices)
        for epoch, block in set(zip(epochs.tolist(), blocks.tolist(), strict=True)):
            chosen = (epochs == epoch) & (blocks == block)
            rows[chosen] = self._cached_block(epoch, block)[within[chosen]]
        return epochs, rows

    def _block(self, epoch: int, block: int) -> IntArray:
        """Rows at indices block * _BLOCK .. of an epoch."""
        first = block * _BLOCK
        indices = np.arange(first, min(first + _BLOCK, self.size))
        key = random_key(self.seed, "permutation", epoch)
        if self._lengths is None:
            return permute(indices, self.size, key)
        positions = self._positions_by_length(indices, epoch, key)
        return self._by_length[self._shuffle_equal_lengths(positions, key)]

    def _positions_by_length(self, indices: IntArray, epoch: int, key: int) -> IntArray:
        """Position, among the rows sorted by length, for each index of an epoch.

        The sorted rows are cut into one piece per step, and the pieces are dealt to the steps in
        random order. Where the batch size does not divide the number of rows, a step takes its
        first rows from the end of one epoch (`tail`) and the others from the start of the next
        (`head`). For its rows to be of about one length, both epochs cut its piece at the same
        fraction of their sorted rows.
        """
        head = min(-epoch * self.size % self.batch_size, self.size)
        whole, tail = divmod(self.size - head, self.batch_size)
        # Pieces in the order of steps: head, whole steps, tail. `first`: index of their first row.
        sizes = np.concatenate(([head], np.full(whole, self.batch_size), [tail]))
        first = np.cumsum(sizes) - sizes
        # Order of the pieces along the sorted rows. Whole steps have integer ranks; the fractions
        # .5 and .75 put head and tail between two of them, and never at the same rank.
        head_rank, tail_rank = (int(self._cut(e) * (whole + 1)) for e in (epoch, epoch + 1))
        ranks = np.concatenate(
            ([head_rank - 0.5], permute(np.arange(whole), whole, key), [tail_rank - 0.25])
        )
        along = np.argsort(ranks)
        start = np.empty_like(sizes)
        start[along] = np.cumsum(sizes[along]) - sizes[along]
        piece = (indices - head) // self.batch_size + 1
        return start[piece] + indices - first[piece]

    def _cut(self, epoch: int) -> float:
        """Fraction of the sorted rows at which the step that ends in `epoch`, and started in the
        epoch before, takes its rows."""
        return float(uniform(random_key(self.seed, "shared"), np.array([epoch]), 1)[0, 0])

    def _shuffle_equal_lengths(self, positions: IntArray, key: int) -> IntArray:
        """Permutes positions among the sorted rows within each length."""
        shuffled = np.empty_like(positions)
        groups = np.searchsorted(self._starts, positions, side="right") - 1
        for group in np.unique(groups):
            chosen, first, count = groups == group, self._starts[group], int(self._counts[group])
            group_key = random_key(key, int(group))
            shuffled[chosen] = first + permute(positions[chosen] - first, count, group_key)
        return shuffled
