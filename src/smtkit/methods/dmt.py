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
        empty = batch.empty.float()
        after = batch.after[:, 0].float()
        memory = self._disturbed(batch.start.float(), batch.tokens[:, 0], after, batch.noise)
        predicted = []
        for step, token in enumerate(batch.tokens.unbind(1)):
            begins = batch.restarts[:, step, None, None]
            memory = self.network.step(torch.where(begins, empty, memory), token)
            predicted.append(memory)
            memory = memory.detach()
        return torch.stack(predicted, dim=1)

    def _swept(self, batch: RolloutBatch) -> Tensor:
        """Memories after each step, (C, L, K, D): sweep k is k steps away from the labels."""
        chains, steps = batch.tokens.shape
        empty, after = batch.empty.float(), batch.after.float()
        begins = batch.restarts[:, :, None, None]
        tokens = batch.tokens.flatten()

        def ahead(memory: Tensor) -> Tensor:
            """Memories after each step to memories before each step."""
            before = torch.cat((batch.start[:, None].float(), memory[:, :-1]), dim=1)
            return torch.where(begins, empty, before)

        before = self._disturbed(
            ahead(after).flatten(0, 1), tokens, after.flatten(0, 1), batch.noise
        )
        with torch.no_grad():
            for _ in range(self._rollout.sweeps - 1):
                swept = self.network.step(before, tokens).unflatten(0, (chains, steps))
                before = ahead(swept).flatten(0, 1)
        return self.network.step(before, tokens).unflatten(0, (chains, steps))
