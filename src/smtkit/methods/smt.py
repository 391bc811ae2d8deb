"""Supervised Memory Training of the RNN: one-step regression on stored memories.

A label is the teacher's memory at a position of a window. A batch is a flat set of transitions
`(memory[i], tokens[i]) -> memory[i + 1]` between labels, and the cell is called once on all of
them: the RNN is never unrolled. The terms of the loss, which `dmt` shares, are in `transitions.py`.

B: windows, P: transitions per window, N = B P, K: slots, D: slot width.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from smtkit.corpus.seeded import IntArray, random_key, stratified
from smtkit.labels.codec import EncodedMemory
from smtkit.methods.transitions import LabelBatch, LabelSampler, TransitionMethod


@dataclass(frozen=True, kw_only=True)
class TransitionBatch(LabelBatch):
    """N transitions: from the label `before`, on reading `token` (N,), to the label `after`."""

    token: Tensor

    @property
    def before(self) -> Tensor:
        """(N, K, D): the label of the memory before each transition."""
        return self.memory.decode(self.index)


@dataclass
class TransitionSampler(LabelSampler):
    """Batches of P = `positions` transitions per window, evenly spaced from a random phase."""

    positions: int = field(kw_only=True)

    def batch(self, step: int, part: int = 0, parts: int = 1) -> TransitionBatch:
        """Slice `part` of `parts` of the batch of `step`."""
        samples, rows, windows = self._read(step, part, parts)
        key = random_key(self.seed, "transitions")
        drawn = stratified(key, samples, self.positions, windows.length)  # (B, P)
        memory, index = self._labels(rows, drawn, longest=int(windows.length.max()))
        window, position = np.repeat(np.arange(len(rows)), self.positions), drawn.reshape(-1)
        return TransitionBatch(
            memory=memory,
            index=torch.from_numpy(index),
            token=torch.from_numpy(windows.tokens[window, position]),
            noise=self._noise(samples, np.full(len(rows), self.positions)),
            **self._loss_fields(samples, windows, window, position),
        )

    def _labels(
        self, rows: IntArray, positions: IntArray, longest: int
    ) -> tuple[EncodedMemory, IntArray]:
        """The labels between which the transitions lie, and the index (N,) in them of the label at
        each of the `positions` (B, P); the label after the transition is the next one.

        Reads the two labels of each transition or, if these are not fewer, all of each window.
        """
        before = self.windows.shape.before(positions)
        if 2 * self.positions <= longest:
            pairs = (before[:, :, None] + np.arange(2)).reshape(len(rows), -1)  # (B, 2 P)
            return self.windows.memories(rows, pairs), np.arange(0, pairs.size, 2)
        count = self.windows.shape.stored(longest)
        index = np.arange(len(rows))[:, None] * count + before
        return self.windows.memories(rows, range(count)), index.reshape(-1)


class SupervisedMemoryTraining(TransitionMethod):
    """Trains the cell to predict the label after each transition, and the readout to predict the
    target from the predicted memory."""

    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """Sum of each term over the batch."""
        before = self._with_noise(batch.before, batch.noise)
        predicted = self.network.step(before, batch.token)
        return self._sums(predicted, batch)
