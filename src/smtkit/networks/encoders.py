"""Memory encoders: tokens to the memories of their prefixes.

B: sequences, T: tokens, P: positions, N: pairs of a sequence and a position, L: context length,
K: slots, D: slot width, C: width, H: heads.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smtkit.config import EncoderConfig
from smtkit.networks.cells import normalize_slots
from smtkit.networks.inputs import TokenEmbedding, no_tokens
from smtkit.networks.transformer import NORM_EPS, GatedMlp, Transformer, rotary, rotate

_TOKENS_AT_ONCE = 2**16
_TOKENS_AT_ONCE_ON_CPU = 2**12  # more would leave its cache


class PassCost(NamedTuple):
    """The cost of one pass that ends with the memory after some number of tokens, in float32.

    tokens: how many of them the pass reads. layer_bytes: they, and the activations of one layer
    (stream, query, key and value). peak_bytes: estimate of what the pass allocates at most.
    """

    tokens: int
    layer_bytes: int
    peak_bytes: int


class MemoryEncoder(nn.Module, ABC):
    """Tokens to memories: `memory[:, i]` is the memory after reading `tokens[:, :i]`."""

    slots: int
    slot_width: int
    parallel: bool
    """Whether one pass gives all memories; if not, every memory costs a pass over its context."""

    @abstractmethod
    def encode(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T + 1, K, D): the memories of all prefixes, the empty one first."""

    @abstractmethod
    def encode_at(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """(B, T), (B, P) -> (B, P, K, D): the memories at `positions` in 0..T."""

    @abstractmethod
    def pass_cost(self, tokens: int) -> PassCost:
        """The cost of the memory after `tokens` tokens."""

    def forward(self, tokens: Tensor) -> Tensor:
        return self.encode(tokens)

    def empty_memory(self) -> Tensor:
        """(K, D): the memory of having read nothing."""
        device = next(self.parameters()).device
        return self(no_tokens(1, device))[0, 0]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the parts: whichever method calls them, and no loop over passes."""
        for part in self.children():
            part.compile(*args, **kwargs)


class CausalEncoder(MemoryEncoder):
    """A causal trunk over [BOS, tokens] gives all memories in one pass: a projection of what it
    says at position i, or of what K registers read from what it says up to there."""

    parallel = True

    def __init__(self, config: EncoderConfig, vocabulary_size: int) -> None:
        super().__init__()
        self.slots, self.slot_width = config.slots, config.slot_width
        self.bos = nn.Parameter(torch.randn(config.width))
        self.input = TokenEmbedding(vocabulary_size, config.width)
        self.trunk = _trunk(config, causal=True)
        self.registers: RegisterQueries | None
        if config.memory == "registers":
            self.registers = RegisterQueries(config.slots, config.width, config.heads)
            self.projection = nn.Linear(config.width, config.slot_width)
        else:
            self.registers = None
            self.projection = nn.Linear(config.width, config.slots * config.slot_width)

    def encode(self, tokens: Tensor) -> Tensor:
        bos = self.bos.expand(len(tokens), 1, -1)
        said = self.trunk(torch.cat((bos, self.input(tokens)), dim=1))  # (B, T + 1, C)
        if self.registers is not None:
            said = self.registers(said)  # (B, T + 1, K, C)
        memory = self.projection(said).reshape(*said.shape[:2], self.slots, self.slot_width)
        return normalize_slots(memory)

    def encode_at(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return select(self.encode(tokens), positions)

    def pass_cost(self, tokens: int) -> PassCost:
        streams = self.slots if self.registers is not None else 1
        return _pass_cost(
            tokens,
            width=len(self.bos),
            symbols=tokens + 1,
            streams=streams,
            outputs=self.slots * self.slot_width * (tokens + 1),
        )


class RegisterQueries(nn.Module):
    """K queries a position, (B, L, C) -> (B, L, K, C): register k, added to the input at i, attends
    to the inputs at 0..i; then a gated MLP and a norm."""

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
        """Registers lie beside each other as heads do, so that causal attention needs no mask."""
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
    """A pass a memory, as in the paper: K registers after the last `context_length` tokens, each
    attending to all of them and to one another; a projection of what is said at the registers."""

    parallel = False

    def __init__(self, config: EncoderConfig, vocabulary_size: int, context_length: int) -> None:
        super().__init__()
        self.slots, self.slot_width = config.slots, config.slot_width
        self.context_length = context_length
        self.registers = nn.Parameter(torch.randn(config.slots, config.width))
        self.input = TokenEmbedding(vocabulary_size, config.width)
        self.trunk = _trunk(config, causal=False)
        self.projection = nn.Linear(config.width, config.slot_width)

    def encode(self, tokens: Tensor) -> Tensor:
        """Neighbouring positions together, with no more tokens than the last of them has read."""
        count, window = tokens.shape
        step = max(1, self._passes_at_once(tokens) // count)
        memories = []
        for first in range(0, window + 1, step):
            last = min(first + step - 1, window)
            positions = torch.arange(first, last + 1, device=tokens.device).expand(count, -1)
            memories.append(self.encode_at(tokens[:, :last], positions))
        return torch.cat(memories, dim=1)

    def encode_at(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """A pass for each position of a row, however often it is asked."""
        memories = tokens.shape[1] + 1  # of a row
        first = torch.arange(len(tokens), device=tokens.device)[:, None] * memories
        pairs, places = (first + positions).unique(return_inverse=True)
        memory = torch.cat(
            [
                self._encode_pairs(tokens, some // memories, some % memories)
                for some in pairs.split(self._passes_at_once(tokens))
            ]
        )
        return memory[places]

    def pass_cost(self, tokens: int) -> PassCost:
        read = min(tokens, self.context_length)
        return _pass_cost(
            read,
            width=self.registers.shape[1],
            symbols=read + self.slots,
            streams=1,
            outputs=self.slots * self.slot_width,
        )

    def _passes_at_once(self, tokens: Tensor) -> int:
        forwards = min(self.context_length, tokens.shape[1]) + self.slots
        limit = _TOKENS_AT_ONCE_ON_CPU if tokens.device.type == "cpu" else _TOKENS_AT_ONCE
        return max(1, limit // forwards)

    def _encode_pairs(self, tokens: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """tokens (B, T), rows (N,), positions (N,) -> (N, K, D): a pass for each pair of row and
        position. Contexts end where the registers begin; what a short one lacks is masked."""
        length = min(self.context_length, tokens.shape[1])
        places = positions[:, None] + torch.arange(-length, 0, device=tokens.device)  # (N, L)
        context = self.input(tokens[rows[:, None], places.clamp(min=0)])
        registers = self.registers.expand(len(rows), -1, -1)
        mask = F.pad(places >= 0, (0, self.slots), value=True)
        said = self.trunk(torch.cat((context, registers), dim=1), mask)
        return normalize_slots(self.projection(said[:, length:]))


def build_encoder(config: EncoderConfig, vocabulary_size: int, window: int) -> MemoryEncoder:
    """The encoder of `config.kind` with random weights; `window` is the context length unless
    `config` sets one."""
    if config.kind == "causal":
        return CausalEncoder(config, vocabulary_size)
    return BidirectionalEncoder(config, vocabulary_size, config.context_length or window)


def select(values: Tensor, positions: Tensor) -> Tensor:
    """values (B, L, ...), positions (B, P) -> (B, P, ...): for each row its positions."""
    first = torch.arange(len(values), device=values.device)[:, None] * values.shape[1]
    chosen = values.flatten(0, 1).index_select(0, (first + positions).flatten())
    return chosen.unflatten(0, positions.shape)


def _pass_cost(tokens: int, width: int, symbols: int, streams: int, outputs: int) -> PassCost:
    """`symbols` positions of `streams` streams, from which `outputs` numbers of memory are made.

    Measured: a pass holds up to 16 numbers per channel of a stream and 3 per number of memory.
    Fused attention is linear in tokens.
    """
    peak = 4 * (16 * streams * width * symbols + 3 * outputs)
    return PassCost(tokens, 8 * tokens + 4 * 4 * width * symbols, peak)


def _trunk(config: EncoderConfig, *, causal: bool) -> Transformer:
    return Transformer(
        config.width,
        config.layers,
        config.heads,
        causal=causal,
        convolution=config.convolution,
    )
