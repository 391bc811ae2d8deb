"""The future decoder: logits of the next targets from a memory and the tokens after it.

N: memories, F: future tokens, K: slots, D: slot width, C: width, V: vocabulary.
"""

import torch
from torch import Tensor, nn

from smtkit.config import DecoderConfig
from smtkit.networks.heads import TokenHead
from smtkit.networks.inputs import TokenEmbedding, no_tokens
from smtkit.networks.transformer import Transformer


class FutureDecoder(nn.Module):
    """A causal transformer over the K slots of a memory, then F future tokens.

    `decoder(memory (N, K, D), future (N, F))` returns logits (N, F + 1, V). The first, at the last
    slot, predict the target at the memory's own position; logits i, the target i tokens later.
    """

    def __init__(
        self, config: DecoderConfig, vocabulary_size: int, slots: int, slot_width: int
    ) -> None:
        super().__init__()
        self.slots = slots
        self.input = TokenEmbedding(vocabulary_size, config.width)
        self.from_memory = nn.Linear(slot_width, config.width)
        self.transformer = Transformer(config.width, config.layers, config.heads, causal=True)
        self.output = TokenHead(config.width, vocabulary_size)

    def forward(self, memory: Tensor, future: Tensor) -> Tensor:
        inputs = torch.cat((self.from_memory(memory), self.input(future)), dim=1)
        hidden = self.transformer(inputs)  # (N, K + F, C)
        return self.output(hidden[:, self.slots - 1 :])

    def read(self, memory: Tensor) -> Tensor:
        """Logits of the target at the memory's own position: (N, K, D) -> (N, V)."""
        return self(memory, no_tokens(memory.shape[0], memory.device))[:, 0]


class DecoderReadout(nn.Module):
    """The readout that is a decoder with an empty future: memory (N, K, D) -> logits (N, V)."""

    def __init__(self, decoder: FutureDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, memory: Tensor) -> Tensor:
        return self.decoder.read(memory)
