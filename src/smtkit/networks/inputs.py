"""Inputs of the networks: how a token becomes a vector.

Encoder, decoder and transition build their input with `TokenEmbedding(vocabulary_size, width)` and
do not look into it. For another input, e.g. continuous values, replace what is here.
N: sequences, V: vocabulary, E: width of the input.
"""

import torch
from torch import Tensor, nn


class TokenEmbedding(nn.Embedding):
    """A learned vector per token: tokens (...) -> inputs (..., E)."""

    def __init__(self, vocabulary_size: int, width: int) -> None:
        super().__init__(vocabulary_size, width)


def no_tokens(count: int, device: torch.device) -> Tensor:
    """`count` empty sequences, (count, 0)."""
    return torch.empty(count, 0, dtype=torch.int64, device=device)


def random_tokens(vocabulary_size: int, count: int, device: torch.device) -> Tensor:
    """Any `count` tokens, always the same, (count, 1); on which cost is measured."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary_size, (count, 1), generator=generator).to(device)
