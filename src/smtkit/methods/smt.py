"""Supervised Memory Training of the RNN: one-step regression on stored memories.

A batch is a flat set of transitions and the cell is called once: it is never unrolled.
"""

from torch import Tensor

from smtkit.data.transitions import TransitionBatch
from smtkit.methods.transitions import TransitionMethod


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
