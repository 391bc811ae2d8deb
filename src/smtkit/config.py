"""What can be set: one schema a stage, resolved as defaults < TOML file < --set < flags."""

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from smtkit.errors import UsageError

Device = Literal["auto", "cpu", "cuda"]
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


RUNTIME_KEYS = frozenset({"device", "training.log_every", "training.checkpoint_every"})
"""Keys that do not change what a run computes: a resumed run may set them anew."""


class Config(BaseModel):
    """Base of all schemas: unknown keys are errors, values do not change after resolution."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def identity(self) -> dict[str, Any]:
        """Dotted key to value, of all that decides what a run computes."""
        settings = _flatten(self.model_dump(mode="json"))
        return {key: value for key, value in settings if key not in RUNTIME_KEYS}


class TokenizeConfig(Config):
    """`smtkit tokenize`."""

    inputs: list[str] = Field(min_length=1)
    """Files, directories, globs."""
    tokenizer: Literal["byte", "char"] = "byte"
    """`byte`: any file; `char`: UTF-8 text, vocabulary from train."""
    include: list[str] = []
    """Of directories, only files that match one of these globs."""
    exclude: list[str] = []
    """Of directories, no files that match one of these globs."""
    errors: Literal["strict", "replace"] = "strict"
    """Bytes that are not UTF-8: an error, or U+FFFD."""
    validation_fraction: Fraction = 0.05
    """Share of the bytes."""
    test_fraction: Fraction = 0.05
    """Share of the bytes."""
    seed: int = 0
    """Of all random numbers."""

    @model_validator(mode="after")
    def _train_is_left(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction must be below 1")
        return self


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

    window: Positive = 128
    """T: tokens a sequence."""


class TransitionDataConfig(Config):
    """`positions`: how many transitions are drawn in each window."""

    positions: Positive = 32
    """Transitions drawn in each window."""


class PredictiveStateConfig(Config):
    """The joint objective of encoder, decoder and co-trained cell."""

    future_length: NonNegative = 16
    """F: how many tokens the decoder sees ahead; it predicts F + 1."""
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
    dynamics_weight: Weight = 0.1
    """Of the co-trained cell's squared error, once ramped in."""
    readout_weight: Weight = 0.0
    """Of the readout's cross-entropy on the co-trained cell's predicted memory, ramped in alike."""
    uniformity_weight: Weight = 0.01
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
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
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

    seed: int = 0
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

    seed: int = 0
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

    seed: int = 0
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

    seed: int | None = None
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


ConfigT = TypeVar("ConfigT", bound=Config)


def resolve(
    schema: type[ConfigT],
    file: Path | None = None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> ConfigT:
    """The configuration from defaults < `file` (TOML) < `overrides` (`section.key=value`) <
    `flags` (dotted key to value; None: not given).

    Raises UsageError: one line that names the source, the key, what was found and what is allowed.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, key, value in _settings(file, overrides, flags or {}):
        _assign(values, key, value, source)
        sources[key] = source
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise _explain(schema, error, sources) from None


def _settings(
    file: Path | None, overrides: Sequence[str], flags: Mapping[str, Any]
) -> Iterator[tuple[str, str, Any]]:
    if file is not None:
        for key, value in _flatten(_read_toml(file)):
            yield str(file), key, value
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {override}: expected section.key=value")
        yield f"--set {override}", key.strip(), _parse_value(text.strip())
    for key, value in flags.items():
        if value is not None:
            yield "--" + key.rpartition(".")[2].replace("_", "-"), key, value


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: not a readable TOML file: {error}") from None


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _assign(values: dict[str, Any], key: str, value: Any, source: str) -> None:
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UsageError(f"{source}: {key}: {section} is a value, not a section")
    values[name] = value


def _explain(
    schema: type[Config], error: ValidationError, sources: Mapping[str, str]
) -> UsageError:
    details = error.errors(include_url=False)
    detail = min(details, key=lambda found: found["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in detail["loc"])
    named = [source for name, source in sources.items() if _overlap(name, key)]
    where = f"{named[-1]}: " if named else ""
    if detail["type"] == "extra_forbidden":
        return UsageError(f"{where}unknown key {key}", _suggest(schema, key))
    if detail["type"] == "missing" and key == "training":
        return UsageError("training.max_steps or training.max_seconds must be set", _LIMIT_HINT)
    message = str(detail["msg"]).removeprefix("Value error, ")
    hint = _LIMIT_HINT if "max_steps or max_seconds" in message else None
    if detail["type"] in ("value_error", "missing"):
        return UsageError(f"{where}{key}: {message}" if key else message, hint)
    return UsageError(f"{where}{key} = {detail['input']!r}: {message}")


_LIMIT_HINT = "for example --max-steps 1000, or --max-seconds 600"


def _overlap(one: str, other: str) -> bool:
    """Whether one dotted key is the other, or lies in the other's section."""
    shorter, longer = sorted((one, other), key=len)
    return f"{longer}.".startswith(f"{shorter}.")


def _suggest(schema: type[Config], key: str) -> str:
    known = list(_keys(schema))
    name = key.rpartition(".")[2]
    same_name = [k for k in known if k.rpartition(".")[2] == name]
    close = same_name or difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    section = key.rpartition(".")[0]
    siblings = [k for k in known if k.rpartition(".")[0] == section] or known
    return "known keys: " + ", ".join(siblings)


def _keys(schema: type[Config], prefix: str = "") -> Iterator[str]:
    for name, field in schema.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Config):
            yield from _keys(annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
