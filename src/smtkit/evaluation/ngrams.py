"""Baselines: unigram, bigram and trigram models counted on the training split.

Interpolated Witten-Bell smoothing (Witten & Bell 1991):

    p_n(w | h) = (c(h w) + t(h) p_{n-1}(w | h')) / (c(h) + t(h))

with c counts, t(h) the number of different tokens seen after h, h' without its first, p_0 uniform.

B: rows, L: tokens per row, V: vocabulary.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from smtkit import IGNORE
from smtkit.corpus.seeded import IntArray
from smtkit.corpus.shards import BATCH_TOKENS, is_stream, open_split
from smtkit.corpus.windows import open_windows
from smtkit.storage.artifact import Artifact


class NgramModel:
    """Counts of n-grams, each `order` - 1 tokens and the target that follows them.

    An n-gram is numbered by its tokens as digits in base V. Rows are tokens (B, L) and targets
    (B, L + 1), `targets[:, i]` following `tokens[:, :i]`: those of a text are its tokens, those of
    a task its answers. Where a target is IGNORE nothing is counted or predicted.

    Raises ValueError if the numbers do not fit 63 bits.
    """

    def __init__(self, vocabulary_size: int, order: int) -> None:
        if vocabulary_size**order >= 2**63:
            raise ValueError(f"{vocabulary_size}**{order} n-grams do not fit 63 bits")
        self._base = vocabulary_size
        self._tables = [_Counts() for _ in range(order)]

    @classmethod
    def count(
        cls, vocabulary_size: int, order: int, batches: Iterable[tuple[IntArray, IntArray]]
    ) -> "NgramModel":
        """The model of batches of (tokens, targets)."""
        model = cls(vocabulary_size, order)
        for tokens, targets in batches:
            for n, table in enumerate(model._tables, start=1):
                has_target = targets[:, n - 1 :] != IGNORE
                table.add(model._codes(tokens, targets, n)[has_target])
        return model

    def negative_log_likelihood(
        self, tokens: IntArray, targets: IntArray, order: int
    ) -> NDArray[np.float64]:
        """-log p of every target given up to `order` - 1 tokens before it in its row, (B, L + 1).

        NaN where the target is IGNORE.
        """
        probability = np.full(targets.shape, 1 / self._base)
        for n, table in enumerate(self._tables[: min(order, targets.shape[1])], start=1):
            codes = self._codes(tokens, targets, n)
            count, _ = table.between(codes, codes + 1)
            with_history = codes // self._base * self._base  # followed by token 0
            total, kinds = table.between(with_history, with_history + self._base)
            lower = probability[:, n - 1 :]
            smoothed = (count + kinds * lower) / np.maximum(total + kinds, 1)
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
    """Counts of n-grams, by number: a sorted array, which is smaller than a dictionary, and the sum
    of the counts before each."""

    def __init__(self) -> None:
        self._codes: IntArray = np.empty(0, dtype=np.int64)
        self._before: IntArray = np.zeros(1, dtype=np.int64)

    def add(self, codes: IntArray) -> None:
        counts = np.concatenate([np.diff(self._before), np.ones(len(codes))])
        merged = np.concatenate([self._codes, codes])
        self._codes, index = np.unique(merged, return_inverse=True)
        summed = np.bincount(index, counts, minlength=len(self._codes)).cumsum()
        self._before = np.concatenate([[0], summed]).astype(np.int64)

    def between(self, low: IntArray, high: IntArray) -> tuple[IntArray, IntArray]:
        """Sum of the counts of the n-grams numbered low..high - 1, and how many of them occur."""
        first, last = np.searchsorted(self._codes, low), np.searchsorted(self._codes, high)
        return self._before[last] - self._before[first], last - first


def count_ngrams(tokens: Artifact, vocabulary_size: int, order: int, limit: int) -> NgramModel:
    """The model of about the first `limit` tokens of the train split.

    Raises ArtifactError where the split is empty.
    """
    batches = _stream_batches(tokens, order, limit) if is_stream(tokens) else _rows(tokens, limit)
    return NgramModel.count(vocabulary_size, order, batches)


def _stream_batches(
    tokens: Artifact, order: int, limit: int
) -> Iterator[tuple[IntArray, IntArray]]:
    """The stream as long rows; each begins with the last `order` - 1 tokens of the one before, as
    history alone."""
    stream = open_split(tokens, "train")
    for start in range(0, min(stream.tokens, limit), BATCH_TOKENS):
        before = min(start, order - 1)
        count = min(BATCH_TOKENS, limit - start) + before
        targets = stream.read(start - before, count).astype(np.int64)[None]
        inputs = targets[:, :-1].copy()
        targets[:, :before] = IGNORE
        yield inputs, targets


def _rows(tokens: Artifact, limit: int) -> Iterator[tuple[IntArray, IntArray]]:
    windows = open_windows(tokens, "train", None)
    starts = windows.tiles()[: max(1, limit // windows.window)]
    per_batch = max(1, BATCH_TOKENS // windows.window)
    for first in range(0, len(starts), per_batch):
        rows = windows.read(starts[first : first + per_batch])
        yield rows.tokens, rows.targets
