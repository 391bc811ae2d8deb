"""Supervised Memory Training of the RNN: one-step regression on stored memories.

Paper equation 6, plus the readout's cross-entropy on the predicted memory. A batch is a flat set of
transitions and the cell is called once: it is never unrolled.
"""

from collections.abc import Mapping

from torch import Tensor

from smtkit import objectives
from smtkit.config import TransitionObjectiveConfig
from smtkit.convention import IGNORE
from smtkit.data.labels import TransitionBatch
from smtkit.models.rnn import RecurrentNetwork


class SupervisedMemoryTraining:
    """The cell learns `(memory[i], tokens[i]) -> memory[i + 1]`, the readout to predict from it."""

    def __init__(self, network: RecurrentNetwork, config: TransitionObjectiveConfig) -> None:
        self.network = network
        self._config = config

    def weights(self, step: int) -> dict[str, float]:
        return {
            "dynamics": self._config.dynamics_weight,
            "readout": self._config.readout_weight,
        }

    def counts(self, batch: TransitionBatch) -> dict[str, int]:
        """Number of terms in each sum of `losses`."""
        asked = (batch.target != IGNORE).sum() + (batch.first_target != IGNORE).sum()
        return {"dynamics": len(batch.token), "readout": int(asked)}

    def losses(self, batch: TransitionBatch) -> dict[str, Tensor]:
        """Sums of each term over the batch."""
        predicted = self.network.step(batch.before.float(), batch.token)
        empty = self.network.start(len(batch.first_target))
        return {
            "dynamics": objectives.dynamics(predicted, batch.after),
            "readout": objectives.cross_entropy(self.network.readout(predicted), batch.target)
            + objectives.cross_entropy(self.network.readout(empty), batch.first_target),
        }

    def diagnostics(self, batch: TransitionBatch) -> dict[str, float]:
        return {}

    def concern(self, metrics: Mapping[str, float]) -> str | None:
        return None
