"""Memory encoders: from tokens to the memories of all prefixes, or of some.

B: sequences, T: tokens, P: positions, N: pairs of a sequence and a position, L: length of the
trunk's input, K: slots, D: slot width, C: width, H: heads.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smtkit.config import EncoderConfig
from smtkit.networks.cells import normalize_slots, spread_biases
from smtkit.networks.inputs import TokenEmbedding, no_tokens
from smtkit.networks.scan import linear_scan
from smtkit.networks.transformer import NORM_EPS, GatedMlp, Transformer, rotary, rotate

_TOKENS_AT_ONCE = 2**16
_TOKENS_AT_ONCE_ON_CPU = 2**12  # larger batches do not fit into its cache


class PassCost(NamedTuple):
    """Cost of the pass that computes one memory, in float32.

    tokens: how many the pass reads. layer_bytes: these tokens, and the activations of one layer
    (stream, query, key and value). peak_bytes: an estimate of the largest allocation.
    """

    tokens: int
    layer_bytes: int
    peak_bytes: int

    @classmethod
    def estimate(cls, tokens: int, length: int, width: int, streams: int, outputs: int) -> Self:
        """`streams` streams of (length, width), from which `outputs` numbers are projected.

        As measured, a pass holds up to 16 numbers per channel of a stream and 3 per output. Fused
        attention is linear in the length.
        """
        peak = 4 * (16 * streams * width * length + 3 * outputs)
        return cls(tokens, 8 * tokens + 4 * 4 * width * length, peak)


class MemoryEncoder(nn.Module, ABC):
    """Base of all encoders: `memory[:, i]` is the memory after reading `tokens[:, :i]`.

    `parallel`: one pass computes the memories of all prefixes. Otherwise each memory needs a pass
    of its own, and training uses only some positions.
    """

    slots: int
    slot_width: int
    parallel: bool

    @abstractmethod
    def encode(self, tokens: Tensor) -> Tensor:
        """Memories of all prefixes, the empty one first: (B, T) -> (B, T + 1, K, D)."""

    @abstractmethod
    def encode_at(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Memories at `positions` in 0..T: (B, T), (B, P) -> (B, P, K, D)."""

    @abstractmethod
    def pass_cost(self, tokens: int) -> PassCost:
        """Cost of the memory after `tokens` tokens of one sequence."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.encode(tokens)

    def empty_memory(self) -> Tensor:
        """The memory of an empty prefix, (K, D)."""
        return self(no_tokens(1, next(self.parameters()).device))[0, 0]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the submodules, so that all methods use them, and loops stay outside."""
        for module in self.children():
            module.compile(*args, **kwargs)


class CausalEncoder(MemoryEncoder):
    """A causal trunk over [BOS, tokens], whose output at i gives memory i, in one pass for all i.

    Memory i is a linear projection of the trunk's output at i (`projection`), or of K register
    queries that attend to the outputs 0..i (`registers`).
    """

    parallel = True

    def __init__(self, config: EncoderConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.slots, self.slot_width = config.slots, config.slot_width
        self.bos = nn.Parameter(torch.randn(config.width))
        self.input = TokenEmbedding(vocabulary_size, config.width)
        self.trunk = _build_trunk(config, causal=True)
        self.registers: RegisterQueries | None = None
        if config.memory == "registers":
            self.registers = RegisterQueries(config.slots, config.width, config.heads)
            self.projection = nn.Linear(config.width, config.slot_width)
        else:
            self.projection = nn.Linear(config.width, config.slots * config.slot_width)

    def encode(self, tokens: Tensor) -> Tensor:
        bos = self.bos.expand(len(tokens), 1, -1)
        features = self.trunk(torch.cat((bos, self.input(tokens)), dim=1))  # (B, T + 1, C)
        if self.registers is not None:
            features = self.registers(features)  # (B, T + 1, K, C)
        memory = self.projection(features)
        return normalize_slots(memory.reshape(*features.shape[:2], self.slots, self.slot_width))

    def encode_at(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return select(self.encode(tokens), positions)

    def pass_cost(self, tokens: int) -> PassCost:
        length = tokens + 1
        streams = 1 if self.registers is None else self.slots
        outputs = self.slots * self.slot_width * length
        return PassCost.estimate(tokens, length, len(self.bos), streams, outputs)


class GatedEncoder(MemoryEncoder):
    """A causal trunk whose output at i sets what the memory keeps and what is written.

    `memory_i = (1 - z_i) * memory_{i-1} + z_i * c_i`: gates z and candidates c are the sigmoid and
    the tanh of linear maps of the trunk's output. What has been written stays where it is, as in a
    GRU, so that a cell can follow. The trunk reads the K slots of the memory it starts from, then
    the tokens: it can go on from any memory, without the tokens that led to it.
    """

    parallel = True

    def __init__(self, config: EncoderConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.slots, self.slot_width = config.slots, config.slot_width
        self.initial = nn.Parameter(0.1 * torch.randn(config.slots, config.slot_width))
        self.from_memory = nn.Linear(config.slot_width, config.width)
        self.slot_embedding = nn.Parameter(0.5 * torch.randn(config.slots, config.width))
        self.input = TokenEmbedding(vocabulary_size, config.width)
        self.trunk = _build_trunk(config, causal=True)
        self.gate_and_candidate = nn.Linear(config.width, 2 * config.slots * config.slot_width)
        bias = spread_biases(config.gate_bias, config.slots, config.slot_width)
        with torch.no_grad():
            self.gate_and_candidate.bias[: len(bias)] = bias

    def encode(self, tokens: Tensor, start: Tensor | None = None) -> Tensor:
        """Memories of all prefixes, from the empty memory or from `start` (B, K, D)."""
        if start is None:
            start = self.initial.expand(len(tokens), -1, -1)
        slots = self.from_memory(start) + self.slot_embedding
        sequence = torch.cat((slots, self.input(tokens)), dim=1)  # (B, K + T, C)
        features = self.trunk(sequence)[:, self.slots :]
        written = _at_least_float32(self.gate_and_candidate(features))  # (B, T, 2 Z)
        gate, candidate = written.chunk(2, dim=-1)
        gate, start = gate.sigmoid(), _at_least_float32(start.flatten(1))
        memory = linear_scan(1 - gate, gate * candidate.tanh(), start)
        memory = torch.cat((start[:, None], memory), dim=1)  # (B, T + 1, Z)
        return memory.unflatten(-1, (self.slots, self.slot_width))

    def encode_at(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return select(self.encode(tokens), positions)

    def empty_memory(self) -> Tensor:
        return self.initial

    def pass_cost(self, tokens: int) -> PassCost:
        outputs = 2 * self.slots * self.slot_width * tokens
        width = self.slot_embedding.shape[1]
        return PassCost.estimate(tokens, tokens + self.slots, width, 1, outputs)


class RegisterQueries(nn.Module):
    """Cross-attention of K registers per position: (B, L, C) -> (B, L, K, C).

    The queries of position i are the registers plus input i; they attend to the inputs 0..i.
    """

    def __init__(self, registers: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.registers = nn.Parameter(torch.randn(registers, width))
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.mlp = GatedMlp(width)
        self.norm = nn.RMSNorm(width, eps=NORM_EPS)

    def forward(self, inputs: Tensor) -> Tensor:
        stream = inputs[:, :, None] + self.registers  # (B, L, K, C)
        stream = stream + self.output(self._attend(stream, inputs))
        return self.norm(stream + self.mlp(self.mlp_norm(stream)))

    def _attend(self, stream: Tensor, inputs: Tensor) -> Tensor:
        """Treats registers as further heads, so that causal attention needs no mask."""
        batch, length, registers, width = stream.shape
        head_width = width // self.heads
        rotation = rotary(length, head_width, inputs.device, inputs.dtype)
        query = self.query(stream).view(batch, length, registers * self.heads, head_width)
        projected = self.key_value(inputs).view(batch, length, 2, self.heads, head_width)
        key, value = projected.permute(2, 0, 3, 1, 4)  # (B, H, L, C / H) each
        mixed = F.scaled_dot_product_attention(
            rotate(query.transpose(1, 2), rotation),  # (B, K H, L, C / H)
            rotate(key, rotation).repeat(1, registers, 1, 1),
            value.repeat(1, registers, 1, 1),
            is_causal=True,
        )
        return mixed.transpose(1, 2).reshape(stream.shape)


class BidirectionalEncoder(MemoryEncoder):
    """The paper's encoder: a pass per memory, with full attention over [context, K registers].

    The context is the last `context_length` tokens; memory is projected from the registers' output.
    """

    parallel = False

    def __init__(self, config: EncoderConfig, vocabulary_size: int, context_length: int) -> None:
        super().__init__()
        self.slots, self.slot_width = config.slots, config.slot_width
        self.context_length = context_length
        self.registers = nn.Parameter(torch.randn(config.slots, config.width))
        self.input = TokenEmbedding(vocabulary_size, config.width)
        self.trunk = _build_trunk(config, causal=False)
        self.projection = nn.Linear(config.width, config.slot_width)

    def encode(self, tokens: Tensor) -> Tensor:
        """Encodes neighbouring positions together, from no more tokens than the last one needs."""
        count, window = tokens.shape
        step = max(1, self._passes_at_once(tokens) // count)
        memories = []
        for first in range(0, window + 1, step):
            last = min(first + step - 1, window)
            positions = torch.arange(first, last + 1, device=tokens.device).expand(count, -1)
            memories.append(self.encode_at(tokens[:, :last], positions))
        return torch.cat(memories, dim=1)

    def encode_at(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Encodes each position of a sequence once, however often it occurs in `positions`."""
        row_size = tokens.shape[1] + 1
        offsets = torch.arange(len(tokens), device=tokens.device)[:, None] * row_size
        pairs, index = (offsets + positions).unique(return_inverse=True)
        chunks = [
            self._encode_pairs(tokens, chunk // row_size, chunk % row_size)
            for chunk in pairs.split(self._passes_at_once(tokens))
        ]
        return torch.cat(chunks)[index]

    def pass_cost(self, tokens: int) -> PassCost:
        context = min(tokens, self.context_length)
        slots, width = self.registers.shape
        return PassCost.estimate(context, context + slots, width, 1, slots * self.slot_width)

    def _passes_at_once(self, tokens: Tensor) -> int:
        length = min(self.context_length, tokens.shape[1]) + self.slots
        limit = _TOKENS_AT_ONCE_ON_CPU if tokens.device.type == "cpu" else _TOKENS_AT_ONCE
        return max(1, limit // length)

    def _encode_pairs(self, tokens: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """A pass for each pair of row and position: (B, T), (N,), (N,) -> (N, K, D).

        Contexts are aligned at their end, next to the registers; short ones are masked at the
        start.
        """
        length = min(self.context_length, tokens.shape[1])
        index = positions[:, None] + torch.arange(-length, 0, device=tokens.device)  # (N, length)
        context = self.input(tokens[rows[:, None], index.clamp(min=0)])
        registers = self.registers.expand(len(rows), -1, -1)
        mask = F.pad(index >= 0, (0, self.slots), value=True)
        features = self.trunk(torch.cat((context, registers), dim=1), mask)
        return normalize_slots(self.projection(features[:, length:]))


def build_encoder(config: EncoderConfig, vocabulary_size: int, window: int) -> MemoryEncoder:
    """The encoder of `config.kind` with random weights; `window` is its default context length."""
    if config.memory == "gated":
        return GatedEncoder(config, vocabulary_size)
    if config.kind == "causal":
        return CausalEncoder(config, vocabulary_size)
    return BidirectionalEncoder(config, vocabulary_size, config.context_length or window)


def select(values: Tensor, positions: Tensor) -> Tensor:
    """`values[b, positions[b, p]]`: (B, L, ...), (B, P) -> (B, P, ...)."""
    offsets = torch.arange(len(values), device=values.device)[:, None] * values.shape[1]
    chosen = values.flatten(0, 1).index_select(0, (offsets + positions).flatten())
    return chosen.unflatten(0, positions.shape)


def _at_least_float32(values: Tensor) -> Tensor:
    """Half precision would lose what rarely opened gates add."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _build_trunk(config: EncoderConfig, *, causal: bool) -> Transformer:
    width, layers, heads = config.width, config.layers, config.heads
    return Transformer(width, layers, heads, causal=causal, convolution=config.convolution)
