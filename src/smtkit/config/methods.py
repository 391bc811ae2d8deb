"""Settings of the training methods: the data and the losses of the teacher and of the RNN."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from smtkit.config.base import Config, Flag, NonNegative, Positive, Share, Weight, is_share


class WindowConfig(Config):
    """The sequences of tokens a batch is made of."""

    window: Annotated[Annotated[int, Field(gt=0, le=2**20)] | None, Flag(metavar="T")] = None
    """Length of a sequence (T), in tokens; unset: 128 for text, the longest row for images and
    tasks. Raise it for memories that reach further back."""


class TransitionDataConfig(WindowConfig):
    """The transitions a batch is made of."""

    positions: Positive = 32
    """Transitions drawn from each window. Raise it to use more of each label row that is read."""
    readers: NonNegative | None = None
    """Threads that read the next batches ahead, one batch each; 0: none; unset: 2 on CUDA, 0 on a
    CPU. Raise it if the GPU waits for data."""


class PredictiveStateConfig(Config):
    """The joint objective of encoder, decoder, readout and co-trained cell."""

    requires = {"plateau": {"dynamics_start": ("auto",)}}

    future_length: NonNegative | Literal["rest"] = 16
    """Tokens after the memory that the decoder reads (F); it predicts F + 1 targets. `rest` is the
    remainder of the row. Raise it for memories that hold what is needed later."""
    anchors: Positive = 2
    """Positions per window from which the decoder predicts the future. Raise it for a better
    decoder, at a cost in time."""
    dynamics_positions: Positive = 32
    """Transitions per window on which the co-trained cell is trained."""
    uniformity_positions: Positive = 8
    """Memories per window that the uniformity term compares."""
    uniformity_group: Annotated[int, Field(ge=1)] = 8
    """Windows per group whose memories are compared with each other; it must divide a
    micro-batch."""
    decoding_weight: Weight = 1.0
    """Weight of the decoder's cross-entropy at the anchors."""
    own_memory: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the anchors at which a `handoff` starts from the memory of the co-trained cell's own
    rollout in place of the encoder's, ramped in like `dynamics_weight`. Raise it if the
    free-running RNN drifts."""
    dense_weight: Weight = 1.0
    """Weight of the readout's cross-entropy at `dense_positions`."""
    dense_positions: Positive | None = None
    """Positions per window of the dense term; unset: all with a causal encoder, else the
    anchors."""
    dynamics_weight: Weight = 2.0
    """Weight of the co-trained cell's squared error, after the ramp. Raise it for memories that are
    easier to follow, lower it for memories that predict better."""
    readout_weight: Weight = 2.0
    """Weight of the readout's cross-entropy on the memory the co-trained cell predicts, ramped in
    like `dynamics_weight`."""
    uniformity_weight: Weight = 0.01
    """Weight of the uniformity loss, the log of the mean potential between pairs of memories. Raise
    it if memories collapse."""
    uniformity: Literal["slot", "pooled"] = "slot"
    """Compare the same slot of two memories, or, as in the paper, any two slots."""
    uniformity_pairs: Literal["any", "aligned"] = "any"
    """Compare memories of all positions and sequences, or only of the same position in different
    sequences. With `aligned`, memories differ by what was read, not by how much."""
    dynamics_start: NonNegative | Literal["auto"] | Share = 100
    """Step at which the dynamics weight leaves zero, or, as `10%`, the share of the run; `auto`:
    when decoding leaves its plateau. Set it later if the decoding loss has not fallen by then."""
    plateau: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Decoding has left its plateau when its nll is below this share of the unigram's."""
    dynamics_ramp: NonNegative | Share = 200
    """Steps over which the dynamics weight grows to its full value; a share of the run where
    `dynamics_start` is one."""

    @model_validator(mode="after")
    def _decoding_is_trained(self) -> Self:
        if self.dynamics_start == "auto" and not self.decoding_weight:
            raise ValueError(
                "dynamics_start = auto waits for decoding, which decoding_weight = 0 switches off"
            )
        return self

    @model_validator(mode="after")
    def _units_agree(self) -> Self:
        if is_share(self.dynamics_start) != is_share(self.dynamics_ramp):
            raise ValueError(
                f"dynamics_start = {self.dynamics_start} and dynamics_ramp = {self.dynamics_ramp}: "
                "allowed: both in updates, or both as shares of the run, as 10%"
            )
        return self


class TransitionObjectiveConfig(Config):
    """The objective of the RNN, on transitions from labels (`smt`) or from its rollout (`dmt`)."""

    dynamics_weight: Weight = 10.0
    """Weight of the squared error of the predicted memory."""
    readout_weight: Weight = 1.0
    """Weight of the readout's cross-entropy on the predicted memory."""
    detach_readout: bool = False
    """Train the readout on the predicted memory without gradients into the cell."""
    kl_weight: Weight = 0.0
    """Weight of KL(p(label) || p(predicted)), each read by the frozen decoder."""
    kl_future: NonNegative = 8
    """Tokens after the memory that the decoder reads for the KL; it predicts one target more."""
    kl_positions: Positive = 8
    """Transitions per window on which the KL is computed."""
    noise: Weight = 0.0
    """Standard deviation of Gaussian noise on the input memories, in multiples of the measured
    error. That is the error of one step with `smt`, the drift of the rollout with `dmt`. Raise it
    if the free-running RNN drifts."""


class RolloutConfig(Config):
    """The rollouts of `dmt`: memories of the RNN itself, from which it learns to return to the
    labels."""

    requires = {
        "depth": {"kind": ("segments",)},
        "depth_ramp": {"kind": ("segments",)},
        "backprop": {"kind": ("segments", "sequential")},
        "sweeps": {"kind": ("jacobi",)},
    }

    kind: Annotated[Literal["segments", "sequential", "jacobi"], Flag("rollout")] = "segments"
    """How the RNN is rolled out. `segments`: chains in parallel, from labels and from the empty
    memory; `sequential`: one chain per window, from the empty memory, as in the paper; `jacobi`:
    repeated sweeps over all positions at once."""
    depth: Annotated[Positive, Flag()] = 16
    """Steps per chain, from one label to the next. Raise it if the RNN drifts on long sequences."""
    depth_ramp: NonNegative = 0
    """Updates over which the depth grows from 1, by a constant factor; 0: full depth at once."""
    backprop: NonNegative = 0
    """Steps of a chain through which gradients flow back: its memory is detached every `backprop`
    steps. 0 or 1: each step learns from a detached memory; `depth` or more: backpropagation through
    the whole chain. Raise it if the free-running RNN is much worse than one step from a label."""
    sweeps: Annotated[Positive, Flag()] = 4
    """Number of sweeps; after N of them, a memory is N steps away from a label."""
    loss_every: Positive = 1
    """Steps between two losses along a rollout. Raise it for faster updates."""
