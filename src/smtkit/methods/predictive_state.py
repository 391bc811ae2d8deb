"""The teacher's joint objective: memories that predict the future, and that a cell can follow.

Paper equations 2 to 5 (decoding, dynamics, uniformity); the dense term is ours: the readout's
cross-entropy at all positions.
"""

import operator
from collections.abc import Mapping

import torch
from torch import Tensor

from smtkit import objectives
from smtkit.config import PredictiveStateConfig
from smtkit.convention import IGNORE
from smtkit.data.windows import TeacherBatch
from smtkit.models.teacher import Teacher, select

_COLLAPSE = {
    "memory_uniformity": (operator.gt, -0.1),
    "memory_variance": (operator.lt, 0.01),
    "memory_effective_rank": (operator.lt, 1.5),
}


class PredictiveState:
    """Encoder, decoder, cell and readout trained together."""

    def __init__(self, teacher: Teacher, config: PredictiveStateConfig, window: int) -> None:
        self.network = teacher
        self._config = config
        self._window = window
        self._future = window if config.future_length == "rest" else config.future_length

    def weights(self, step: int) -> dict[str, float]:
        """Weight of each term. Dynamics are ramped in: at full weight from the start they would
        collapse the memory before it predicts anything."""
        config = self._config
        since = step - config.dynamics_start
        ramp = 0.0 if since < 0 else min(1.0, (since + 1) / max(1, config.dynamics_ramp))
        return {
            "decoding": config.decoding_weight,
            "dense": config.dense_weight,
            "dynamics": config.dynamics_weight * ramp,
            "readout": config.readout_weight * ramp,
            "uniformity": config.uniformity_weight,
        }

    def counts(self, batch: TeacherBatch) -> dict[str, int]:
        """Number of terms in each sum of `losses`."""
        return {
            "decoding": int((self._future_targets(batch) != IGNORE).sum()),
            "dense": int((self._dense_targets(batch) != IGNORE).sum()),
            "dynamics": batch.dynamics_positions.numel(),
            "readout": int((self._transition_targets(batch) != IGNORE).sum()),
            "uniformity": len(batch.tokens) // self._config.uniformity_group,
        }

    def losses(self, batch: TeacherBatch) -> dict[str, Tensor]:
        """Sums of each term over the batch."""
        memory = self._encode(batch)
        predicted = self._predict(memory, batch)
        return {
            "decoding": self._decoding(memory, batch),
            "dense": objectives.cross_entropy(
                self.network.read(memory.flatten(0, 1)), self._dense_targets(batch)
            ),
            "dynamics": objectives.dynamics(
                predicted, select(memory, batch.dynamics_positions + 1).flatten(0, 1)
            ),
            "readout": objectives.cross_entropy(
                self.network.read(predicted), self._transition_targets(batch)
            ),
            "uniformity": self._uniformity(memory, batch),
        }

    @torch.no_grad()
    def diagnostics(self, batch: TeacherBatch) -> dict[str, float]:
        """Health of the memories of the batch."""
        memory = select(self._encode(batch), batch.uniformity_positions)
        health = objectives.memory_health(memory.flatten(0, 1))
        return {f"memory_{name}": value for name, value in health.items()}

    def concern(self, metrics: Mapping[str, float]) -> str | None:
        """What the user should know of these diagnostics, if anything."""
        for name, (holds, limit) in _COLLAPSE.items():
            if holds(metrics[name], limit):
                return (
                    f"memory collapses: {name} is {metrics[name]:.3g} (limit {limit:g}); try a "
                    "smaller objective.dynamics_weight, a later objective.dynamics_start, or more "
                    "objective.uniformity_weight"
                )
        return None

    def _encode(self, batch: TeacherBatch) -> Tensor:
        return self.network.encoder(batch.tokens[:, : self._window])

    def _decoding(self, memory: Tensor, batch: TeacherBatch) -> Tensor:
        anchored = select(memory, batch.anchors).flatten(0, 1)  # (B A, K, D)
        offsets = torch.arange(self._future, device=memory.device)
        future = select(batch.tokens, self._from_anchors(batch, offsets))
        logits = self.network.decoder(anchored, future.reshape(len(anchored), -1))
        return objectives.cross_entropy(logits, self._future_targets(batch))

    def _future_targets(self, batch: TeacherBatch) -> Tensor:
        offsets = torch.arange(self._future + 1, device=batch.targets.device)
        positions = self._from_anchors(batch, offsets)
        targets = select(batch.targets, positions)
        length = batch.length[:, None]
        padding = (positions > length) & (length < self._window)
        return targets.masked_fill(padding, IGNORE)

    @staticmethod
    def _from_anchors(batch: TeacherBatch, offsets: Tensor) -> Tensor:
        """(B, A * len(offsets)) positions."""
        return (batch.anchors[:, :, None] + offsets).flatten(1)

    def _dense_targets(self, batch: TeacherBatch) -> Tensor:
        """Targets at 0..length; beyond it there is padding, or the decoder's look-ahead."""
        targets = batch.targets[:, : self._window + 1]
        positions = torch.arange(targets.shape[1], device=targets.device)
        return targets.masked_fill(positions > batch.length[:, None], IGNORE)

    def _predict(self, memory: Tensor, batch: TeacherBatch) -> Tensor:
        """The co-trained cell's transitions at the sampled positions, (B P, K, D)."""
        positions = batch.dynamics_positions
        before = select(memory, positions).flatten(0, 1)
        return self.network.cell(before, select(batch.tokens, positions).flatten())

    @staticmethod
    def _transition_targets(batch: TeacherBatch) -> Tensor:
        return select(batch.targets, batch.dynamics_positions + 1)

    def _uniformity(self, memory: Tensor, batch: TeacherBatch) -> Tensor:
        compared = select(memory, batch.uniformity_positions)  # (B, U, K, D)
        groups = compared.unflatten(0, (-1, self._config.uniformity_group)).flatten(1, 2)
        return objectives.uniformity(groups).sum()
