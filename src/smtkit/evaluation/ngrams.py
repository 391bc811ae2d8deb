"""Baselines: unigram, bigram and trigram models counted on the training split.

Interpolated Witten-Bell smoothing (Witten & Bell 1991):

    p_n(w | h) = (c(h w) + t(h) p_{n-1}(w | h')) / (c(h) + t(h))

with c counts, t(h) the number of different tokens seen after h, h' without its first, p_0 uniform.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from smtkit import IGNORE

IntArray = NDArray[np.int64]


class NgramModel:
    """Counts of (order - 1 tokens, the target that follows them), as numbers in base V.

    Rows are tokens (B, L) and targets (B, L + 1), `targets[:, i]` following `tokens[:, :i]`: the
    text itself, or the answers of a task. Where a target is IGNORE nothing is counted or predicted.
    """

    def __init__(self, vocabulary_size: int, order: int) -> None:
        if vocabulary_size**order >= 2**63:
            raise ValueError(f"{vocabulary_size}**{order} n-grams do not fit 63 bits")
        self.order = order
        self._base = vocabulary_size
        self._tables = [_Counts() for _ in range(order)]

    @classmethod
    def count(
        cls,
        vocabulary_size: int,
        order: int,
        batches: Iterable[tuple[IntArray, IntArray]],
    ) -> "NgramModel":
        """Counts batches of (tokens, targets)."""
        model = cls(vocabulary_size, order)
        for tokens, targets in batches:
            for n, table in enumerate(model._tables, start=1):
                asked = targets[:, n - 1 :] != IGNORE
                table.add(model._codes(tokens, targets, n)[asked])
        for table in model._tables:
            table.derive_histories(model._base)
        return model

    def negative_log_likelihood(
        self, tokens: IntArray, targets: IntArray, order: int
    ) -> NDArray[np.float64]:
        """-log p of every target given up to `order` - 1 tokens before it in its row: (B, L + 1).

        NaN where it is IGNORE.
        """
        probability = np.full(targets.shape, 1 / self._base)
        for n in range(1, min(order, targets.shape[1]) + 1):
            codes = self._codes(tokens, targets, n)
            grams = self._tables[n - 1]
            total, kinds = grams.history(codes // self._base)
            lower = probability[:, n - 1 :]
            smoothed = (grams.of(codes) + kinds * lower) / np.maximum(total + kinds, 1)
            probability[:, n - 1 :] = np.where(total > 0, smoothed, lower)
        return np.where(targets == IGNORE, np.nan, -np.log(probability))

    def _codes(self, tokens: IntArray, targets: IntArray, n: int) -> IntArray:
        """Numbers of the n-grams that end at targets n - 1, n, ...: (B, L + 2 - n)."""
        length = targets.shape[1] - n + 1
        codes = np.zeros((len(targets), max(length, 0)), dtype=np.int64)
        for offset in range(n - 1):
            codes = codes * self._base + tokens[:, offset : offset + length]
        return codes * self._base + np.maximum(targets[:, n - 1 :], 0)


class _Counts:
    """How often each n-gram was seen; and, for each history, its total and its kinds."""

    def __init__(self) -> None:
        self._codes: IntArray = np.empty(0, dtype=np.int64)
        self._values: IntArray = np.empty(0, dtype=np.int64)

    def add(self, codes: IntArray) -> None:
        new, counts = np.unique(codes, return_counts=True)
        merged = np.concatenate([self._codes, new])
        values = np.concatenate([self._values, counts])
        self._codes, places = np.unique(merged, return_inverse=True)
        self._values = np.bincount(places, values, minlength=len(self._codes)).astype(np.int64)

    def derive_histories(self, base: int) -> None:
        self._histories, first, self._kinds = np.unique(
            self._codes // base, return_index=True, return_counts=True
        )
        self._totals = np.add.reduceat(self._values, first) if len(first) else self._values

    def of(self, codes: IntArray) -> IntArray:
        return _look_up(self._codes, self._values, codes)

    def history(self, codes: IntArray) -> tuple[IntArray, IntArray]:
        return (
            _look_up(self._histories, self._totals, codes),
            _look_up(self._histories, self._kinds, codes),
        )


def _look_up(keys: IntArray, values: IntArray, wanted: IntArray) -> IntArray:
    if len(keys) == 0:
        return np.zeros(wanted.shape, dtype=np.int64)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)
