"""Baselines: unigram, bigram and trigram models counted on the training split.

Interpolated Witten-Bell smoothing (Witten & Bell 1991):

    p_n(w | h) = (c(h w) + t(h) p_{n-1}(w | h')) / (c(h) + t(h))

with c counts, t(h) the number of different tokens seen after h, h' without its first, p_0 uniform.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


class NgramModel:
    """Counts of all n-grams up to `order`, n-grams as numbers in base V."""

    def __init__(self, vocabulary_size: int, order: int) -> None:
        if vocabulary_size**order >= 2**63:
            raise ValueError(f"{vocabulary_size}**{order} n-grams do not fit 63 bits")
        self.order = order
        self._base = vocabulary_size
        self._tables = [_Counts() for _ in range(order)]

    @classmethod
    def count(
        cls, vocabulary_size: int, order: int, blocks: Iterable[NDArray[Any]]
    ) -> "NgramModel":
        """Counts a stream of tokens that comes in blocks."""
        model = cls(vocabulary_size, order)
        carried = np.empty(0, dtype=np.int64)
        for block in blocks:
            tokens = np.concatenate([carried, block.astype(np.int64)])
            for n, table in enumerate(model._tables, start=1):
                # An n-gram counts in the block that its last token belongs to.
                table.add(model._codes(tokens[max(0, len(carried) - n + 1) :], n))
            carried = tokens[max(0, len(tokens) - order + 1) :]
        for table in model._tables:
            table.derive_histories(model._base)
        return model

    def negative_log_likelihood(self, tokens: IntArray, order: int) -> NDArray[np.float64]:
        """-log p of every token of rows (B, L) given up to `order` - 1 before it in its row."""
        probability = np.full(tokens.shape, 1 / self._base)
        for n in range(1, order + 1):
            if tokens.shape[1] < n:
                break
            codes = self._codes(tokens, n)
            grams = self._tables[n - 1]
            total, kinds = grams.history(codes // self._base)
            lower = probability[:, n - 1 :]
            smoothed = (grams.of(codes) + kinds * lower) / np.maximum(total + kinds, 1)
            probability[:, n - 1 :] = np.where(total > 0, smoothed, lower)
        return -np.log(probability)

    def _codes(self, tokens: IntArray, n: int) -> IntArray:
        """Numbers of the n-grams that end at positions n - 1, n, ... of the last axis."""
        length = tokens.shape[-1] - n + 1
        if length <= 0:
            return np.empty((*tokens.shape[:-1], 0), dtype=np.int64)
        codes = np.zeros((*tokens.shape[:-1], length), dtype=np.int64)
        for offset in range(n):
            codes = codes * self._base + tokens[..., offset : offset + length]
        return codes


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
