"""DAgger memory training of the RNN: the one-step objective, from memories of its own rollout.

The label of a step is the teacher's memory, wherever the RNN has come to: so it learns to come back
(Ross et al. 2011). No gradient flows through the rollout: it reaches one step back.
"""

import torch
from torch import Tensor

from smtkit.config import RolloutConfig, TransitionObjectiveConfig
from smtkit.data.transitions import RolloutBatch
from smtkit.methods.transitions import TransitionMethod
from smtkit.models.rnn import RecurrentNetwork
from smtkit.models.teacher import FutureDecoder


class DaggerMemoryTraining(TransitionMethod):
    """Chains roll side by side from where they start; or, `jacobi`, all their steps at once, again
    and again."""

    def __init__(
        self,
        network: RecurrentNetwork,
        config: TransitionObjectiveConfig,
        rollout: RolloutConfig,
        decoder: FutureDecoder | None = None,
    ) -> None:
        super().__init__(network, config, decoder)
        self._rollout = rollout

    def counts(self, batch: RolloutBatch) -> dict[str, int]:
        """Number of terms in each sum of `losses`."""
        return self._counts(batch.target.flatten()[batch.learned], batch)

    def losses(self, batch: RolloutBatch) -> dict[str, Tensor]:
        """Sums of each term over the steps that are learned from."""
        predicted = self._swept(batch) if self._rollout.kind == "jacobi" else self._rolled(batch)
        return self._sums(
            predicted.flatten(0, 1)[batch.learned],
            batch.after.flatten(0, 1)[batch.learned].float(),
            batch.target.flatten()[batch.learned],
            batch,
        )

    def _rolled(self, batch: RolloutBatch) -> Tensor:
        """Memories after each step, (C, L, K, D), one step after the other."""
        empty = self.network.empty_memory
        memory = self._disturbed(batch.start.float(), batch.noise)
        predicted = []
        for begins, token in zip(batch.restarts.unbind(1), batch.tokens.unbind(1), strict=True):
            before = torch.where(begins[:, None, None], empty, memory)
            predicted.append(self.network.step(before, token))
            memory = predicted[-1].detach()
        return torch.stack(predicted, dim=1)

    def _swept(self, batch: RolloutBatch) -> Tensor:
        """Memories after each step, (C, L, K, D): sweep k is k steps away from the labels."""
        shape = batch.tokens.shape
        first = self.network.start(len(batch.tokens))[:, None]

        def swept(memory: Tensor) -> Tensor:
            """Memories after each step, from those of the sweep before."""
            before = torch.cat((first, memory[:, :-1]), dim=1).flatten(0, 1)
            return self.network.step(before, batch.tokens.flatten()).unflatten(0, shape)

        memory = self._disturbed(batch.after.float(), batch.noise)
        with torch.no_grad():
            for _ in range(self._rollout.sweeps - 1):
                memory = swept(memory)
        return swept(memory)
