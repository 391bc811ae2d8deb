"""DAgger memory training of the RNN: the one-step objective, from memories of its own rollout.

The label of a step is the teacher's memory, wherever the RNN has come to: so it learns to come back
(Ross et al. 2011). No gradient flows through the rollout: it reaches one step back.
"""

from collections.abc import Iterator
from contextlib import contextmanager

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
            predicted,
            batch.learned_after,
            batch.target.flatten()[batch.learned],
            batch,
        )

    def _rolled(self, batch: RolloutBatch) -> Tensor:
        """Memories after the N steps that are learned from, (N, K, D), one step after the other.

        The steps between leave neither a graph nor their memories behind.
        """
        steps = batch.tokens.shape[1]
        chains, offsets = batch.learned // steps, batch.learned % steps
        kept = offsets.unique()  # at which any chain learns
        memory = self._disturbed(batch.start, batch.noise)
        predicted: list[Tensor] = []
        done = 0
        for offset in kept.tolist():
            if done < offset:
                with _without_a_graph():
                    for between in range(done, offset):
                        memory = self._stepped(batch, memory, between)
            predicted.append(self._stepped(batch, memory, offset))
            memory, done = predicted[-1].detach(), offset + 1
        return torch.stack(predicted, dim=1)[chains, torch.searchsorted(kept, offsets)]

    def _stepped(self, batch: RolloutBatch, memory: Tensor, offset: int) -> Tensor:
        """(C, K, D) -> (C, K, D): every chain's step at `offset`."""
        begins = batch.restarts[:, offset, None, None]
        before = torch.where(begins, self.network.empty_memory, memory)
        return self.network.step(before, batch.tokens[:, offset])

    def _swept(self, batch: RolloutBatch) -> Tensor:
        """Memories after the N steps that are learned from, (N, K, D): sweep k is k steps away from
        the labels. The last sweep is of those steps alone."""
        shape, tokens = batch.tokens.shape, batch.tokens.flatten()
        first = self.network.start(len(batch.tokens))[:, None]

        def before(memory: Tensor) -> Tensor:
            """Memories before each step, in the flat C * L, from those after them, (C, L, K, D)."""
            return torch.cat((first, memory[:, :-1]), dim=1).flatten(0, 1)

        memory = self._disturbed(batch.after, batch.noise)
        with _without_a_graph():
            for _ in range(self._rollout.sweeps - 1):
                memory = self.network.step(before(memory), tokens).unflatten(0, shape)
        return self.network.step(before(memory)[batch.learned], tokens[batch.learned])


@contextmanager
def _without_a_graph() -> Iterator[None]:
    with torch.no_grad():
        yield
    # Of weights that autocast has cast here, older versions of torch would keep the casts, which no
    # gradient passes (pytorch/pytorch#158232).
    torch.clear_autocast_cache()
