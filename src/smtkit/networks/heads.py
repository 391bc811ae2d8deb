"""Output heads: logits of the next target from features or from a memory.

N: memories, C: width of the features, K: slots, D: slot width, V: vocabulary.
"""

from torch import Tensor, nn


class TokenHead(nn.Linear):
    """Logits of the next token: features (..., C) -> logits (..., V)."""

    def __init__(self, width: int, vocabulary_size: int) -> None:
        super().__init__(width, vocabulary_size)


class MlpReadout(nn.Module):
    """A linear map of the whole memory, or an MLP with one hidden layer: (N, K, D) -> (N, V)."""

    def __init__(
        self, vocabulary_size: int, slots: int, slot_width: int, hidden: int | None
    ) -> None:
        super().__init__()
        size = slots * slot_width
        self.layers = (
            TokenHead(size, vocabulary_size)
            if hidden is None
            else nn.Sequential(
                nn.Linear(size, hidden), nn.GELU(), TokenHead(hidden, vocabulary_size)
            )
        )

    def forward(self, memory: Tensor) -> Tensor:
        return self.layers(memory.flatten(1))
