"""Tokens drawn from logits. N: sequences, V: vocabulary."""

from typing import TypedDict

import torch
from torch import Tensor


class Sampling(TypedDict, total=False):
    """The options of `sample_each`, as keyword arguments."""

    temperature: float
    top_k: int | None
    top_p: float | None
    generator: torch.Generator | None


def sample_each(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Tokens (N,) drawn from softmax(logits (N, V) / temperature); the likeliest at temperature 0.

    `top_k` keeps the k likeliest tokens; `top_p`, the fewest whose probabilities sum to p.
    """
    if temperature < torch.finfo(logits.dtype).tiny:  # logits / temperature would overflow
        return logits.argmax(-1)
    highest = logits.amax(-1, keepdim=True)
    values, tokens = ((logits - highest) / temperature).sort(descending=True)
    probabilities = values.softmax(-1)
    if top_k is not None:
        probabilities[:, top_k:] = 0
    if top_p is not None:
        # Sum over the likelier tokens: a token is kept if they do not reach p without it.
        before = (probabilities / probabilities.sum(-1, keepdim=True)).cumsum(-1).roll(1, -1)
        before[:, 0] = 0
        probabilities[before >= top_p] = 0
    chosen = torch.multinomial(probabilities.cpu(), 1, generator=generator)
    return tokens.gather(-1, chosen.to(tokens.device))[:, 0]
