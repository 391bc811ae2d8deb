"""Settings of the stages that train, and of the labels between them."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from smtkit.config.base import (
    Config,
    Device,
    Fraction,
    NonNegative,
    Only,
    Positive,
    Seed,
    Weight,
    flatten,
)
from smtkit.config.networks import (
    CellConfig,
    DecoderConfig,
    EncoderConfig,
    MemoryConfig,
    ReadoutConfig,
)
from smtkit.errors import UsageError


class WindowConfig(Config):
    """`window` (T): how many tokens a sequence has."""

    window: Positive | None = None
    """T; unset: 128 for text, the longest row for images and tasks."""


class TransitionDataConfig(WindowConfig):
    """What a batch is made of."""

    positions: Positive = 32
    """Of `smt`: transitions drawn in each window."""
    readers: NonNegative | None = None
    """Threads that read the batches of the next steps, one each, while this one computes; 0: none.
    Unset: 2 on CUDA; none on a CPU, whose cores have no time to spare."""


class PredictiveStateConfig(Config):
    """The joint objective of encoder, decoder and co-trained cell."""

    only: ClassVar[tuple[Only, ...]] = (Only("plateau", "dynamics_start", ("auto",)),)

    future_length: NonNegative | Literal["rest"] = 16
    """F: how many tokens the decoder sees ahead; it predicts F + 1. `rest`: all of the row."""
    anchors: Positive = 2
    """Positions a window at which the decoder is asked for the future."""
    dynamics_positions: Positive = 32
    """Transitions a window on which the cell is trained."""
    uniformity_positions: Positive = 8
    """Memories a window that the uniformity term compares."""
    uniformity_group: Annotated[int, Field(ge=1)] = 8
    """Windows that are compared with each other; it divides a micro-batch."""
    decoding_weight: Weight = 1.0
    """Of the decoder's cross-entropy at the anchors."""
    dense_weight: Weight = 1.0
    """Of the readout's cross-entropy at `dense_positions`."""
    dense_positions: Positive | None = None
    """Positions a window of the dense term; unset: all (`causal`), or the anchors."""
    dynamics_weight: Weight = 2.0
    """Of the co-trained cell's squared error, once ramped in."""
    readout_weight: Weight = 2.0
    """Of the readout's cross-entropy on the co-trained cell's predicted memory, ramped in alike."""
    uniformity_weight: Weight = 0.01
    """Of the log mean potential of pairs of memories."""
    uniformity: Literal["slot", "pooled"] = "slot"
    """Pairs of the same slot, or, as in the paper, of any."""
    uniformity_pairs: Literal["any", "aligned"] = "any"
    """`any`: of all positions and sequences; `aligned`: of one position in different sequences, so
    that memories differ by what was read, not by how much."""
    dynamics_start: NonNegative | Literal["auto"] = 100
    """Step at which the dynamics weight leaves zero; `auto`: when decoding has left its plateau."""
    plateau: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Of `auto`: the share of the unigram's nll below which decoding has left its plateau."""
    dynamics_ramp: NonNegative = 200
    """Steps over which it then grows to `dynamics_weight`."""

    @model_validator(mode="after")
    def _decoding_is_learned(self) -> Self:
        if self.dynamics_start == "auto" and not self.decoding_weight:
            raise ValueError(
                "dynamics_start = auto waits for decoding, which decoding_weight = 0 switches off"
            )
        return self


class TransitionObjectiveConfig(Config):
    """The objective of the RNN, on transitions from labels (`smt`) or from its rollout (`dmt`)."""

    dynamics_weight: Weight = 10.0
    """Of the squared error of the predicted memory."""
    readout_weight: Weight = 1.0
    """Of the cross-entropy of the readout on the predicted memory."""
    detach_readout: bool = False
    """The readout learns from the predicted memory, but does not move it."""
    kl_weight: Weight = 0.0
    """Of KL(p(label) || p(predicted)) through the frozen decoder."""
    kl_future: NonNegative = 8
    """Tokens after the memory that the decoder sees for it; it predicts one more."""
    kl_positions: Positive = 8
    """Transitions a window on which it is taken."""
    noise: Weight = 0.0
    """Of Gaussian noise on the labels that are read, in multiples of the measured error: of one
    step (`smt`), or the drift of the rollout (`dmt`)."""


class RolloutConfig(Config):
    """Of `dmt`: the RNN's own memories, from which it learns to come back."""

    only: ClassVar[tuple[Only, ...]] = (
        Only("depth", "kind", ("segments",)),
        Only("depth_ramp", "kind", ("segments",)),
        Only("sweeps", "kind", ("jacobi",)),
    )

    kind: Literal["segments", "sequential", "jacobi"] = "segments"
    """`segments`: chains side by side, from labels and from the empty memory; `sequential`: one
    chain, from the empty memory; `jacobi`: sweeps over all positions at once."""
    depth: Positive = 16
    """Of `segments`: steps a chain."""
    depth_ramp: NonNegative = 0
    """Of `segments`: updates over which the depth grows from 1, by a constant factor."""
    sweeps: Positive = 4
    """Of `jacobi`: after so many, a memory is that many steps from a label."""
    loss_every: Positive = 1
    """Steps of the rollout between those that are learned from."""


class TrainingConfig(Config):
    """The loop. One of `max_steps` and `max_seconds` must be set; the schedule follows the one
    that is nearer to its end."""

    batch_size: Positive = 32
    """Windows a step, over all ranks and accumulation steps."""
    accumulation: Positive = 1
    """Parts in which a batch is computed: on a CPU, of some 2,000 tokens is fastest."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    """The highest."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """Of AdamW."""
    weight_decay: Weight = 0.01
    """Of AdamW, on matrices only."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """After the warm-up; the cosine falls to zero."""
    warmup_steps: NonNegative = 50
    """Steps of linear warm-up."""
    max_steps: Positive | None = None
    """Stop after so many updates."""
    max_seconds: Annotated[float, Field(gt=0)] | None = None
    """Stop after so many seconds of training; validations do not count."""
    clock: Literal["wall", "cpu"] = "wall"
    """What seconds are: on the wall, or of all threads of this process, which no other slows."""
    stop_at_accuracy: Annotated[float, Field(gt=0, le=1)] | None = None
    """Stop when this share of validation's answers is right, free-running; unset: go on."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 autocast on CUDA, float32 on a CPU."""
    compile: bool = False
    """torch.compile every part of the network."""
    log_every: Positive = 20
    """Steps between records of training."""
    validate_every: Positive = 200
    """Steps between validations."""
    validate_seconds: Annotated[float, Field(gt=0)] | None = None
    """Seconds of training between validations, in place of steps."""
    validation_windows: Positive = 128
    """Windows a validation."""
    checkpoint_every: Positive = 200
    """Steps between checkpoints."""

    def micro_batch(self, ranks: int = 1) -> int:
        """Windows that a rank computes at a time. Raises UsageError where they are not whole."""
        if self.batch_size % (ranks * self.accumulation):
            raise UsageError(
                f"training.batch_size ({self.batch_size}): must be a multiple of ranks ({ranks}) * "
                f"training.accumulation ({self.accumulation})"
            )
        return self.batch_size // (ranks * self.accumulation)

    def validation_batches(self, windows: int) -> int:
        """Whole batches a validation, of a split that has so many windows; at least one."""
        return max(1, min(self.validation_windows, windows) // self.batch_size)

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.max_steps is None and self.max_seconds is None:
            raise ValueError("max_steps or max_seconds must be set")
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of accumulation "
                f"({self.accumulation})"
            )
        return self


class TrainEncoderConfig(Config):
    """`smtkit train-encoder`."""

    seed: Seed = 0
    """Of all random numbers."""
    device: Device = "auto"
    """`auto`: CUDA where there is one."""
    data: WindowConfig = WindowConfig()
    encoder: EncoderConfig = EncoderConfig()
    decoder: DecoderConfig = DecoderConfig()
    cell: CellConfig = CellConfig()
    readout: ReadoutConfig = ReadoutConfig()
    objective: PredictiveStateConfig = PredictiveStateConfig()
    training: TrainingConfig

    @model_validator(mode="after")
    def _pairs_exist(self) -> Self:
        objective = self.objective
        if objective.uniformity_positions * objective.uniformity_group < 2:
            raise ValueError(
                "objective.uniformity_positions * objective.uniformity_group must be at least 2"
            )
        if objective.uniformity_pairs == "aligned" and objective.uniformity_group < 2:
            raise ValueError(
                "objective.uniformity_pairs = aligned compares sequences: "
                f"objective.uniformity_group ({objective.uniformity_group}) must be at least 2"
            )
        return self

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        micro_batch = self.training.batch_size // self.training.accumulation
        if micro_batch % self.objective.uniformity_group:
            raise ValueError(
                f"objective.uniformity_group ({self.objective.uniformity_group}) must divide "
                f"training.batch_size / training.accumulation ({micro_batch})"
            )
        return self


class ExtractLabelsConfig(Config):
    """`smtkit extract-labels`."""

    seed: Seed = 0
    """Of all random numbers."""
    device: Device = "auto"
    """`auto`: CUDA where there is one."""
    dtype: Literal["float16", "bfloat16", "int8", "float32"] = "float16"
    """Of the stored memories; `int8` with a scale a slot."""
    max_windows: Positive | None = None
    """Train windows, drawn by the seed; unset: all."""
    max_validation_windows: Positive = 256
    """Validation windows, drawn by the seed."""
    batch_size: Positive = 64
    """Windows a pass of the encoder."""
    shard_bytes: Positive = 64 * 2**20
    """Bytes of memories a shard."""


Method = Literal["smt", "dmt", "bptt"]

_NETWORK = ("memory.", "cell.", "readout.", "decoder.")
"""Of these a manifest says what was trained, which the settings need not have asked for."""


class TrainRnnConfig(Config):
    """`smtkit train-rnn`."""

    only: ClassVar[tuple[Only, ...]] = (
        Only("init_from_labels", "method", ("smt", "dmt")),
        Only("objective", "method", ("smt", "dmt")),
        Only("data.positions", "method", ("smt",)),
        Only("data.window", "method", ("bptt",)),
        Only("memory", "method", ("bptt",)),
        Only("rollout", "method", ("dmt",)),
        Only("decoder", "method", ("bptt",)),
        Only("decoder", "readout.kind", ("decoder",)),
        Only("bptt_window", "method", ("bptt",)),
    )

    seed: Seed = 0
    """Of all random numbers."""
    device: Device = "auto"
    """`auto`: CUDA where there is one."""
    method: Method = "smt"
    """`smt`: one-step transitions, never unrolled; `dmt`: the same, from the RNN's own rollout;
    `bptt`: backpropagation through time, from tokens alone."""
    init_from_labels: bool = False
    """Of `smt` and `dmt`: start from the teacher's co-trained cell and readout."""
    bptt_window: Positive | None = None
    """Of `bptt`: steps through which a gradient flows back; unset: all of the window."""
    data: TransitionDataConfig = TransitionDataConfig()
    memory: MemoryConfig = MemoryConfig()
    cell: CellConfig = CellConfig()
    readout: ReadoutConfig = ReadoutConfig()
    decoder: DecoderConfig = DecoderConfig()
    objective: TransitionObjectiveConfig = TransitionObjectiveConfig()
    rollout: RolloutConfig = RolloutConfig()
    training: TrainingConfig

    @model_validator(mode="after")
    def _settings_are_of_the_method(self) -> Self:
        changed = (key for key, _ in flatten(self.model_dump(exclude_defaults=True)))
        others = self.refused(key for key in changed if not key.startswith(_NETWORK))
        for _, line in others:
            raise ValueError(line)
        if self.objective.noise and self.method == "dmt" and self.rollout.kind == "sequential":
            raise ValueError(
                "objective.noise disturbs labels, and a sequential rollout starts from none; "
                "allowed with it: rollout.kind segments or jacobi"
            )
        return self
