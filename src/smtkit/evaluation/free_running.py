"""How well a recurrent network predicts on its own: from the empty memory, by its own rollout.

N: sequences, T: tokens, K: slots, D: slot width.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from smtkit import IGNORE
from smtkit.methods import losses
from smtkit.methods.bptt import SequenceBatch
from smtkit.networks.cells import Cell
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.networks.teacher import Teacher
from smtkit.training.protocols import FREE_RUNNING_ACCURACY

_STEPS = 32  # of which memories are held at once


class FreeRunning:
    """Nll and accuracy of all targets, in inference: `empty()` is the first memory (K, D)."""

    def __init__(
        self, cell: Cell, read: Callable[[Tensor], Tensor], empty: Callable[[], Tensor]
    ) -> None:
        self._cell = cell
        self._read = read
        self._empty = empty

    @classmethod
    def of_network(cls, network: RecurrentNetwork) -> "FreeRunning":
        return cls(network.cell, network.readout, lambda: network.empty_memory)

    @classmethod
    def of_teacher(cls, teacher: Teacher) -> "FreeRunning":
        """Of the co-trained cell, with the dense readout."""
        return cls(teacher.cell, teacher.read, teacher.encoder.empty_memory)

    def counts(self, batch: SequenceBatch) -> dict[str, int]:
        """Number of targets asked."""
        asked = int((batch.targets != IGNORE).sum())
        return {"free_running_nll": asked, FREE_RUNNING_ACCURACY: asked}

    @torch.no_grad()
    def losses(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """Sum of the nll, and number of targets that are the likeliest token."""
        nll = torch.zeros((), device=batch.tokens.device)
        right = torch.zeros((), device=batch.tokens.device)
        for first, memory in self._memories(batch.tokens):
            targets = batch.targets[:, first : first + memory.shape[1]].flatten()
            asked = targets != IGNORE
            logits = self._read(memory.flatten(0, 1)[asked])
            nll += losses.cross_entropy(logits, targets[asked])
            right += (logits.argmax(-1) == targets[asked]).sum()
        return {"free_running_nll": nll, FREE_RUNNING_ACCURACY: right}

    def _memories(self, tokens: Tensor) -> Iterator[tuple[int, Tensor]]:
        """First position and memories (N, n, K, D), a few steps at a time, of positions 0..T."""
        memory = self._empty().expand(len(tokens), -1, -1)
        yield 0, memory[:, None]
        for first in range(0, tokens.shape[1], _STEPS):
            memories = self._cell.rollout(memory, tokens[:, first : first + _STEPS])
            memory = memories[:, -1]
            yield first + 1, memories
