"""When dynamics start by themselves: `objective.dynamics_start = "auto"`."""

import math

import torch
from torch import Tensor, nn

_AVERAGED_UPDATES = 10


class PlateauGate(nn.Module):
    """Opens, and stays open, once a running average of the decoding loss falls below `limit`.

    The average starts at `plateau`. All is computed on the device; the host waits for the result at
    every step while the gate is shut, and no longer.
    """

    average: Tensor
    opened: Tensor
    """First update after the gate opened; infinite while it is shut."""

    def __init__(self, plateau: float, limit: float) -> None:
        super().__init__()
        self._limit = limit
        self.register_buffer("average", torch.tensor(plateau))
        self.register_buffer("opened", torch.tensor(torch.inf))
        self._step: int | None = None  # `opened` on the host, once it is finite
        self.register_load_state_dict_post_hook(self._forget_step)  # type: ignore[no-untyped-call]

    def observe(self, step: int, decoding: Tensor) -> None:
        """Takes the mean decoding loss of update `step` into the average."""
        self.average.lerp_(decoding, 1 / _AVERAGED_UPDATES)
        opens = (self.average < self._limit) & self.opened.isinf()
        self.opened.masked_fill_(opens, step + 1)

    @property
    def step(self) -> int | None:
        """The first update after the gate opened; None while it is shut."""
        if self._step is None:
            opened = float(self.opened)
            self._step = None if math.isinf(opened) else int(opened)
        return self._step

    def _forget_step(self, *_: object) -> None:
        self._step = None
