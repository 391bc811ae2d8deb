"""Output heads: from a memory to logits of the next target."""

from torch import Tensor, nn

from smtkit.networks.decoder import FutureDecoder, empty_future


class MlpReadout(nn.Module):
    """Logits of the next target from a memory: a linear map, or an MLP with one hidden layer."""

    def __init__(
        self, vocabulary_size: int, slots: int, slot_width: int, hidden: int | None
    ) -> None:
        super().__init__()
        size = slots * slot_width
        self.layers = (
            nn.Linear(size, vocabulary_size)
            if hidden is None
            else nn.Sequential(
                nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, vocabulary_size)
            )
        )

    def forward(self, memory: Tensor) -> Tensor:
        return self.layers(memory.flatten(1))


class DecoderReadout(nn.Module):
    """The decoder with an empty future: memory (N, K, D) -> logits (N, V)."""

    def __init__(self, decoder: FutureDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, memory: Tensor) -> Tensor:
        return self.decoder(memory, empty_future(memory))[:, 0]
