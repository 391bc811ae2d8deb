"""Backpropagation through time: the baseline, and the fine-tuning of an RNN trained otherwise."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smtkit import IGNORE
from smtkit.corpus.windows import WindowReader, Windows
from smtkit.methods import losses
from smtkit.methods.base import QuietMethod
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.training.order import SampleOrder


@dataclass(frozen=True)
class SequenceBatch:
    """Whole windows: tokens (B, T), targets (B, T + 1), length (B,). T: of the longest."""

    tokens: Tensor
    targets: Tensor
    length: Tensor

    @property
    def tokens_read(self) -> int:
        return int(self.length.sum())


class SequenceSampler:
    """Batches of whole windows of tokens, in the shuffled order."""

    def __init__(
        self, windows: WindowReader, *, batch_size: int, seed: int, by_length: bool = True
    ) -> None:
        self._windows = windows
        lengths = windows.lengths() if by_length else None
        self._order = SampleOrder(windows.per_epoch, batch_size, seed, lengths)
        self._seed = seed

    def batch(self, step: int, part: int = 0, parts: int = 1) -> SequenceBatch:
        entries = self._order.entries(step, part, parts)
        epochs, rows = self._order.rows(entries)
        return as_sequences(self._windows.read(self._windows.starts(epochs, rows, self._seed)))


def as_sequences(windows: Windows) -> SequenceBatch:
    """Without the padding that all have."""
    longest = int(windows.length.max())
    return SequenceBatch(
        torch.from_numpy(windows.tokens[:, :longest]),
        torch.from_numpy(windows.targets[:, : longest + 1]),
        torch.from_numpy(windows.length),
    )


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
        return {"readout": losses.cross_entropy(logits, batch.targets.flatten()[asked])}

    def _memories(self, tokens: Tensor) -> Iterator[Tensor]:
        memory = self.network.start(len(tokens))
        yield memory[:, None]
        for some in tokens.split(self._window or max(1, tokens.shape[1]), dim=1):
            memories = self.network.rollout(some, memory)[:, 1:]
            memory = memories[:, -1].detach()
            yield memories
