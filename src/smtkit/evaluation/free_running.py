"""The RNN's own rollout from the empty memory, and its nll and accuracy as a validation measure.

N: sequences, T: tokens, K: slots, D: slot width, V: vocabulary.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from smtkit import IGNORE
from smtkit.methods import losses
from smtkit.methods.bptt import SequenceBatch
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.networks.teacher import Teacher
from smtkit.training.protocols import FREE_RUNNING_ACCURACY

POSITIONS = 32
"""Positions per sequence whose memories and logits are held at once."""

Rollout = Callable[[Tensor, Tensor], Tensor]
"""tokens (N, n), memory (N, K, D) -> the memories after each token, (N, n, K, D)."""


def rollout_of(network: RecurrentNetwork) -> Rollout:
    return lambda tokens, memory: network.rollout(tokens, memory)[:, 1:]


def rollout_in_pieces(
    rollout: Rollout, tokens: Tensor, memory: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """(first position, memories (N, n, K, D)) for all positions 0..T, at most POSITIONS at once.

    tokens (N, T); memory (N, K, D) is the one at position 0.
    """
    yield 0, memory[:, None]
    for first in range(0, tokens.shape[1], POSITIONS):
        memories = rollout(tokens[:, first : first + POSITIONS], memory)
        memory = memories[:, -1]
        yield first + 1, memories


class FreeRunning:
    """Nll and accuracy over all targets, predicted from an RNN's own rollout.

    readout: memory (N, K, D) -> logits (N, V); empty: the memory to start from, (K, D).
    """

    def __init__(
        self, rollout: Rollout, readout: Callable[[Tensor], Tensor], empty: Callable[[], Tensor]
    ) -> None:
        self._rollout = rollout
        self._readout = readout
        self._empty = empty

    @classmethod
    def of_network(cls, network: RecurrentNetwork) -> "FreeRunning":
        return cls(rollout_of(network), network.readout, lambda: network.empty_memory)

    @classmethod
    def of_teacher(cls, teacher: Teacher) -> "FreeRunning":
        """Measures the co-trained cell with the dense readout."""
        return cls(
            lambda tokens, memory: teacher.transition.rollout(memory, tokens),
            teacher.read,
            teacher.encoder.empty_memory,
        )

    def counts(self, batch: SequenceBatch) -> dict[str, int]:
        """Number of targets, for both terms."""
        targets = int((batch.targets != IGNORE).sum())
        return {"free_running_nll": targets, FREE_RUNNING_ACCURACY: targets}

    @torch.no_grad()
    def losses(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """Sum of the nll in nats, and number of targets that are the likeliest token."""
        nll = torch.zeros((), device=batch.tokens.device)
        correct = torch.zeros((), device=batch.tokens.device)
        empty = self._empty().expand(len(batch.tokens), -1, -1)
        for first, memories in rollout_in_pieces(self._rollout, batch.tokens, empty):
            targets = batch.targets[:, first : first + memories.shape[1]]
            has_target = targets != IGNORE
            logits = self._readout(memories[has_target])
            nll += losses.cross_entropy(logits, targets[has_target])
            correct += (logits.argmax(-1) == targets[has_target]).sum()
        return {"free_running_nll": nll, FREE_RUNNING_ACCURACY: correct}
