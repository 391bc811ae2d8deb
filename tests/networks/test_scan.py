"""The linear recurrence against a loop, and its gradients against finite differences."""

import pytest
import torch
from torch import Tensor

from smtkit.networks import scan


def loop(keep: Tensor, added: Tensor, start: Tensor) -> Tensor:
    states, state = [], start
    for i in range(keep.shape[1]):
        state = keep[:, i] * state + added[:, i]
        states.append(state)
    return torch.stack(states, dim=1)


def inputs(steps: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    keep, added = torch.rand(2, steps, 3).double(), torch.randn(2, steps, 3).double()
    return keep, added, torch.randn(2, 3).double()


@pytest.mark.parametrize("steps", [1, 2, 7, 8, 9, 33])
@pytest.mark.parametrize("by", [scan._by_steps, scan._by_doubling])
def test_states_are_those_of_a_loop(by, steps):
    torch.testing.assert_close(by(*inputs(steps)), loop(*inputs(steps)))


@pytest.mark.parametrize("by", ["_by_steps", "_by_doubling"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_gradients_are_those_of_finite_differences(monkeypatch, by, steps):
    if by == "_by_doubling":  # as on a GPU
        doubling = scan._by_doubling
        monkeypatch.setattr(
            scan,
            "_scan",
            lambda keep, added, start, reverse=False: (
                doubling(keep.flip(1), added.flip(1), start).flip(1)
                if reverse
                else doubling(keep, added, start)
            ),
        )
    arguments = [tensor.requires_grad_() for tensor in inputs(steps)]
    assert torch.autograd.gradcheck(scan.linear_scan, arguments)


def test_no_step_leaves_nothing():
    keep, added, start = inputs(0)
    states = scan.linear_scan(keep, added, start.requires_grad_())
    assert states.shape == (2, 0, 3)
    states.sum().backward()
    assert not start.grad.any()
