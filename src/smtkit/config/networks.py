"""Settings of the networks."""

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from smtkit.config.base import Config, NonNegative, Only, Positive


class _AttentionConfig(Config):
    width: Positive
    """Of the residual stream."""
    layers: Positive
    """Blocks."""
    heads: Positive
    """Attention heads."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self._attends() and self.width % (2 * self.heads):
            raise ValueError(
                f"width ({self.width}) must be a multiple of 2 * heads ({2 * self.heads})"
            )
        return self

    def _attends(self) -> bool:
        return True


class EncoderConfig(_AttentionConfig):
    """The memory encoder, and with it the shape of memory: `slots` (K) of `slot_width` (D)."""

    kind: Literal["causal", "bidirectional"] = "causal"
    """`causal`: all memories in one pass; `bidirectional`: a pass a memory, as in the paper."""
    memory: Literal["projection", "registers"] = "projection"
    """Of `causal`: a projection of each position, or K queries that attend to what is before it."""
    context_length: Positive | None = None
    """Of `bidirectional`: tokens that a memory is made of, the latest; unset: the window."""
    slots: Positive = 4
    """K."""
    slot_width: Positive = 64
    """D."""
    width: Positive = 128
    """Of the residual stream."""
    layers: Positive = 2
    """Blocks."""
    heads: Positive = 4
    """Attention heads."""
    convolution: NonNegative = 4
    """Kernel of the causal depthwise convolution in every block; 0: none."""

    @model_validator(mode="after")
    def _kind_has_these(self) -> Self:
        if self.kind == "bidirectional" and self.memory == "registers":
            raise ValueError(
                "memory = registers is of kind = causal alone; of bidirectional, only projection"
            )
        if self.kind == "causal" and self.context_length is not None:
            raise ValueError(
                f"context_length ({self.context_length}) is of kind = bidirectional alone; of "
                "causal, it must be unset"
            )
        return self


class DecoderConfig(_AttentionConfig):
    """The future decoder."""

    width: Positive = 128
    """Of the residual stream."""
    layers: Positive = 1
    """Blocks."""
    heads: Positive = 4
    """Attention heads."""


class MemoryConfig(Config):
    """The shape of a memory."""

    slots: Positive = 4
    """K."""
    slot_width: Positive = 64
    """D."""


class CellConfig(_AttentionConfig):
    """The transition cell. `gru` and `lstm` have one layer, whose state is the memory (of `lstm`,
    its first half is h, its second c); `width` is that of their input embedding."""

    only: ClassVar[tuple[Only, ...]] = (
        Only("layers", "kind", ("mlp", "transformer")),
        Only("heads", "kind", ("transformer",)),
    )

    kind: Literal["mlp", "transformer", "gru", "lstm"] = "mlp"
    """Which cell."""
    normalize: Literal["slot", "none"] = "slot"
    """`slot`: every slot is scaled to a root mean square of one after each step."""
    width: Positive = 192
    """Of the residual stream."""
    layers: Positive = 1
    """Blocks."""
    heads: Positive = 4
    """Attention heads."""

    def _attends(self) -> bool:
        return self.kind == "transformer"


class ReadoutConfig(Config):
    """From memory to logits: a small MLP (`hidden` unset: a linear map), or the future decoder
    with an empty future."""

    only: ClassVar[tuple[Only, ...]] = (Only("hidden", "kind", ("mlp",)),)

    kind: Literal["mlp", "decoder"] = "mlp"
    """`mlp`, or the future decoder with an empty future."""
    hidden: Positive | None = None
    """Hidden width of the `mlp`; unset: a linear map."""
