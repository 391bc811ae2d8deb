"""What a loss tells a memory far back: the gradient of a target's nll, by the distance between.

Two paths lead from `targets[i + d]` to `memory[i]`: the decoder, which reads the d tokens between
at once (SMT learns by it), and d steps of the cell (BPTT does). N: pairs of a memory and a target,
d: tokens between them, L: tokens a row, K: slots, D: slot width, V: vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from smtkit import IGNORE

_TOKENS = 4096  # read at a time, over all pairs

Path = Callable[[Tensor, Tensor], Tensor]
"""memory (N, K, D), tokens (N, d) -> logits (N, V) of the target d tokens later."""


@dataclass(frozen=True)
class Point:
    """The mean over `samples` pairs of the norm of d nll(targets[i + distance]) / d memory[i]."""

    distance: int
    norm: float
    samples: int


def through_decoder(decode: Callable[[Tensor, Tensor], Tensor]) -> Path:
    """decode: memory (N, K, D), tokens (N, d) -> logits (N, d + 1, V)."""
    return lambda memory, tokens: decode(memory, tokens)[:, -1]


def through_cell(
    step: Callable[[Tensor, Tensor], Tensor], readout: Callable[[Tensor], Tensor]
) -> Path:
    """step: memory (N, K, D), token (N,) -> memory (N, K, D); readout: -> logits (N, V)."""

    def path(memory: Tensor, tokens: Tensor) -> Tensor:
        for token in tokens.unbind(1):
            memory = step(memory, token)
        return readout(memory)

    return path


def curve(
    path: Path,
    memory: Tensor,
    tokens: Tensor,
    targets: Tensor,
    distances: Sequence[int],
    samples: int,
    seed: int = 0,
) -> list[Point]:
    """A point for each distance at which any target is asked, over at most `samples` pairs.

    memory (B, L + 1, K, D), tokens (B, L), targets (B, L + 1). The pairs of a distance are drawn,
    by the seed, from all that are not IGNORE.
    """
    points = []
    for distance in distances:
        pairs = (targets[:, distance:] != IGNORE).nonzero()  # (pairs, 2): row, position of memory
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(pairs), generator=generator)[:samples]
        pairs = pairs[order.to(pairs.device)]
        at_a_time = max(1, _TOKENS // (distance + 1))
        norms = [
            gradient_norms(
                path,
                memory[rows, positions],
                tokens[rows[:, None], positions[:, None] + _offsets(tokens, distance)],
                targets[rows, positions + distance],
            )
            for rows, positions in _columns(pairs, at_a_time)
        ]
        if norms:
            mean = float(torch.cat(norms).mean())
            points.append(Point(distance, mean, len(pairs)))
    return points


def gradient_norms(path: Path, memory: Tensor, tokens: Tensor, targets: Tensor) -> Tensor:
    """Of every pair, the norm over K D numbers: (N, K, D), (N, d), (N,) -> (N,).

    One backward pass serves all: no logit depends on another pair's memory. Zero where the path
    does not read the memory.
    """
    with torch.enable_grad():
        memory = memory.detach().requires_grad_()
        nll = F.cross_entropy(path(memory, tokens).float(), targets, reduction="sum")
        if not nll.requires_grad:
            return torch.zeros(len(memory), dtype=torch.float64, device=memory.device)
        (gradient,) = torch.autograd.grad(nll, memory, allow_unused=True, materialize_grads=True)
    return gradient.double().flatten(1).norm(dim=1)


def distances_up_to(longest: int) -> list[int]:
    """0, 1, 2, 3, 4, 6, 8, 12, ... and the longest: as many in every octave."""
    powers = [2**exponent for exponent in range(max(longest, 1).bit_length())]
    chosen = {0, longest, *powers, *(power + power // 2 for power in powers)}
    return sorted(distance for distance in chosen if distance <= longest)


def _offsets(tokens: Tensor, distance: int) -> Tensor:
    return torch.arange(distance, device=tokens.device)


def _columns(pairs: Tensor, at_a_time: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and positions of some pairs at a time; nothing where there are none."""
    for first in range(0, len(pairs), at_a_time):
        rows, positions = pairs[first : first + at_a_time].unbind(1)
        yield rows, positions
