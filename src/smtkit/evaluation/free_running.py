"""The RNN's own rollout from the empty memory, and its nll and accuracy as a validation measure.

N: sequences, T: tokens, n: positions, K: slots, D: slot width, V: vocabulary.
"""

from collections.abc import Callable, Iterator
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from smtkit import IGNORE
from smtkit.methods.bptt import SequenceBatch
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.networks.sampling import Sampling, sample_each
from smtkit.networks.teacher import Teacher
from smtkit.networks.transition import Transition
from smtkit.training.protocols import FREE_RUNNING_ACCURACY

POSITIONS = 32
"""Positions per sequence whose memories and logits are held at once."""

Readout = Callable[[Tensor], Tensor]
"""memory (N, K, D) -> logits (N, V)."""


def rollout_in_pieces(
    transition: Transition, memory: Tensor, tokens: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """(first position, memories (N, n, K, D)) for all positions 0..T, at most POSITIONS at once.

    memory (N, K, D) is the one at position 0; tokens (N, T).
    """
    yield 0, memory[:, None]
    for first in range(0, tokens.shape[1], POSITIONS):
        memories = transition.rollout(memory, tokens[:, first : first + POSITIONS])
        memory = memories[:, -1]
        yield first + 1, memories


def score_targets(readout: Readout, memories: Tensor, targets: Tensor) -> Tensor:
    """Nll in nats, and 1 where the target is the likeliest token, else 0: (2, N, n), float64.

    memories (N, n, K, D), targets (N, n). NaN where there is no target.
    """
    has_target = targets != IGNORE
    logits, expected = readout(memories[has_target]).float(), targets[has_target]
    scores = torch.full((2, *targets.shape), torch.nan, dtype=torch.float64, device=targets.device)
    scores[0, has_target] = F.cross_entropy(logits, expected, reduction="none").double()
    scores[1, has_target] = (logits.argmax(-1) == expected).double()
    return scores


class FreeRunning:
    """Nll and accuracy over all targets, predicted from an RNN's own rollout.

    empty: returns the memory to start from, (K, D).
    """

    def __init__(
        self, transition: Transition, readout: Readout, empty: Callable[[], Tensor]
    ) -> None:
        self._transition = transition
        self._readout = readout
        self._empty = empty

    @classmethod
    def of_network(cls, network: RecurrentNetwork) -> "FreeRunning":
        return cls(network.transition, network.readout, lambda: network.empty_memory)

    @classmethod
    def of_teacher(cls, teacher: Teacher) -> "FreeRunning":
        """Measures the co-trained cell with the dense readout."""
        return cls(teacher.transition, teacher.read, teacher.encoder.empty_memory)

    @torch.no_grad()
    def draw(self, count: int, **sampling: Unpack[Sampling]) -> list[int]:
        """Tokens drawn one after the other, from the empty memory."""
        memory, tokens = self._empty()[None], []
        for _ in range(count):
            token = sample_each(self._readout(memory).float(), **sampling)  # (1,)
            memory = self._transition(memory, token)
            tokens.append(int(token))
        return tokens

    def counts(self, batch: SequenceBatch) -> dict[str, int]:
        """Number of targets, for both terms."""
        targets = int((batch.targets != IGNORE).sum())
        return {"free_running_nll": targets, FREE_RUNNING_ACCURACY: targets}

    @torch.no_grad()
    def losses(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """Sum of the nll in nats, and number of targets that are the likeliest token."""
        sums = torch.zeros(2, device=batch.tokens.device)
        empty = self._empty().expand(len(batch.tokens), -1, -1)
        for first, memories in rollout_in_pieces(self._transition, empty, batch.tokens):
            targets = batch.targets[:, first : first + memories.shape[1]]
            sums += score_targets(self._readout, memories, targets).nansum((1, 2))
        return {"free_running_nll": sums[0], FREE_RUNNING_ACCURACY: sums[1]}
