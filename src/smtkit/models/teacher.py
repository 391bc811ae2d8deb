"""The teacher: an encoder that makes memories, a decoder that predicts the future from them.

B: sequences, T: window, K: slots, D: slot width, F: future tokens, V: vocabulary.
"""

import torch
from torch import Tensor, nn

from smtkit.config import CellConfig, DecoderConfig, EncoderConfig, ReadoutConfig
from smtkit.models.cells import MlpReadout, build_cell
from smtkit.models.encoders import build_encoder
from smtkit.models.transformer import Transformer


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
    """Encoder, decoder, dense readout, and the cell that is trained along with them.

    `window`: the encoder's context length, where it has one and its config sets none.
    """

    def __init__(
        self,
        vocabulary_size: int,
        window: int,
        encoder: EncoderConfig,
        decoder: DecoderConfig,
        cell: CellConfig,
        readout: ReadoutConfig,
    ) -> None:
        super().__init__()
        memory_shape = (encoder.slots, encoder.slot_width)
        self.encoder = build_encoder(encoder, vocabulary_size, window)
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
