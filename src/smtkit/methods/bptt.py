"""Backpropagation through time: the baseline, and the fine-tuning of an RNN trained otherwise."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from smtkit import objectives
from smtkit.convention import IGNORE
from smtkit.data.transitions import SequenceBatch
from smtkit.methods.base import QuietMethod
from smtkit.models.rnn import RecurrentNetwork


class BackpropagationThroughTime(QuietMethod):
    """Cross-entropy of the readout after every step, from a learned empty memory.

    `window`: steps through which a gradient flows back (Williams & Peng 1990); None: all. It saves
    no memory: the graphs of all windows are kept until the one backward pass.
    """

    def __init__(self, network: RecurrentNetwork, window: int | None) -> None:
        self.network = network
        self.state = nn.Module()
        self._window = window

    def weights(self, step: int) -> dict[str, float]:
        return {"readout": 1.0}

    def counts(self, batch: SequenceBatch) -> dict[str, int]:
        """Number of targets asked."""
        return {"readout": int((batch.targets != IGNORE).sum())}

    def losses(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """Sum of the nll of all targets."""
        memories = torch.cat(list(self._memories(batch.tokens)), dim=1)  # (B, T + 1, K, D)
        asked = batch.targets.flatten() != IGNORE
        logits = self.network.readout(memories.flatten(0, 1)[asked])
        return {"readout": objectives.cross_entropy(logits, batch.targets.flatten()[asked])}

    def _memories(self, tokens: Tensor) -> Iterator[Tensor]:
        memory = self.network.start(len(tokens))
        yield memory[:, None]
        for some in tokens.split(self._window or max(1, tokens.shape[1]), dim=1):
            memories = self.network.rollout(some, memory)[:, 1:]
            memory = memories[:, -1].detach()
            yield memories
