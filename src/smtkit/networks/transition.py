"""The transition: (memory before a token, the token) -> memory after it.

N: sequences, T: steps, K: slots, D: slot width.
"""

import torch
from torch import Tensor, nn

from smtkit.config import CellConfig
from smtkit.networks.cells import build_cell
from smtkit.networks.inputs import TokenEmbedding


class Transition(nn.Module):
    """Input embedding and cell: (memory (N, K, D), tokens (N,)) -> next memory (N, K, D).

    The teacher and the RNN use the same module, so the state dict of one loads into the other.
    """

    def __init__(
        self, config: CellConfig, vocabulary_size: int, slots: int, slot_width: int
    ) -> None:
        super().__init__()
        self.input = TokenEmbedding(vocabulary_size, config.width)
        self.cell = build_cell(config, slots, slot_width)

    def forward(self, memory: Tensor, tokens: Tensor) -> Tensor:
        return self.cell(memory, self.input(tokens))

    def rollout(self, memory: Tensor, tokens: Tensor) -> Tensor:
        """The memory after each token: (N, K, D), (N, T) -> (N, T, K, D)."""
        return self.cell.rollout(memory, self.input(tokens))

    def trajectory(self, memory: Tensor, tokens: Tensor) -> Tensor:
        """The memory before and after each token: (N, K, D), (N, T) -> (N, T + 1, K, D)."""
        if not tokens.shape[1]:
            return memory[:, None]
        return torch.cat((memory[:, None], self.rollout(memory, tokens)), dim=1)
