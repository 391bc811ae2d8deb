"""Settings of the networks."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from smtkit.config.base import Config, Flag, NonNegative, Positive

_Finite = Annotated[float, Field(allow_inf_nan=False)]


class MemoryConfig(Config):
    """The shape of a memory."""

    slots: Annotated[Positive, Flag()] = 4
    """Number of memory slots (K). Raise it for a memory that holds more."""
    slot_width: Annotated[Positive, Flag()] = 64
    """Width of a memory slot (D). Raise it for a memory that holds more."""


class _AttentionConfig(Config):
    width: Positive = 128
    """Width of the residual stream. Raise it for a stronger network."""
    layers: Positive = 1
    """Number of blocks. Raise it for a stronger network."""
    heads: Positive = 4
    """Number of attention heads; 2 * heads must divide the width."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self._attends() and self.width % (2 * self.heads):
            raise ValueError(
                f"width ({self.width}) must be a multiple of 2 * heads ({2 * self.heads})"
            )
        return self

    def _attends(self) -> bool:
        return True


class EncoderConfig(_AttentionConfig, MemoryConfig):
    """The memory encoder, and with it the shape of memory: `slots` (K) of `slot_width` (D)."""

    requires = {"gate_bias": {"memory": ("gated",)}}

    kind: Literal["causal", "bidirectional"] = "causal"
    """`causal` computes all memories in one pass; `bidirectional` one per pass, as in the paper."""
    memory: Literal["projection", "registers", "gated"] = "projection"
    """How the `causal` encoder takes a memory from the output of its trunk. `projection`: a linear
    map of the output at position i; `registers`: K queries that attend to the outputs up to i;
    `gated`: the output at i sets what is kept of memory i - 1 and what is written, so that a cell
    can follow and the encoder can start from any memory."""
    gate_bias: tuple[_Finite, _Finite] = (-4.0, 1.5)
    """Initial biases of the gates of `gated` memory, spread evenly from the first to the second
    over the numbers of a slot. Lower both where memories must be held for long."""
    context_length: Positive | None = None
    """Tokens from which the `bidirectional` encoder computes a memory, the last ones before it;
    unset: all of the window."""
    layers: Positive = 2
    """Number of blocks. Raise it for a stronger teacher."""
    convolution: NonNegative = 4
    """Kernel size of the causal depthwise convolution in each block; 0: no convolution."""

    @model_validator(mode="after")
    def _kind_has_these(self) -> Self:
        if self.kind == "bidirectional" and self.memory != "projection":
            raise ValueError(
                f"memory = {self.memory} is for kind = causal; with bidirectional, use projection"
            )
        if self.kind == "causal" and self.context_length is not None:
            raise ValueError(
                f"context_length ({self.context_length}) is for kind = bidirectional; with causal, "
                "leave it unset"
            )
        return self


class DecoderConfig(_AttentionConfig):
    """The future decoder, which predicts what comes after a memory from that memory alone."""

    requires = {key: {"kind": ("transformer",)} for key in ("width", "layers", "heads")}

    kind: Literal["transformer", "handoff"] = "transformer"
    """`transformer`: a network of its own; `handoff`: the encoder itself, started from the memory,
    with the readout. `handoff` needs encoder.memory = gated."""

    def _attends(self) -> bool:
        return self.kind == "transformer"


class CellConfig(_AttentionConfig):
    """The transition cell. `gru` and `lstm` have one layer, whose state is the memory; the memory
    of `lstm` is its hidden state h, then its cell state c."""

    requires = {
        "layers": {"kind": ("mlp", "transformer")},
        "heads": {"kind": ("transformer",)},
        "gate": {"kind": ("mlp", "transformer")},
        "gate_bias": {"kind": ("mlp", "transformer", "gru")},
    }

    kind: Annotated[Literal["mlp", "transformer", "gru", "lstm"], Flag("cell")] = "mlp"
    """Architecture of the recurrent cell."""
    normalize: Literal["slot", "none"] = "slot"
    """`slot` scales each slot of the memory to a root mean square of 1 after each step."""
    width: Positive = 192
    """Width of the residual stream, or of the token embedding of `gru` and `lstm`. Raise it for a
    stronger cell."""
    gate: bool = False
    """Replace a gated share of each number of the memory, as `gru` does, instead of adding to it.
    Needs `normalize` = none. Set it for labels of `gated` memories."""
    gate_bias: tuple[_Finite, _Finite] | None = None
    """Initial biases of the gates of `gru`, or with `gate`, spread evenly from the first to the
    second over the numbers of a slot; a step replaces a share of sigmoid(bias). Unset: 0, and for
    `gru` small random numbers. Lower both where memories must be held for long."""

    @model_validator(mode="after")
    def _gates_exist(self) -> Self:
        if self.gate and self.normalize == "slot":
            raise ValueError(
                "gate = true needs normalize = none: normalising a slot changes all of its numbers"
            )
        if self.gate_bias is not None and not (self.gate or self.kind == "gru"):
            raise ValueError(
                f"gate_bias with kind = {self.kind} needs gate = true: without it, nothing is gated"
            )
        return self

    def _attends(self) -> bool:
        return self.kind == "transformer"


class ReadoutConfig(Config):
    """The readout, from memory to logits."""

    requires = {"hidden": {"kind": ("mlp",)}}

    kind: Literal["mlp", "decoder"] = "mlp"
    """`mlp`: a linear map or a small MLP; `decoder`: the future decoder with an empty future."""
    hidden: Positive | None = None
    """Hidden width of the MLP; unset: a linear map."""
