"""What can be set: one schema a stage. `resolve.py` fills them in."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Device = Literal["auto", "cpu", "cuda"]
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


RUNTIME_KEYS = frozenset({"device", "workers", "training.log_every", "training.checkpoint_every"})
"""Keys that do not change what a run computes: a resumed run may set them anew."""


class Config(BaseModel):
    """Base of all schemas: unknown keys are errors, values do not change after resolution."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def identity(self) -> dict[str, Any]:
        """Dotted key to value, of all that decides what a run computes."""
        settings = flatten(self.model_dump(mode="json"))
        return {key: value for key, value in settings if key not in RUNTIME_KEYS}


class PixelConfig(Config):
    """How images become tokens."""

    levels: Annotated[int, Field(ge=2, le=256)] | None = None
    """Grey levels; unset: 256, or 2 with `binarize`."""
    size: tuple[Positive, Positive] | None = None
    """Height and width to resample to, by area; unset: as the source has them."""
    maximum: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """The source's white; unset: 255 for whole numbers, 1 for others."""
    binarize: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of white from which a pixel is 1, else 0."""
    order: Literal["raster"] = "raster"
    """Line by line from the top left corner."""


class TokenizeConfig(Config):
    """`smtkit tokenize`."""

    inputs: list[str] = Field(min_length=1)
    """Files, directories, globs; `-`: standard input."""
    test_inputs: list[str] = []
    """Files that are the test split; unset: a share of the inputs is."""
    tokenizer: Literal["byte", "char", "sentencepiece", "pixel"] = "byte"
    """`byte`: any file; `char`: vocabulary from train; `sentencepiece`; `pixel`: images."""
    include: list[str] = []
    """Of directories, only files that match one of these globs."""
    exclude: list[str] = []
    """Of directories, no files that match one of these globs."""
    format: Literal["text", "jsonl", "csv", "parquet"] | None = None
    """Of text; unset: by the file's suffix."""
    text_field: str = "text"
    """The field, or column, of the text in jsonl, csv and parquet."""
    errors: Literal["strict", "replace", "skip"] = "strict"
    """Broken rows and bytes that are not UTF-8: an error, U+FFFD, or pass over the document."""
    max_expansion: Annotated[float, Field(ge=1)] = 200.0
    """What a compressed file may expand to, in multiples of its size; 64 MiB always."""
    vocabulary_size: Annotated[int, Field(ge=300)] = 4096
    """Of a sentencepiece model to train, with its bytes and the end of a document."""
    model_type: Literal["unigram", "bpe"] = "unigram"
    """Of a sentencepiece model to train."""
    tokenizer_model: str | None = None
    """An existing sentencepiece model."""
    training_bytes: Positive = 10 * 2**20
    """Text of train, drawn by the seed, on which a sentencepiece model is trained."""
    pixel: PixelConfig = PixelConfig()
    validation_fraction: Fraction = 0.05
    """Share of the bytes."""
    test_fraction: Fraction = 0.05
    """Share of the bytes."""
    seed: Seed = 0
    """Of all random numbers."""
    workers: Positive | None = None
    """Threads; unset: one a core."""

    @model_validator(mode="after")
    def _train_is_left(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction must be below 1")
        return self


class SynthesizeConfig(Config):
    """`smtkit synthesize`."""

    task: Literal[
        "retrieval",
        "string-copy",
        "stack",
        "keys-values",
        "modular-arithmetic",
        "parity",
        "recency",
    ]
    """What is to be remembered."""
    lengths: list[Positive] = Field(min_length=1)
    """Tokens a row; of several, each row draws one."""
    sequences: Positive
    """Rows of train."""
    validation_sequences: Positive = 1000
    """Rows of validation."""
    test_sequences: Positive = 1000
    """Rows of test."""
    vocabulary: Annotated[int, Field(ge=2)] | None = None
    """Tokens, with the task's marks; unset: what suits the task."""
    noise: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the tokens that mean nothing; unset: what suits the task."""
    reverse: bool = False
    """Of `string-copy`: the last symbol first."""
    depth: Positive = 8
    """Of `stack`: the most values on it."""
    pairs: Positive | None = None
    """Of `keys-values`: pairs a row; unset: a quarter of the length."""
    seed: Seed = 0
    """Of all random numbers."""


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


class DecoderConfig(_AttentionConfig):
    """The future decoder."""

    width: Positive = 128
    """Of the residual stream."""
    layers: Positive = 1
    """Blocks."""
    heads: Positive = 4
    """Attention heads."""


class CellConfig(_AttentionConfig):
    """The transition cell. A `gru` has one layer, whose state is the memory; `width` is that of its
    input embedding."""

    kind: Literal["mlp", "transformer", "gru"] = "mlp"
    """Which cell."""
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

    kind: Literal["mlp", "decoder"] = "mlp"
    """`mlp`, or the future decoder with an empty future."""
    hidden: Positive | None = None
    """Hidden width of the `mlp`; unset: a linear map."""


class WindowConfig(Config):
    """`window` (T): how many tokens a sequence has."""

    window: Positive | None = None
    """T; unset: 128 for text, the longest row for images and tasks."""


class TransitionDataConfig(Config):
    """`positions`: how many transitions are drawn in each window."""

    positions: Positive = 32
    """Transitions drawn in each window."""


class PredictiveStateConfig(Config):
    """The joint objective of encoder, decoder and co-trained cell."""

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
    """Of the readout's cross-entropy at all positions."""
    dynamics_weight: Weight = 2.0
    """Of the co-trained cell's squared error, once ramped in."""
    readout_weight: Weight = 2.0
    """Of the readout's cross-entropy on the co-trained cell's predicted memory, ramped in alike."""
    uniformity_weight: Weight = 0.1
    """Of the log mean potential of pairs of memories."""
    dynamics_start: NonNegative = 100
    """Step at which the dynamics weight leaves zero."""
    dynamics_ramp: NonNegative = 200
    """Steps over which it then grows to `dynamics_weight`."""


class TransitionObjectiveConfig(Config):
    """The one-step objective of the RNN."""

    dynamics_weight: Weight = 10.0
    """Of the squared error of the predicted memory."""
    readout_weight: Weight = 1.0
    """Of the cross-entropy of the readout on the predicted memory."""


class TrainingConfig(Config):
    """The loop. One of `max_steps` and `max_seconds` must be set; the schedule follows the one
    that is nearer to its end."""

    batch_size: Positive = 32
    """Windows a step, over all ranks and accumulation steps."""
    accumulation: Positive = 1
    """Parts in which a batch is computed."""
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
    """Stop after so many seconds of training."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 autocast on CUDA, float32 on a CPU."""
    compile: bool = False
    """torch.compile every part of the network."""
    log_every: Positive = 20
    """Steps between records of training."""
    validate_every: Positive = 200
    """Steps between validations."""
    validation_windows: Positive = 128
    """Windows a validation."""
    checkpoint_every: Positive = 200
    """Steps between checkpoints."""

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
        if self.objective.uniformity_positions * self.objective.uniformity_group < 2:
            raise ValueError(
                "objective.uniformity_positions * objective.uniformity_group must be at least 2"
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
    dtype: Literal["float16", "float32"] = "float16"
    """Of the stored memories."""
    max_windows: Positive | None = None
    """Train windows, drawn by the seed; unset: all."""
    max_validation_windows: Positive = 256
    """Validation windows, drawn by the seed."""
    batch_size: Positive = 64
    """Windows a pass of the encoder."""
    shard_bytes: Positive = 64 * 2**20
    """Bytes of memories a shard."""


class TrainRnnConfig(Config):
    """`smtkit train-rnn --method smt`."""

    seed: Seed = 0
    """Of all random numbers."""
    device: Device = "auto"
    """`auto`: CUDA where there is one."""
    method: Literal["smt"] = "smt"
    """`smt`: one-step transitions, never unrolled."""
    init_from_labels: bool = False
    """Start from the teacher's co-trained cell and readout."""
    data: TransitionDataConfig = TransitionDataConfig()
    cell: CellConfig = CellConfig()
    readout: ReadoutConfig = ReadoutConfig()
    objective: TransitionObjectiveConfig = TransitionObjectiveConfig()
    training: TrainingConfig


class EvaluateConfig(Config):
    """`smtkit eval`."""

    device: Device = "auto"
    """`auto`: CUDA where there is one."""
    split: Literal["train", "validation", "test"] = "test"
    """Which split is read."""
    windows: Positive = 256
    """Windows of 4 T tokens, spread evenly over the split."""
    batch_size: Positive = 32
    """Windows at a time."""
    baseline_tokens: Positive = 50_000_000
    """Tokens of train on which the n-gram baselines are counted."""


class GenerateConfig(Config):
    """`smtkit generate`."""

    seed: Seed | None = None
    """Of the draws; unset: another text each time."""
    device: Device = "auto"
    """`auto`: CUDA where there is one."""
    prompt: str = ""
    """Text to go on from."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """0: the likeliest token always."""
    top_k: Positive | None = None
    """Among the k likeliest tokens."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Among the fewest tokens that together have this probability."""
    max_tokens: Positive = 500
    """Stop after so many."""


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything in a table of tables."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
