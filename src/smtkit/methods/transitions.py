"""What `smt` and `dmt` share: the objective of a memory that a cell has predicted.

Paper equation 6, plus the readout's cross-entropy, plus, if asked for, what the teacher's decoder
says of label and predicted memory. N: transitions, K: slots, D: slot width, M: those of the N whose
futures are compared.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from smtkit import objectives
from smtkit.config import TransitionObjectiveConfig
from smtkit.convention import IGNORE
from smtkit.data.transitions import RolloutBatch, TransitionBatch
from smtkit.methods.base import QuietMethod
from smtkit.models.rnn import RecurrentNetwork
from smtkit.models.teacher import FutureDecoder


class MeasuredError(nn.Module):
    """How far predicted memories were from their labels at the last update: a mean square."""

    squared: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("squared", torch.zeros(()))


class TransitionMethod(QuietMethod):
    """Weights, counts and sums of the terms; a method says which memories it predicts from.

    `decoder` is the teacher's, frozen; it is needed where `kl_weight` is not zero.
    """

    def __init__(
        self,
        network: RecurrentNetwork,
        config: TransitionObjectiveConfig,
        decoder: FutureDecoder | None = None,
    ) -> None:
        self.network = network
        self.state = MeasuredError()
        self._config = config
        self._decoder = decoder.eval().requires_grad_(False) if decoder is not None else None

    def weights(self, step: int) -> dict[str, float]:
        return {
            "dynamics": self._config.dynamics_weight,
            "readout": self._config.readout_weight,
            "divergence": self._config.kl_weight,
        }

    def observe(self, step: int, means: Mapping[str, Tensor]) -> None:
        """Notes how far predicted memories are from their labels: what noise is measured by."""
        if self._config.noise:
            self.state.squared.copy_(means["dynamics"])

    def _counts(self, target: Tensor, batch: TransitionBatch | RolloutBatch) -> dict[str, int]:
        asked = (target != IGNORE).sum() + (batch.first_target != IGNORE).sum()
        counts = {"dynamics": len(target), "readout": int(asked)}
        if len(batch.compared):
            counts["divergence"] = int((batch.future_length + 1).sum())
        return counts

    def _sums(
        self,
        predicted: Tensor,
        after: Tensor,
        target: Tensor,
        batch: TransitionBatch | RolloutBatch,
    ) -> dict[str, Tensor]:
        """Of predicted memories and their labels, (N, K, D); targets (N,)."""
        read = predicted.detach() if self._config.detach_readout else predicted
        empty = self.network.start(len(batch.first_target))
        sums = {
            "dynamics": objectives.dynamics(predicted, after),
            "readout": objectives.cross_entropy(self.network.readout(read), target)
            + objectives.cross_entropy(self.network.readout(empty), batch.first_target),
        }
        if len(batch.compared):
            sums["divergence"] = self._divergence(predicted, after, batch)
        return sums

    def _divergence(
        self, predicted: Tensor, after: Tensor, batch: TransitionBatch | RolloutBatch
    ) -> Tensor:
        assert self._decoder is not None
        with torch.no_grad():
            label = self._decoder(after[batch.compared].to(predicted.dtype), batch.future)
        said = self._decoder(predicted[batch.compared], batch.future)  # (M, F + 1, V)
        there = torch.arange(said.shape[1], device=said.device) <= batch.future_length[:, None]
        return objectives.divergence(label[there], said[there])

    def _disturbed(self, memory: Tensor, noise: Tensor) -> Tensor:
        """In training, memories with Gaussian noise, in multiples of the error of the update
        before: of `smt` that of one step, of `dmt` the drift of its rollout."""
        if not self._config.noise or not self.network.training:
            return memory
        return memory + self._config.noise * self.state.squared.sqrt() * noise.view_as(memory)
