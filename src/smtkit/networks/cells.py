"""Transition cells `f`: (memory (N, K, D), token (N,)) -> memory (N, K, D), and readouts
`g`: memory (N, K, D) -> logits (N, V).

N: transitions, T: steps, K: slots, D: slot width, Z = K D, V: vocabulary. A cell of one's own is a
subclass of `Cell` and a line in `build_cell`: docs/how-to.md.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smtkit.config import CellConfig
from smtkit.errors import UsageError
from smtkit.networks.transformer import RmsNorm, Transformer


def normalize_slots(memory: Tensor) -> Tensor:
    """Scales every slot (last axis) to a root mean square of one."""
    return F.rms_norm(memory, memory.shape[-1:], eps=1e-6)


class Cell(nn.Module, ABC):
    """A transition: `update`, and then, if so configured, its slots are normalised."""

    normalize: bool = True

    @abstractmethod
    def update(self, memory: Tensor, token: Tensor) -> Tensor:
        """(N, K, D), (N,) -> (N, K, D), slots not yet normalised."""

    def forward(self, memory: Tensor, token: Tensor) -> Tensor:
        updated = self.update(memory, token)
        return normalize_slots(updated) if self.normalize else updated

    def rollout(self, memory: Tensor, tokens: Tensor) -> Tensor:
        """Memories after each token: (N, K, D), (N, T) -> (N, T, K, D)."""
        memories = []
        for token in tokens.unbind(1):
            memory = self(memory, token)
            memories.append(memory)
        return torch.stack(memories, dim=1)


class MlpCell(Cell):
    """A residual MLP on the whole memory and the token's embedding, added to the memory."""

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

    def update(self, memory: Tensor, token: Tensor) -> Tensor:
        hidden = self.input(memory.flatten(1)) + self.embedding(token)  # (N, width)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return memory + self.output(self.norm(hidden)).view_as(memory)


class TransformerCell(Cell):
    """A transformer over K slots and one input token; its output at the slots is added to them."""

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

    def update(self, memory: Tensor, token: Tensor) -> Tensor:
        symbols = torch.cat((self.input(memory), self.embedding(token)[:, None]), dim=1)
        return memory + self.output(self.transformer(symbols)[:, :-1])  # (N, K, D)


class GruCell(Cell):
    """A gated recurrent unit (Cho et al. 2014) whose hidden state is the whole memory."""

    def __init__(self, vocabulary_size: int, slots: int, slot_width: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.unit = nn.GRU(width, slots * slot_width, batch_first=True)

    def update(self, memory: Tensor, token: Tensor) -> Tensor:
        hidden = torch.gru_cell(self.embedding(token), memory.flatten(1), *self.unit.all_weights[0])
        return hidden.view_as(memory)

    def rollout(self, memory: Tensor, tokens: Tensor) -> Tensor:
        if self.normalize:
            return super().rollout(memory, tokens)
        hidden = memory.flatten(1)[None].contiguous()
        outputs, _ = self.unit(self.embedding(tokens), hidden)  # (N, T, Z)
        return outputs.unflatten(-1, memory.shape[1:])


class LstmCell(Cell):
    """Long short-term memory (Hochreiter & Schmidhuber 1997); the first half of the memory's Z
    numbers is h, the second c."""

    def __init__(self, vocabulary_size: int, slots: int, slot_width: int, width: int) -> None:
        super().__init__()
        if slots * slot_width % 2:
            raise UsageError(
                f"a memory of {slots} x {slot_width} numbers: cell.kind = lstm needs two halves"
            )
        self.embedding = nn.Embedding(vocabulary_size, width)
        size = slots * slot_width // 2
        self.unit = nn.LSTM(width, size, batch_first=True)
        # It remembers before it has learned to (Jozefowicz et al. 2015).
        nn.init.ones_(self.unit.all_weights[0][2][size : 2 * size])

    def update(self, memory: Tensor, token: Tensor) -> Tensor:
        hidden, carry = memory.flatten(1).chunk(2, dim=1)
        weights = self.unit.all_weights[0]
        updated = torch.lstm_cell(self.embedding(token), (hidden, carry), *weights)
        return torch.cat(updated, dim=1).view_as(memory)

    def rollout(self, memory: Tensor, tokens: Tensor) -> Tensor:
        if self.normalize:
            return super().rollout(memory, tokens)
        first, carry = memory.flatten(1).chunk(2, dim=1)  # (N, Z / 2)
        inputs = self.embedding(tokens)
        state = first[None].contiguous(), carry[None].contiguous()
        outputs, _ = self.unit(inputs, state)  # h alone, (N, T, Z / 2)
        carries = self._carries(inputs, torch.cat((first[:, None], outputs[:, :-1]), 1), carry)
        return torch.cat((outputs, carries), dim=2).unflatten(-1, memory.shape[1:])

    def _carries(self, inputs: Tensor, hidden: Tensor, carry: Tensor) -> Tensor:
        """c after each step, which the fused kernel keeps to itself: of gates that are all computed
        at once, only the sum remains to be taken step by step."""
        from_input, from_hidden, *biases = self.unit.all_weights[0]
        gates = F.linear(inputs, from_input, biases[0]) + F.linear(hidden, from_hidden, biases[1])
        entry, forget, candidate, _ = gates.chunk(4, dim=-1)
        kept, added = forget.sigmoid(), entry.sigmoid() * candidate.tanh()
        carries = []
        for share, new in zip(kept.unbind(1), added.unbind(1), strict=True):
            carry = torch.addcmul(new, share, carry)
            carries.append(carry)
        return torch.stack(carries, dim=1)


def build_cell(config: CellConfig, vocabulary_size: int, slots: int, slot_width: int) -> Cell:
    """The cell of `config.kind` with random weights."""
    shape = (vocabulary_size, slots, slot_width, config.width)
    cell: Cell
    if config.kind == "mlp":
        cell = MlpCell(*shape, config.layers)
    elif config.kind == "transformer":
        cell = TransformerCell(*shape, config.layers, config.heads)
    elif config.kind == "gru":
        cell = GruCell(*shape)
    else:
        cell = LstmCell(*shape)
    cell.normalize = config.normalize == "slot"
    return cell
