"""The teacher: an encoder that makes memories, a decoder that predicts the future from them.

B: sequences, T: window, K: slots, D: slot width, F: future tokens, V: vocabulary.
"""

from torch import Tensor, nn

from smtkit.config import CellConfig, DecoderConfig, EncoderConfig, ReadoutConfig
from smtkit.networks.cells import build_cell
from smtkit.networks.decoder import FutureDecoder, empty_future
from smtkit.networks.encoders import build_encoder
from smtkit.networks.heads import MlpReadout


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
