"""Tokens drawn from logits. N: sequences, V: vocabulary."""

from collections.abc import Callable
from typing import TypedDict

import torch
from torch import Tensor

Uniforms = Callable[[int], Tensor]
"""Gives so many numbers in [0, 1), float64 (count,): the next ones at every call."""


class Sampling(TypedDict, total=False):
    """The options of `sample_each`, as keyword arguments."""

    temperature: float
    top_k: int | None
    top_p: float | None
    uniforms: Uniforms | None


def sample_each(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    uniforms: Uniforms | None = None,
) -> Tensor:
    """Tokens (N,) drawn from softmax(logits (N, V) / temperature); the likeliest at temperature 0.

    `top_k` keeps the k likeliest tokens; `top_p`, the fewest whose probabilities sum to p. Each
    token takes one number u of `uniforms`: it is the first, in the order of the vocabulary, for
    which the sum of the probabilities up to it exceeds u. None: torch's own numbers.
    """
    if temperature < torch.finfo(logits.dtype).tiny:  # logits / temperature would overflow
        return logits.argmax(-1)
    highest = logits.amax(-1, keepdim=True)
    probabilities = ((logits - highest).double() / temperature).softmax(-1)
    if top_k is not None or top_p is not None:
        probabilities = _likeliest(probabilities, top_k, top_p)
    count = len(logits)
    numbers = torch.rand(count, dtype=torch.float64) if uniforms is None else uniforms(count)
    sums = probabilities.cumsum(-1)
    wanted = numbers.to(sums.device)[:, None] * sums[:, -1:]
    chosen = torch.searchsorted(sums, wanted, right=True)[:, 0]
    return chosen.clamp(max=logits.shape[1] - 1)


def _likeliest(probabilities: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """The probabilities (N, V), with zeros for all but the likeliest tokens."""
    values, tokens = probabilities.sort(descending=True, stable=True)
    if top_k is not None:
        values[:, top_k:] = 0
    if top_p is not None:
        # Sum over the likelier tokens: a token is kept if they do not reach p without it.
        before = (values / values.sum(-1, keepdim=True)).cumsum(-1).roll(1, -1)
        before[:, 0] = 0
        values[before >= top_p] = 0
    return torch.zeros_like(probabilities).scatter(-1, tokens, values)
