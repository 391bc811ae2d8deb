"""The linear recurrence of gated memory, `y_i = keep_i * y_{i-1} + added_i`, for all i at once.

B: sequences, T: steps, Z: numbers per memory.
"""

from typing import Any

import torch
from torch import Tensor


def linear_scan(keep: Tensor, added: Tensor, start: Tensor) -> Tensor:
    """All states of the recurrence: keep, added (B, T, Z), start (B, Z) -> (B, T, Z).

    Differentiable once in all three arguments.
    """
    result: Tensor = _LinearScan.apply(keep, added, start)  # type: ignore[no-untyped-call]
    return result


class _LinearScan(torch.autograd.Function):
    """One node in the graph: autograd through a loop over T would take most of an update."""

    @staticmethod
    def forward(ctx: Any, keep: Tensor, added: Tensor, start: Tensor) -> Tensor:
        states = _scan(keep, added, start)
        ctx.save_for_backward(keep, states, start)
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keep, states, start = ctx.saved_tensors
        (gradient,) = gradients
        if not keep.shape[1]:  # T = 0: empty gradients of the shape of keep and added
            return keep, keep, torch.zeros_like(start)
        # dL/d added_i = g_i + keep_{i+1} * dL/d added_{i+1}: the same recurrence, backwards.
        into_added = _scan(keep[:, 1:], gradient[:, :-1], gradient[:, -1], reverse=True)
        into_added = torch.cat((into_added, gradient[:, -1:]), dim=1)
        into_keep = into_added * torch.cat((start[:, None], states[:, :-1]), dim=1)
        return into_keep, into_added, into_added[:, 0] * keep[:, 0]


def _scan(keep: Tensor, added: Tensor, start: Tensor, *, reverse: bool = False) -> Tensor:
    """Step by step on a CPU, where memory bandwidth limits the speed; in log2 T rounds on a GPU,
    where the number of kernel launches does. `reverse`: from the last step to the first."""
    if not keep.is_cuda:
        return _by_steps(keep, added, start, reverse=reverse)
    if reverse:
        return _by_doubling(keep.flip(1), added.flip(1), start).flip(1)
    return _by_doubling(keep, added, start)


def _by_steps(keep: Tensor, added: Tensor, start: Tensor, *, reverse: bool = False) -> Tensor:
    states = torch.empty_like(added)
    state = start
    steps = range(keep.shape[1])
    for i in reversed(steps) if reverse else steps:
        state = torch.addcmul(added[:, i], keep[:, i], state, out=states[:, i])
    return states


def _by_doubling(keep: Tensor, added: Tensor, start: Tensor) -> Tensor:
    """Hillis & Steele (1986): after k rounds, state i has taken in the 2^k steps up to i."""
    states = torch.cat((start[:, None], added), dim=1)
    kept = torch.cat((torch.zeros_like(start)[:, None], keep), dim=1)  # nothing before `start`
    reach = 1
    while reach < states.shape[1]:
        carried = kept[:, reach:] * states[:, :-reach]
        states = torch.cat((states[:, :reach], states[:, reach:] + carried), dim=1)
        kept = torch.cat((kept[:, :reach], kept[:, reach:] * kept[:, :-reach]), dim=1)
        reach *= 2
    return states[:, 1:]
