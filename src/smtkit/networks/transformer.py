"""The Transformer of which encoders, decoder and one cell are made.

Pre-norm blocks of attention with rotary positions (RoPE, Su et al. 2021) and a gated MLP (SwiGLU,
Shazeer 2020), RMSNorm, no biases; optionally a short causal depthwise convolution before the
attention. B: sequences, L: length, C: width, H: heads.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6
_ROPE_BASE = 10_000.0


class Transformer(nn.Module):
    """Blocks and a final norm, (B, L, C) -> (B, L, C). `causal`: position i attends to 0..i.

    `mask` (B, L) is True at inputs and False at padding, which changes no other output. Each row
    needs at least one input.
    """

    def __init__(
        self, width: int, layers: int, heads: int, *, causal: bool, convolution: int = 0
    ) -> None:
        super().__init__()
        self.head_width = width // heads
        blocks = [
            Block(width, heads, causal=causal, convolution=convolution) for _ in range(layers)
        ]
        for block in blocks:
            block.initialize_outputs(layers)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.RMSNorm(width, eps=NORM_EPS)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        rotation = rotary(inputs.shape[1], self.head_width, inputs.device, inputs.dtype)
        for block in self.blocks:
            inputs = block(inputs, rotation, mask)
        return self.norm(inputs)


class Block(nn.Module):
    """Convolution (optional), attention and MLP, each added to the residual stream."""

    def __init__(self, width: int, heads: int, *, causal: bool, convolution: int) -> None:
        super().__init__()
        self.convolution = CausalConvolution(width, convolution) if convolution else None
        self.attention_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.attention = Attention(width, heads, causal=causal)
        self.mlp_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.mlp = GatedMlp(width)

    def forward(
        self, stream: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None = None
    ) -> Tensor:
        if self.convolution is not None:
            present = stream if mask is None else stream.masked_fill(~mask[:, :, None], 0)
            stream = stream + self.convolution(present)
        stream = stream + self.attention(self.attention_norm(stream), rotation, mask)
        return stream + self.mlp(self.mlp_norm(stream))

    def initialize_outputs(self, layers: int) -> None:
        """Scales the output weights so that the stream's variance does not grow with depth."""
        for linear in (self.attention.output, self.mlp.output):
            nn.init.normal_(linear.weight, std=0.5 / math.sqrt(2 * layers * linear.in_features))


class Attention(nn.Module):
    """Multi-head self-attention, (B, L, C) -> (B, L, C)."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(
        self, inputs: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None = None
    ) -> Tensor:
        batch, length, width = inputs.shape
        projected = self.query_key_value(inputs)
        projected = projected.view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = projected.permute(2, 0, 3, 1, 4)  # (B, H, L, C / H) each
        mixed = F.scaled_dot_product_attention(
            rotate(query, rotation),
            rotate(key, rotation),
            value,
            attn_mask=None if mask is None else self._visible(mask),
            is_causal=self.causal and mask is None,
        )
        return self.output(mixed.transpose(1, 2).reshape(batch, length, width))

    def _visible(self, mask: Tensor) -> Tensor:
        """The keys that each query attends to: (B, L) -> (B, 1, 1 or L, L)."""
        keys = mask[:, None, None]
        if not self.causal:
            return keys
        positions = torch.arange(mask.shape[1], device=mask.device)
        earlier, itself = positions <= positions[:, None], positions == positions[:, None]
        return keys & earlier | itself  # itself, even in padding: a softmax over nothing is NaN


class GatedMlp(nn.Module):
    """SwiGLU with as many weights as an MLP of width 4 C: its hidden width is 8/3 C, rounded up to
    a multiple of 16."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 16 * math.ceil(8 * width / 3 / 16)
        self.gate_and_value = nn.Linear(width, 2 * hidden, bias=False)
        self.output = nn.Linear(hidden, width, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        gate, value = self.gate_and_value(inputs).chunk(2, dim=-1)
        return self.output(F.silu(gate) * value)


class CausalConvolution(nn.Module):
    """Depthwise convolution over the last `kernel` positions, (B, L, C) -> (B, L, C)."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(kernel, width) / (2 * kernel))

    def forward(self, inputs: Tensor) -> Tensor:
        # A sum of shifted products: on a CPU, ten times faster than a grouped nn.Conv1d.
        kernel, length = len(self.weight), inputs.shape[1]
        padded = F.pad(inputs, (0, 0, kernel - 1, 0))
        mixed = padded[:, :length] * self.weight[0]
        for tap in range(1, kernel):
            mixed = torch.addcmul(mixed, padded[:, tap : tap + length], self.weight[tap])
        return mixed


def rotary(
    length: int, head_width: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The factors of `rotate` for positions 0..L-1: two tensors (L, head_width).

    The first holds the cosines twice, once for each half of the axis; the second the negative
    sines, then the sines.
    """
    exponents = torch.arange(0, head_width, 2, device=device, dtype=torch.float32) / head_width
    positions = torch.arange(length, device=device, dtype=torch.float32)
    angles = positions[:, None] / _ROPE_BASE**exponents
    cosine, sine = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat((cosine, cosine), dim=-1), torch.cat((-sine, sine), dim=-1)


def rotate(heads: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates the pairs (number j of the first half, number j of the second half) of the last axis:
    (B, H, L, C / H) -> the same shape."""
    cosine, sine = rotation
    return heads * cosine + heads.roll(heads.shape[-1] // 2, dims=-1) * sine
