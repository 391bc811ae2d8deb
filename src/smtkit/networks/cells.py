"""Transition cells: (memory (N, K, D), input (N, E)) -> next memory (N, K, D).

N: sequences, T: steps, K: slots, D: slot width, Z = K D, E: width of the input. A new cell is a
subclass of `Cell` and a line in `build_cell`.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smtkit.config import CellConfig
from smtkit.errors import UsageError
from smtkit.networks.transformer import NORM_EPS, Transformer


def normalize_slots(memory: Tensor) -> Tensor:
    """Scales every slot (last axis) to a root mean square of one."""
    return F.rms_norm(memory, memory.shape[-1:], eps=NORM_EPS)


class Cell(nn.Module, ABC):
    """Base of all cells: `update`, then slot normalisation if `normalize`."""

    normalize: bool = True
    has_kernel: bool = False
    """Whether a kernel exists that computes all steps of a rollout without normalisation."""

    @property
    def fused(self) -> bool:
        """Whether `rollout` computes all steps in one kernel."""
        return self.has_kernel and not self.normalize

    @abstractmethod
    def update(self, memory: Tensor, inputs: Tensor) -> Tensor:
        """The next memory before normalisation: (N, K, D), (N, E) -> (N, K, D)."""

    def forward(self, memory: Tensor, inputs: Tensor) -> Tensor:
        updated = self.update(memory, inputs)
        return normalize_slots(updated) if self.normalize else updated

    def rollout(self, memory: Tensor, inputs: Tensor) -> Tensor:
        """The memory after each input: (N, K, D), (N, T, E) -> (N, T, K, D)."""
        memories = []
        for step_inputs in inputs.unbind(1):
            memory = self(memory, step_inputs)
            memories.append(memory)
        return torch.stack(memories, dim=1)


def spread_biases(bias: tuple[float, float], slots: int, slot_width: int) -> Tensor:
    """Initial gate biases (Z,), from the first to the second of `bias` within each slot, so that
    its numbers have different time scales (chrono initialisation, Tallec & Ollivier 2018)."""
    return torch.linspace(*bias, slot_width).repeat(slots)


def build_writer(width: int, size: int, gate_bias: Tensor | None) -> nn.Linear:
    """A linear map from features (..., width) to the `output` of `write`: (..., size) to add or,
    with gate_bias (size,), (..., 2 size): logits of the gates, then candidates."""
    if gate_bias is None:
        return nn.Linear(width, size)
    writer = nn.Linear(width, 2 * size)
    with torch.no_grad():
        writer.bias[:size] = gate_bias
    return writer


def write(memory: Tensor, output: Tensor) -> Tensor:
    """The next memory: memory (N, K, D) plus `output`, if that has as many numbers. If it has twice
    as many, they are gates and candidates: sigmoid(gate) is the share of each number of the memory
    that tanh(candidate) replaces."""
    if output.numel() == memory.numel():
        return memory + output.view_as(memory)
    gate, candidate = (half.reshape(memory.shape) for half in output.chunk(2, dim=-1))
    return memory + gate.sigmoid() * (candidate.tanh() - memory)


class MlpCell(Cell):
    """A residual MLP over the whole memory plus the input, whose output is written to the memory.

    gate_bias (Z,): initial biases of the gates; None: no gates.
    """

    def __init__(
        self,
        slots: int,
        slot_width: int,
        width: int,
        layers: int,
        gate_bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.from_memory = nn.Linear(slots * slot_width, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.RMSNorm(width, eps=NORM_EPS),
                nn.Linear(width, 4 * width),
                nn.GELU(),
                nn.Linear(4 * width, width),
            )
            for _ in range(layers)
        )
        self.norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.to_memory = build_writer(width, slots * slot_width, gate_bias)

    def update(self, memory: Tensor, inputs: Tensor) -> Tensor:
        hidden = self.from_memory(memory.flatten(1)) + inputs  # (N, E)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return write(memory, self.to_memory(self.norm(hidden)))


class TransformerCell(Cell):
    """A transformer over K slots and the input, whose output at a slot is written to it.

    gate_bias (D,): initial biases of the gates of every slot; None: no gates.
    """

    def __init__(
        self,
        slot_width: int,
        width: int,
        layers: int,
        heads: int,
        gate_bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.from_memory = nn.Linear(slot_width, width)
        self.transformer = Transformer(width, layers, heads, causal=False)
        self.to_memory = build_writer(width, slot_width, gate_bias)

    def update(self, memory: Tensor, inputs: Tensor) -> Tensor:
        sequence = torch.cat((self.from_memory(memory), inputs[:, None]), dim=1)  # (N, K + 1, E)
        return write(memory, self.to_memory(self.transformer(sequence)[:, :-1]))


class GruCell(Cell):
    """A gated recurrent unit (Cho et al. 2014) whose hidden state is the whole memory.

    gate_bias (Z,): initial biases of the gates; sigmoid(gate_bias) is the share of the memory that
    a step replaces. None: torch's initialisation.
    """

    has_kernel = True

    def __init__(
        self, slots: int, slot_width: int, width: int, gate_bias: Tensor | None = None
    ) -> None:
        super().__init__()
        size = slots * slot_width
        self.unit = nn.GRU(width, size, batch_first=True)
        if gate_bias is not None:
            _, _, input_bias, hidden_bias = self.unit.all_weights[0]
            with torch.no_grad():  # torch's update gate is the share that is kept
                input_bias[size : 2 * size] = -gate_bias
                hidden_bias[size : 2 * size] = 0

    def update(self, memory: Tensor, inputs: Tensor) -> Tensor:
        weights = self.unit.all_weights[0]
        return torch.gru_cell(inputs, memory.flatten(1), *weights).view_as(memory)

    def rollout(self, memory: Tensor, inputs: Tensor) -> Tensor:
        if not self.fused:
            return super().rollout(memory, inputs)
        hidden, _ = self.unit(inputs, memory.flatten(1)[None].contiguous())  # (N, T, Z)
        return hidden.unflatten(-1, memory.shape[1:])


class LstmCell(Cell):
    """Long short-term memory (Hochreiter & Schmidhuber 1997): the memory's Z numbers are h, c."""

    has_kernel = True

    def __init__(self, slots: int, slot_width: int, width: int) -> None:
        super().__init__()
        if slots * slot_width % 2:
            raise UsageError(
                f"a memory of {slots} x {slot_width} numbers: cell.kind = lstm needs two halves"
            )
        size = slots * slot_width // 2
        self.unit = nn.LSTM(width, size, batch_first=True)
        # Initialise the forget-gate bias to 1 (Jozefowicz et al. 2015).
        nn.init.ones_(self.unit.all_weights[0][2][size : 2 * size])

    def update(self, memory: Tensor, inputs: Tensor) -> Tensor:
        h, c = memory.flatten(1).chunk(2, dim=1)
        updated = torch.lstm_cell(inputs, (h, c), *self.unit.all_weights[0])
        return torch.cat(updated, dim=1).view_as(memory)

    def rollout(self, memory: Tensor, inputs: Tensor) -> Tensor:
        if not self.fused:
            return super().rollout(memory, inputs)
        h, c = memory.flatten(1).chunk(2, dim=1)  # (N, Z / 2) each
        all_h, _ = self.unit(inputs, (h[None].contiguous(), c[None].contiguous()))  # (N, T, Z / 2)
        previous_h = torch.cat((h[:, None], all_h[:, :-1]), dim=1)
        all_c = self._scan_c(inputs, previous_h, c)
        return torch.cat((all_h, all_c), dim=2).unflatten(-1, memory.shape[1:])

    def _scan_c(self, inputs: Tensor, previous_h: Tensor, c: Tensor) -> Tensor:
        """c after each step: (N, T, E), (N, T, Z / 2), (N, Z / 2) -> (N, T, Z / 2).

        The fused kernel returns only h: recompute the gates in one matmul, then scan c.
        """
        input_weight, hidden_weight, input_bias, hidden_bias = self.unit.all_weights[0]
        gates = F.linear(inputs, input_weight, input_bias)
        gates = gates + F.linear(previous_h, hidden_weight, hidden_bias)
        input_gate, forget_gate, candidate, _ = gates.chunk(4, dim=-1)
        added = input_gate.sigmoid() * candidate.tanh()
        all_c = []
        for forget_step, added_step in zip(
            forget_gate.sigmoid().unbind(1), added.unbind(1), strict=True
        ):
            c = torch.addcmul(added_step, forget_step, c)  # forget * c + added
            all_c.append(c)
        return torch.stack(all_c, dim=1)


def build_cell(config: CellConfig, slots: int, slot_width: int) -> Cell:
    """The cell of `config.kind` with random weights, for inputs of `config.width`."""
    cell: Cell
    width, layers, heads = config.width, config.layers, config.heads
    gate_bias = None
    if config.gate or config.gate_bias:
        gate_bias = spread_biases(config.gate_bias or (0, 0), slots, slot_width)
    if config.kind == "mlp":
        cell = MlpCell(slots, slot_width, width, layers, gate_bias)
    elif config.kind == "transformer":
        slot_bias = None if gate_bias is None else gate_bias[:slot_width]
        cell = TransformerCell(slot_width, width, layers, heads, slot_bias)
    elif config.kind == "gru":
        cell = GruCell(slots, slot_width, width, gate_bias)
    else:
        cell = LstmCell(slots, slot_width, width)
    cell.normalize = config.normalize == "slot"
    return cell
