"""The teacher: an encoder that makes memories, a decoder that predicts the future from them.

B: sequences, T: window, K: slots, D: slot width, F: future tokens, V: vocabulary.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from smtkit.config import CellConfig, DecoderConfig, EncoderConfig, ReadoutConfig
from smtkit.models.cells import MlpReadout, build_cell, normalize_slots
from smtkit.models.transformer import Transformer


class MemoryEncoder(nn.Module, ABC):
    """Tokens to memories: `memory[:, i]` is the memory after reading `tokens[:, :i]`."""

    slots: int
    slot_width: int

    @abstractmethod
    def encode(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T + 1, K, D): the memories of all prefixes, the empty one first."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.encode(tokens)

    def encode_at(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """(B, T), (B, P) -> (B, P, K, D): the memories at `positions` in 0..T."""
        return select(self.encode(tokens), positions)


class CausalEncoder(MemoryEncoder):
    """A causal trunk over [BOS, tokens] gives all memories in one pass: a projection of what it
    says at position i, every slot normalised."""

    def __init__(self, config: EncoderConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.slots, self.slot_width = config.slots, config.slot_width
        self.beginning = nn.Parameter(torch.randn(config.width))
        self.embedding = nn.Embedding(vocabulary_size, config.width)
        self.trunk = Transformer(
            config.width,
            config.layers,
            config.heads,
            causal=True,
            convolution=config.convolution,
        )
        self.projection = nn.Linear(config.width, config.slots * config.slot_width)

    def encode(self, tokens: Tensor) -> Tensor:
        embedded = self.embedding(tokens)
        beginning = self.beginning.expand(len(tokens), 1, -1)
        trunk = self.trunk(torch.cat((beginning, embedded), dim=1))  # (B, T + 1, width)
        memory = self.projection(trunk).unflatten(-1, (self.slots, self.slot_width))
        return normalize_slots(memory)


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


class DecoderReadout(nn.Module):
    """The decoder with an empty future: memory (N, K, D) -> logits (N, V)."""

    def __init__(self, decoder: FutureDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, memory: Tensor) -> Tensor:
        return self.decoder(memory, empty_future(memory))[:, 0]


def empty_future(memory: Tensor) -> Tensor:
    """(N, 0) tokens."""
    return torch.empty(len(memory), 0, dtype=torch.int64, device=memory.device)


class Teacher(nn.Module):
    """Encoder, decoder, dense readout, and the cell that is trained along with them."""

    def __init__(
        self,
        vocabulary_size: int,
        encoder: EncoderConfig,
        decoder: DecoderConfig,
        cell: CellConfig,
        readout: ReadoutConfig,
    ) -> None:
        super().__init__()
        memory_shape = (encoder.slots, encoder.slot_width)
        self.encoder = CausalEncoder(encoder, vocabulary_size)
        self.decoder = FutureDecoder(decoder, vocabulary_size, *memory_shape)
        self.cell = build_cell(cell, vocabulary_size, *memory_shape)
        self.readout = (
            MlpReadout(vocabulary_size, *memory_shape, readout.hidden)
            if readout.kind == "mlp"
            else None
        )

    def read(self, memory: Tensor) -> Tensor:
        """Dense readout, (N, K, D) -> (N, V); where there is none, the decoder's first logits."""
        if self.readout is not None:
            return self.readout(memory)
        return self.decoder(memory, empty_future(memory))[:, 0]


def select(values: Tensor, positions: Tensor) -> Tensor:
    """values (B, L, ...), positions (B, P) -> (B, P, ...): for each row its positions."""
    first = torch.arange(len(values), device=values.device)[:, None] * values.shape[1]
    chosen = values.flatten(0, 1).index_select(0, (first + positions).flatten())
    return chosen.unflatten(0, positions.shape)
