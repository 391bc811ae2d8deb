"""Transition cells `f`: (memory (N, K, D), token (N,)) -> memory (N, K, D), and readouts
`g`: memory (N, K, D) -> logits (N, V).

N: transitions, K: slots, D: slot width, V: vocabulary. A cell of one's own is a class here with
this call, and a line in `build_cell`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smtkit.config import CellConfig
from smtkit.models.transformer import RmsNorm, Transformer


def normalize_slots(memory: Tensor) -> Tensor:
    """Scales every slot (last axis) to a root mean square of one."""
    return F.rms_norm(memory, memory.shape[-1:], eps=1e-6)


class MlpCell(nn.Module):
    """A residual MLP on the whole memory and the token's embedding; its output is added to the
    memory, and every slot is normalised."""

    def __init__(
        self, vocabulary_size: int, slots: int, slot_width: int, width: int, layers: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.input = nn.Linear(slots * slot_width, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                RmsNorm(width),
                nn.Linear(width, 4 * width),
                nn.GELU(),
                nn.Linear(4 * width, width),
            )
            for _ in range(layers)
        )
        self.norm = RmsNorm(width)
        self.output = nn.Linear(width, slots * slot_width)

    def forward(self, memory: Tensor, token: Tensor) -> Tensor:
        hidden = self.input(memory.flatten(1)) + self.embedding(token)  # (N, width)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        update = self.output(self.norm(hidden))
        return normalize_slots(memory + update.view_as(memory))


class TransformerCell(nn.Module):
    """A transformer over K slots and one input token; what it says at the slots is added to them,
    and every slot is normalised."""

    def __init__(
        self,
        vocabulary_size: int,
        slots: int,
        slot_width: int,
        width: int,
        layers: int,
        heads: int,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.input = nn.Linear(slot_width, width)
        self.transformer = Transformer(width, layers, heads, causal=False)
        self.output = nn.Linear(width, slot_width)

    def forward(self, memory: Tensor, token: Tensor) -> Tensor:
        symbols = torch.cat((self.input(memory), self.embedding(token)[:, None]), dim=1)
        update = self.output(self.transformer(symbols)[:, :-1])  # (N, K, D)
        return normalize_slots(memory + update)


class GruCell(nn.Module):
    """A gated recurrent unit (Cho et al. 2014) whose hidden state is the whole memory; every slot
    is normalised after the update."""

    def __init__(self, vocabulary_size: int, slots: int, slot_width: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.unit = nn.GRUCell(width, slots * slot_width)

    def forward(self, memory: Tensor, token: Tensor) -> Tensor:
        updated = self.unit(self.embedding(token), memory.flatten(1))
        return normalize_slots(updated.view_as(memory))


def build_cell(config: CellConfig, vocabulary_size: int, slots: int, slot_width: int) -> nn.Module:
    """The cell of `config.kind` with random weights."""
    shape = (vocabulary_size, slots, slot_width, config.width)
    if config.kind == "mlp":
        return MlpCell(*shape, config.layers)
    if config.kind == "transformer":
        return TransformerCell(*shape, config.layers, config.heads)
    return GruCell(*shape)


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
