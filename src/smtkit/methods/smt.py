"""Supervised Memory Training of the RNN: one-step regression on stored memories.

A batch is a flat set of transitions and the cell is called once: it is never unrolled.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from smtkit.config import TransitionObjectiveConfig
from smtkit.corpus.seeded import IntArray, random_key, stratified
from smtkit.corpus.windows import Windows
from smtkit.labels.reader import LabelShards
from smtkit.methods.transitions import LabelBatch, LabelWindows, TransitionMethod, gather


@dataclass(frozen=True)
class TransitionBatch(LabelBatch):
    """A flat set of N = B P transitions: before, after (N, K, D); place, token, target (N,).

    `after` is the label of `(before, token)`, `target` what is to be predicted from it.
    """

    token: Tensor
    target: Tensor

    @property
    def before(self) -> Tensor:
        return self.labels(self.place)

    @property
    def after(self) -> Tensor:
        return self.labels(self.place + 1)

    @property
    def tokens_read(self) -> int:
        return len(self.token)


class TransitionSampler:
    """Batches of transitions: windows in the shuffled order, `positions` drawn in each.

    Here and below, `by_length`: a batch takes windows of one length; if not, of all that there are,
    in proportion.
    """

    def __init__(
        self,
        labels: LabelShards,
        objective: TransitionObjectiveConfig,
        *,
        batch_size: int,
        seed: int,
        positions: int,
        by_length: bool = True,
    ) -> None:
        self._windows = LabelWindows(labels, objective, batch_size, seed, by_length)
        self._positions = positions
        self._key = random_key(seed, "transitions")

    def batch(self, step: int, part: int = 0, parts: int = 1) -> TransitionBatch:
        entries, rows, windows = self._windows.read(step, part, parts)
        drawn = stratified(self._key, entries, self._positions, windows.length)
        return TransitionBatch(
            **self._windows.asked(entries, windows, list(drawn)),
            **self._memories(rows, windows, drawn),
            noise=self._windows.noise(entries, [self._positions] * len(rows)),
            token=gather(windows.tokens, drawn),
            target=gather(windows.targets, drawn + 1),
        )

    def _memories(self, rows: IntArray, windows: Windows, drawn: IntArray) -> dict[str, Tensor]:
        """Those before and after each transition; or, where these are as many, whole windows."""
        if 2 * self._positions > windows.length.max():
            return self._windows.whole(rows, windows, list(drawn))
        pairs = (drawn[:, :, None] + np.arange(2)).reshape(len(rows), -1)
        memory, scale = self._windows.labels.memories(rows, pairs)
        return {"memory": memory, "scale": scale, "place": torch.arange(0, len(memory), 2)}


class SupervisedMemoryTraining(TransitionMethod):
    """The cell learns `(memory[i], tokens[i]) -> memory[i + 1]`, the readout to predict from it."""

    def counts(self, batch: TransitionBatch) -> dict[str, int]:
        """Number of terms in each sum of `losses`."""
        return self._counts(batch.target, batch)

    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """Sums of each term over the batch."""
        before = self._disturbed(batch.before, batch.noise)
        predicted = self.network.step(before, batch.token)
        return self._sums(predicted, batch.after, batch.target, batch)
