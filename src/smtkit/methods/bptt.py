"""Backpropagation through time: the baseline, and the fine-tuning of an RNN trained otherwise.

B: sequences, T: longest sequence of the batch, K: slots, D: slot width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smtkit import IGNORE
from smtkit.corpus.windows import Windows
from smtkit.methods import losses
from smtkit.methods.base import QuietMethod, WindowSampler
from smtkit.networks.rnn import RecurrentNetwork


@dataclass(frozen=True)
class SequenceBatch:
    """Whole windows: tokens (B, T), targets (B, T + 1), length (B,)."""

    tokens: Tensor
    targets: Tensor
    length: Tensor

    @classmethod
    def of(cls, windows: Windows) -> "SequenceBatch":
        """Windows without the padding that all of them have."""
        longest = int(windows.length.max())
        return cls(
            torch.from_numpy(windows.tokens[:, :longest]),
            torch.from_numpy(windows.targets[:, : longest + 1]),
            torch.from_numpy(windows.length),
        )

    @property
    def tokens_read(self) -> int:
        return int(self.length.sum())


class SequenceSampler(WindowSampler):
    """Batches of whole windows."""

    def batch(self, step: int, part: int = 0, parts: int = 1) -> SequenceBatch:
        """Slice `part` of `parts` of the batch of `step`."""
        return SequenceBatch.of(self._read(step, part, parts)[2])


class BackpropagationThroughTime(QuietMethod):
    """Cross-entropy of the readout at every position, from a learned empty memory.

    `window`: number of steps through which gradients flow back (Williams & Peng 1990); None: all.
    Truncation does not save memory: the graphs of all windows are kept until one backward pass.
    """

    def __init__(self, network: RecurrentNetwork, window: int | None) -> None:
        self.network = network
        self.state = nn.Module()
        self._window = window

    def weights(self, step: int, done: float = 0.0) -> dict[str, float]:
        return {"readout": 1.0}

    def counts(self, batch: SequenceBatch) -> dict[str, int]:
        """Number of targets."""
        return {"readout": int((batch.targets != IGNORE).sum())}

    def losses(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """Sum of the nll over all targets."""
        memory = torch.cat(list(self._rollout(batch.tokens)), dim=1)  # (B, T + 1, K, D)
        has_target = batch.targets != IGNORE
        logits = self.network.readout(memory[has_target])
        return {"readout": losses.cross_entropy(logits, batch.targets[has_target])}

    def _rollout(self, tokens: Tensor) -> Iterator[Tensor]:
        """The empty memory (B, 1, K, D), then the memories after the tokens of each window."""
        memory = self.network.start(len(tokens))
        yield memory[:, None]
        for window in tokens.split(self._window or max(1, tokens.shape[1]), dim=1):
            memories = self.network.rollout(window, memory)[:, 1:]
            memory = memories[:, -1].detach()
            yield memories
