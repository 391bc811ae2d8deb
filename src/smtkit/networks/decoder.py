"""The future decoder: from a memory and the tokens after it to logits of their targets."""

import torch
from torch import Tensor, nn

from smtkit.config import DecoderConfig
from smtkit.networks.transformer import Transformer


class FutureDecoder(nn.Module):
    """A causal transformer over K slots, then the future tokens.

    `decoder(memory (N, K, D), future (N, F))` gives logits (N, F + 1, V): the first, said at the
    last slot, of the target at the memory's own position; each next one after one more token.
    """

    def __init__(
        self, config: DecoderConfig, vocabulary_size: int, slots: int, slot_width: int
    ) -> None:
        super().__init__()
        self.slots = slots
        self.embedding = nn.Embedding(vocabulary_size, config.width)
        self.input = nn.Linear(slot_width, config.width)
        self.transformer = Transformer(config.width, config.layers, config.heads, causal=True)
        self.output = nn.Linear(config.width, vocabulary_size)

    def forward(self, memory: Tensor, future: Tensor) -> Tensor:
        symbols = torch.cat((self.input(memory), self.embedding(future)), dim=1)
        return self.output(self.transformer(symbols)[:, self.slots - 1 :])


def empty_future(memory: Tensor) -> Tensor:
    """(N, 0) tokens."""
    return torch.empty(len(memory), 0, dtype=torch.int64, device=memory.device)
