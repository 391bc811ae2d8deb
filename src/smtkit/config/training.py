"""Settings of the stages that train, and of the labels between them."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from smtkit.config.base import (
    Config,
    DeviceConfig,
    Flag,
    Fraction,
    NonNegative,
    Positive,
    Seed,
    Weight,
    flatten,
)
from smtkit.config.methods import (
    PredictiveStateConfig,
    RolloutConfig,
    TransitionDataConfig,
    TransitionObjectiveConfig,
    WindowConfig,
)
from smtkit.config.networks import (
    CellConfig,
    DecoderConfig,
    EncoderConfig,
    MemoryConfig,
    ReadoutConfig,
)
from smtkit.config.settings import unused
from smtkit.errors import UsageError


class TrainingConfig(Config):
    """The training loop. `max_steps` or `max_seconds` must be set; with both, training ends at the
    first, and the schedule follows the one nearer to its end."""

    batch_size: Positive = 32
    """Windows per update, over all ranks and accumulation steps."""
    accumulation: Positive = 1
    """Micro-batches per update, computed one after the other. Raise it if memory runs out; on a
    CPU, micro-batches of some 2,000 tokens are fastest."""
    learning_rate: Annotated[Annotated[float, Field(gt=0)], Flag()] = 3e-3
    """Peak learning rate of AdamW, after the warm-up. Lower it if the loss spikes."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """Decay rates of AdamW's two moments."""
    weight_decay: Weight = 0.01
    """Weight decay of AdamW, on matrices only. Raise it if validation loss rises."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient; a longer gradient is scaled down to it."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate after the warm-up; `cosine` decays it to zero at the end of the run. A run that
    goes on for longer has, from there on, the learning rate of a run of that length."""
    warmup_steps: NonNegative = 50
    """Updates over which the learning rate grows linearly to its peak."""
    max_steps: Annotated[Positive | None, Flag()] = None
    """Number of updates after which training ends; unset: no limit. With `resume`, a run goes on to
    a larger number, also if it is finished."""
    max_seconds: Annotated[Annotated[float, Field(gt=0)] | None, Flag()] = None
    """Seconds of training, without validations, after which training ends; unset: no limit. With
    `resume`, a run goes on to a larger number, also if it is finished."""
    clock: Literal["wall", "cpu"] = "wall"
    """Seconds of wall time, or of CPU time of all threads of this process. CPU time does not depend
    on what else the machine runs."""
    stop_at_accuracy: Annotated[float, Field(gt=0, le=1)] | None = None
    """Stop when the accuracy of the free-running RNN on validation reaches this; unset: never."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the computation; `auto`: bfloat16 autocast on CUDA, float32 on a CPU."""
    compile: bool = False
    """Compile each part of the network with torch.compile. Set it for long runs on a GPU."""
    sharding: Literal["none", "fsdp"] = "none"
    """How several ranks hold the network: `none`, each a whole copy (DistributedDataParallel);
    `fsdp`, each a shard of weights, gradients and optimizer state (`fully_shard`). Set `fsdp` for a
    network that does not fit one GPU."""
    log_every: Positive = 20
    """Updates between two lines of the metrics log."""
    validate_every: Positive = 200
    """Updates between two validations."""
    validate_seconds: Annotated[float, Field(gt=0)] | None = None
    """Seconds of training between two validations; unset: `validate_every` updates."""
    validation_windows: Positive = 128
    """Windows per validation. Raise it for smaller standard errors."""
    sample_every: Positive | None = None
    """Updates between two samples of text, or an image, that the RNN, or the teacher's co-trained
    cell, draws from its empty memory; unset: none. They are shown and written to the metrics log,
    always with the same seed."""
    checkpoint_every: Positive = 200
    """Updates between two checkpoints."""
    keep_state: bool = True
    """Keep the last checkpoint in the artifact, so that `resume` can go on for longer. It is three
    times as large as the weights; turn it off to save that."""

    def micro_batch(self, ranks: int = 1) -> int:
        """Windows per forward pass of one rank. Raises UsageError if that is not an integer."""
        if self.batch_size % (ranks * self.accumulation):
            raise UsageError(
                f"`training.batch_size` ({self.batch_size}): must be a multiple of ranks ({ranks}) "
                f"* `training.accumulation` ({self.accumulation})"
            )
        return self.batch_size // (ranks * self.accumulation)

    def validation_batches(self, windows: int) -> int:
        """Full batches per validation, for a split of `windows` windows; at least 1."""
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


class _SeedAndDevice(DeviceConfig):
    seed: Annotated[Seed, Flag()] = 0
    """Seed of the initial weights and of the order and choice of samples."""


class TrainEncoderConfig(_SeedAndDevice):
    """Train the teacher: its memories predict the future.

    The teacher is an encoder, which writes memories, and a decoder, which predicts the future from
    them. The readout and a first cell are trained together with it.
    """

    main = (
        "training.max_steps",
        "training.learning_rate",
        "data.window",
        "encoder.slots",
        "encoder.slot_width",
    )
    requires = {"objective.own_memory": {"decoder.kind": ("handoff",)}}

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
    def _handoffs_read(self) -> Self:
        objective = self.objective
        if self.decoder.kind != "handoff":
            return self
        if objective.future_length == 0:
            raise ValueError(
                "decoder.kind = handoff reads at least one token after the memory: "
                "objective.future_length (0) must be at least 1"
            )
        if objective.own_memory and not objective.dynamics_weight:
            raise ValueError(
                f"objective.own_memory ({objective.own_memory}) hands off the cell's memory, but "
                "objective.dynamics_weight = 0 leaves the cell untrained: set objective.own_memory "
                "= 0, too"
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


class ExtractLabelsConfig(DeviceConfig):
    """Write the teacher's memories, as labels for the RNN.

    Independent jobs can share the work: each writes one `part`; `finalize` completes the artifact.
    """

    main = ("max_windows", "max_validation_windows", "dtype", "batch_size", "device")

    seed: Annotated[Seed, Flag()] = 0
    """Seed of the choice of windows."""
    dtype: Annotated[Literal["float16", "bfloat16", "int8", "float32"], Flag()] = "float16"
    """Number format of the stored memories. `int8` has one scale per slot and halves the size of
    `float16`."""
    max_windows: Annotated[Positive | None, Flag()] = None
    """Largest number of train windows, drawn by the seed; unset: all. Lower it if the labels do not
    fit on the disk."""
    max_validation_windows: Annotated[Positive, Flag()] = 256
    """Largest number of validation windows, drawn by the seed."""
    context: Annotated[Positive | None, Flag(metavar="K")] = None
    """Tokens per segment: with an RNN (`rnn`), the encoder starts each one from that RNN's own
    memory; unset: no RNN. Needs encoder.memory = gated. Lower it if the free-running RNN is much
    worse than one step from a label."""
    batch_size: Annotated[Positive, Flag()] = 64
    """Windows per forward pass of the encoder. Lower it if memory runs out."""
    shard_bytes: Positive = 64 * 2**20
    """Bytes of memories per shard file."""


Method = Literal["smt", "dmt", "bptt"]

_NETWORK = ("memory.", "cell.", "readout.", "decoder.")
"""For these sections the manifest records the network actually trained, which need not be the one
in the settings: they may differ from the defaults though they have no effect."""


class TrainRnnConfig(_SeedAndDevice):
    """Train an RNN on labels, in parallel over time, or by BPTT.

    The methods smt and dmt learn from the teacher's memories, which are in the labels artifact;
    bptt, the baseline, learns from tokens alone.
    """

    main = (
        "method",
        "cell.kind",
        "training.max_steps",
        "training.learning_rate",
        "init_from_labels",
    )
    requires = {
        "init_from_labels": {"method": ("smt", "dmt")},
        "objective": {"method": ("smt", "dmt")},
        "data.positions": {"method": ("smt",)},
        "data.window": {"method": ("bptt",)},
        "memory": {"method": ("bptt",)},
        "rollout": {"method": ("dmt",)},
        "decoder": {"method": ("bptt",), "readout.kind": ("decoder",)},
        "bptt_window": {"method": ("bptt",)},
    }

    method: Annotated[Method, Flag()] = "smt"
    """Training method: one-step transitions, the same from the RNN's own rollout, or
    backpropagation through time. `smt` never unrolls the RNN; `dmt` corrects its drift; `bptt`
    needs tokens alone and is the baseline."""
    init_from_labels: Annotated[bool, Flag()] = False
    """Start from the teacher's co-trained cell and readout, which are stored with the labels."""
    bptt_window: Annotated[Positive | None, Flag()] = None
    """Steps through which gradients flow back; unset: the whole window. Set it if memory runs
    out."""
    data: TransitionDataConfig = TransitionDataConfig()
    memory: MemoryConfig = MemoryConfig()
    cell: CellConfig = CellConfig()
    readout: ReadoutConfig = ReadoutConfig()
    decoder: DecoderConfig = DecoderConfig()
    objective: TransitionObjectiveConfig = TransitionObjectiveConfig()
    rollout: RolloutConfig = RolloutConfig()
    training: TrainingConfig

    @model_validator(mode="after")
    def _settings_fit_the_method(self) -> Self:
        changed = (key for key, _ in flatten(self.model_dump(exclude_defaults=True)))
        for _, line in unused(self, (key for key in changed if not key.startswith(_NETWORK))):
            raise ValueError(line)
        if self.objective.noise and self.method == "dmt" and self.rollout.kind == "sequential":
            raise ValueError(
                "objective.noise is added to labels, and a sequential rollout uses none; "
                "use rollout.kind segments or jacobi"
            )
        if self.decoder.kind == "handoff" and self.readout.kind == "decoder":
            raise ValueError(
                "readout.kind = decoder needs decoder.kind = transformer: an RNN has no encoder to "
                "hand off to"
            )
        return self
