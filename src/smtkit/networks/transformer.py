"""The transformer that encoder, decoder and one cell are made of.

Pre-norm blocks of attention with rotary positions (RoPE, Su et al. 2021) and a gated MLP (SwiGLU,
Shazeer 2020), RMSNorm without bias; optionally a short causal depthwise convolution before the
attention. B: sequences, L: length, C: width, H: heads.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6
_ROPE_BASE = 10_000.0


class Transformer(nn.Module):
    """(B, L, C) -> (B, L, C): blocks and a last norm. `causal`: position i sees 0..i alone.

    `mask` (B, L), True where there is an input, at least once a row: inputs elsewhere change
    nothing, and what is said there means nothing.
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
            block.start_small(layers)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.RMSNorm(width, eps=NORM_EPS)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        rotation = rotary(inputs.shape[1], self.head_width, inputs.device, inputs.dtype)
        for block in self.blocks:
            inputs = block(inputs, rotation, mask)
        return self.norm(inputs)


class Block(nn.Module):
    """Convolution (optional), attention, MLP: each reads a norm of the stream and adds to it."""

    def __init__(self, width: int, heads: int, *, causal: bool, convolution: int) -> None:
        super().__init__()
        self.convolution = CausalConvolution(width, convolution) if convolution else None
        self.attention_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.attention = Attention(width, heads, causal=causal)
        self.mlp_norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.mlp = GatedMlp(width)

    def forward(
        self, inputs: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None = None
    ) -> Tensor:
        if self.convolution is not None:
            present = inputs if mask is None else inputs.masked_fill(~mask[:, :, None], 0)
            inputs = inputs + self.convolution(present)
        inputs = inputs + self.attention(self.attention_norm(inputs), rotation, mask)
        return inputs + self.mlp(self.mlp_norm(inputs))

    def start_small(self, layers: int) -> None:
        """Shrinks what is added to the stream, so that its variance does not grow with depth."""
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
        projected = self.query_key_value(inputs).view(batch, length, 3, self.heads, -1)
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
        """(B, L) -> (B, 1, 1 or L, L): the keys that each query sees. A causal one always sees
        itself: a softmax over nothing would not be a number."""
        keys = mask[:, None, None]
        if not self.causal:
            return keys
        places = torch.arange(mask.shape[1], device=mask.device)
        return keys & (places <= places[:, None]) | (places == places[:, None])


class GatedMlp(nn.Module):
    """SwiGLU with a hidden width of 8/3 C, rounded up to a multiple of 16: as many weights as an
    MLP of 4 C."""

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
        # A sum of shifted products: on a CPU ten times faster than a grouped convolution.
        kernel, length = len(self.weight), inputs.shape[1]
        padded = F.pad(inputs, (0, 0, kernel - 1, 0))
        mixed = padded[:, :length] * self.weight[0]
        for tap in range(1, kernel):
            mixed = torch.addcmul(mixed, padded[:, tap : tap + length], self.weight[tap])
        return mixed


def rotary(
    length: int, head_width: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """What `rotate` multiplies each position by, (L, head_width) twice: cosines of the two halves
    of the axis, and sines, negative for the first."""
    exponents = torch.arange(0, head_width, 2, device=device, dtype=torch.float32) / head_width
    positions = torch.arange(length, device=device, dtype=torch.float32)
    angles = positions[:, None] / _ROPE_BASE**exponents
    cosine, sine = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat((cosine, cosine), dim=-1), torch.cat((-sine, sine), dim=-1)


def rotate(heads: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates pairs (first half, second half) of the last axis of (B, H, L, C / H)."""
    cosine, sine = rotation
    return heads * cosine + heads.roll(heads.shape[-1] // 2, dims=-1) * sine
