"""`smtkit plan`: what the stages of some settings would take on this machine.

Each stage runs for about a second in a temporary folder, on what the one before it wrote there.
"""

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from smtkit.config import (
    Config,
    ExtractLabelsConfig,
    TokenizeConfig,
    TrainEncoderConfig,
    TrainingConfig,
    TrainRnnConfig,
    resolve,
)
from smtkit.corpus.noise import write_noise
from smtkit.corpus.shards import is_stream
from smtkit.corpus.windows import open_windows
from smtkit.errors import SmtkitError, UsageError
from smtkit.labels.format import LabelShape
from smtkit.networks.loading import load_rnn, load_teacher
from smtkit.stages import extract_labels, train_encoder, train_rnn
from smtkit.storage.artifact import Artifact
from smtkit.storage.location import PathOrURI
from smtkit.storage.manifest import METRICS, Manifest
from smtkit.training.distributed import choose_device
from smtkit.training.machine import PeakMemory, available_memory
from smtkit.training.sizes import gigabytes
from smtkit.training.trial import PATIENCE, step_cost

_SCHEMAS: dict[str, type[Config]] = {
    "tokenize": TokenizeConfig,
    "encoder": TrainEncoderConfig,
    "labels": ExtractLabelsConfig,
    "rnn": TrainRnnConfig,
    "smt": TrainRnnConfig,
    "dmt": TrainRnnConfig,
    "bptt": TrainRnnConfig,
}
"""What a file of settings is for, by the first part of its name; in the order of the pipeline."""
_BYTES = 257
_ROW = 784


@dataclass
class StagePlan:
    """What one stage takes. None: unknown, or not of this stage.

    `parameters` by part of the network. `windows`: those of its input. `reads`: windows that it
    reads of them, with repetitions. `unit_seconds` of one update, or, for labels, of one window;
    `seconds` of all, without validations. `memory`: the peak of the process, or of the GPU, for a
    batch of `batch` windows; time and memory were measured with `measured_batch`. `problems`: what
    does not fit, each with the key to change.
    """

    command: str
    settings: str
    parameters: dict[str, int]
    batch: int
    measured_batch: int
    unit_seconds: float
    memory: int
    available: int | None
    windows: int | None = None
    reads: int | None = None
    steps: int | None = None
    seconds: float | None = None
    disk: int | None = None
    disk_free: int | None = None
    problems: list[str] = field(default_factory=list)


def run(
    settings: Sequence[str | os.PathLike[str]], tokens: PathOrURI | None = None
) -> list[StagePlan]:
    """The plans of the stages whose settings are in TOML files, or in folders of them.

    A file is named after its stage: encoder.toml, labels.toml, rnn.toml, dmt.toml, bptt.toml, or
    encoder-large.toml. `tokens`: the artifact to train on; without it, random tokens in the
    vocabulary of tokenize.toml, or bytes. Raises UsageError where a file is for no stage, or the
    settings do not fit together, and what the stages raise.
    """
    files = _by_stage(settings)
    configs = {stage: _resolve(stage, path) for stage, path in files.items()}
    with tempfile.TemporaryDirectory(prefix="smtkit-plan-") as folder:
        trial = _Trial(Path(folder), tokens)
        if tokens is None:
            write_noise(trial.tokens, *_shape(configs.get("tokenize")))
        plans = []
        for stage in [stage for stage in configs if stage != "tokenize"]:
            try:
                plans.append(trial.plan(stage, configs[stage], str(files[stage])))
            except SmtkitError as error:
                raise type(error)(f"{files[stage]}: {error}", error.hint) from None
        return plans


def _by_stage(settings: Sequence[str | os.PathLike[str]]) -> dict[str, Path]:
    """The file of each stage, in the order of the pipeline."""
    found: dict[str, Path] = {}
    for path in map(Path, settings):
        for file in sorted(path.glob("*.toml")) if path.is_dir() else [path]:
            stage = file.stem.partition("-")[0]
            if stage not in _SCHEMAS:
                allowed = ", ".join(f"{name}.toml" for name in _SCHEMAS)
                raise UsageError(f"{file}: its name is that of no stage, allowed: {allowed}")
            if stage in found:
                raise UsageError(f"{file}: {found[stage]} is for the same stage, allowed: one file")
            found[stage] = file
    if not set(found) - {"tokenize"}:
        raise UsageError(f"{settings[0]}: no settings of a stage that trains or extracts")
    return {stage: found[stage] for stage in _SCHEMAS if stage in found}


def _resolve(stage: str, path: Path) -> Config:
    flags: dict[str, object] = {"method": stage} if stage in ("smt", "dmt", "bptt") else {}
    if stage == "tokenize":
        flags = {"inputs": ["-"]}  # the file need not name them
    return resolve(_SCHEMAS[stage], path, flags=flags)


def _shape(tokenize: Config | None) -> tuple[int, int | None]:
    """Vocabulary of the tokens, and length of their rows, None for text."""
    if not isinstance(tokenize, TokenizeConfig):
        return _BYTES, None
    if tokenize.tokenizer == "pixel":
        pixel = tokenize.pixel
        levels = pixel.levels or (256 if pixel.binarize is None else 2)
        return levels, math.prod(pixel.size) if pixel.size else _ROW
    return (tokenize.vocabulary_size if tokenize.tokenizer == "sentencepiece" else _BYTES), None


class _Trial:
    """Runs the stages for a moment in `folder`. `tokens` is what they are to train on."""

    def __init__(self, folder: Path, tokens: PathOrURI | None) -> None:
        self.tokens = folder / "tokens" if tokens is None else tokens
        self._is_given = tokens is not None
        self._folder = folder
        self._labels: int | None = None  # windows that the labels would have
        self._planned: set[str] = set()

    def plan(self, stage: str, config: Config, settings: str) -> StagePlan:
        if isinstance(config, TrainEncoderConfig):
            plan, change = self._encoder(config, settings), "raise `training.accumulation`"
        elif isinstance(config, TrainRnnConfig):
            plan, change = self._rnn(stage, config, settings), "raise `training.accumulation`"
        else:
            assert isinstance(config, ExtractLabelsConfig)
            plan, change = self._extraction(config, settings), "lower `batch_size`"
        self._planned.add(stage)
        if plan.available is not None and plan.memory > plan.available:
            plan.problems.append(
                f"takes {gigabytes(plan.memory)} of memory, {gigabytes(plan.available)} are "
                f"available: {change}"
            )
        return plan

    def _encoder(self, config: TrainEncoderConfig, settings: str) -> StagePlan:
        objective, training = config.objective, config.training
        whole_cost = objective.model_copy(update={"dynamics_start": 0, "dynamics_ramp": 0})

        def train(changed: TrainingConfig) -> Manifest:
            trial = config.model_copy(update={"training": changed, "objective": whole_cost})
            out = self._folder / "encoder"
            return train_encoder.run(trial, self.tokens, out, overwrite=True)

        least = training.accumulation * objective.uniformity_group
        plan = self._training("encoder", config, settings, train, least)
        plan.command = "train-encoder"
        plan.parameters = _parameters(load_teacher(self._open("encoder")))
        plan.windows = self._train_windows(config.data.window)
        start = objective.dynamics_start
        if isinstance(start, int) and plan.steps is not None and plan.steps <= start:
            plan.problems.append(
                f"ends after {plan.steps:,} updates, before the dynamics begin: lower "
                f"`objective.dynamics_start` ({start}), or train longer"
            )
        return plan

    def _rnn(self, stage: str, config: TrainRnnConfig, settings: str) -> StagePlan:
        data, init = self.tokens, None
        if config.method != "bptt":
            if "encoder" not in self._planned:
                raise UsageError("learns from labels", "name the settings of their encoder, too")
            if "labels" not in self._planned:
                self._extract(ExtractLabelsConfig(), 2)
            data = self._folder / "labels"
            earlier = [name for name in ("rnn", "smt") if name in self._planned]
            if stage == "dmt" and earlier and not config.init_from_labels:
                init = self._folder / earlier[0]

        def train(changed: TrainingConfig) -> Manifest:
            trial = config.model_copy(update={"training": changed})
            return train_rnn.run(trial, data, self._folder / stage, init=init, overwrite=True)

        plan = self._training(stage, config, settings, train, config.training.accumulation)
        plan.parameters = _parameters(load_rnn(self._open(stage)))
        is_bptt = config.method == "bptt"
        plan.windows = self._train_windows(config.data.window) if is_bptt else self._labels
        return plan

    def _training(
        self,
        stage: str,
        config: TrainEncoderConfig | TrainRnnConfig,
        settings: str,
        train: Callable[[TrainingConfig], Manifest],
        least: int,
    ) -> StagePlan:
        def metrics(changed: TrainingConfig) -> Path:
            train(changed)
            return self._open(stage).file(METRICS)

        device, training = choose_device(config.device), config.training
        cost = step_cost(metrics, training, least, device)
        seconds = training.max_seconds or math.inf
        most = training.max_steps or math.inf  # one of the two is set
        steps = math.ceil(min(most, seconds / cost.seconds))
        return StagePlan(
            "train-rnn",
            settings,
            {},
            batch=training.batch_size,
            measured_batch=cost.measured_batch,
            unit_seconds=cost.seconds,
            memory=cost.memory,
            available=available_memory(device),
            reads=steps * training.batch_size,
            steps=steps,
            seconds=min(steps * cost.seconds, seconds),
        )

    def _extraction(self, config: ExtractLabelsConfig, settings: str) -> StagePlan:
        if "encoder" not in self._planned:
            raise UsageError("labels are made by an encoder", "name its settings, too")
        teacher, device = load_teacher(self._open("encoder")).architecture, choose_device("auto")
        batch, available, peak = config.batch_size, available_memory(device), PeakMemory(device)
        one, measured = self._extract(config, 1), 1
        seconds, memory = one, peak.before + (peak.bytes() - peak.before) * batch
        if batch > 1 and one < PATIENCE and (available is None or memory < available):
            seconds = max(self._extract(config, batch) - one, 1e-6) / (batch - 1)
            memory, measured = peak.bytes(), batch
        windows = self._train_windows(teacher.window)
        limits = [limit for limit in (config.max_windows, windows) if limit is not None]
        self._labels = min(limits, default=None)
        plan = StagePlan(
            "extract-labels",
            settings,
            {},
            batch=batch,
            measured_batch=measured,
            unit_seconds=seconds,
            memory=memory,
            available=available,
            windows=windows,
            reads=self._labels,
            disk_free=shutil.disk_usage(Path.cwd()).free,
        )
        shape, size = teacher.memory, teacher.vocabulary_size
        row = LabelShape(teacher.window, shape.slots, shape.slot_width, size, config.dtype)
        if self._labels is not None:
            total = self._labels + config.max_validation_windows
            plan.seconds, plan.disk = total * seconds, total * row.row_bytes
            _check_disk(plan, row.row_bytes, config.dtype)
        return plan

    def _extract(self, config: ExtractLabelsConfig, windows: int) -> float:
        """Seconds to extract the labels of `windows` windows."""
        changes = {"max_windows": windows, "max_validation_windows": 1, "context": None}
        started, out = time.monotonic(), self._folder / "labels"
        encoder = self._folder / "encoder"
        trial = config.model_copy(update=changes)
        extract_labels.run(trial, encoder, self.tokens, out, overwrite=True)
        return time.monotonic() - started

    def _train_windows(self, window: int | None) -> int | None:
        """Windows that cover the train split once; None without an artifact of tokens."""
        if not self._is_given:
            return None
        tokens = Artifact.open(self.tokens, "tokens")
        return len(open_windows(tokens, "train", window if is_stream(tokens) else None).tiles())

    def _open(self, stage: str) -> Artifact:
        return Artifact.open(self._folder / stage)


def _check_disk(plan: StagePlan, row_bytes: int, dtype: str) -> None:
    free = plan.disk_free or 0
    if plan.disk is not None and plan.disk > free:
        smaller = "" if dtype == "int8" else ", or set `dtype` to int8"
        plan.problems.append(
            f"writes {gigabytes(plan.disk)}, {gigabytes(free)} are free here: lower `max_windows` "
            f"to {free // row_bytes:,}{smaller}"
        )


def _parameters(network: torch.nn.Module) -> dict[str, int]:
    """Parameters of each part of a network."""
    found: dict[str, int] = {}
    for name, parameter in network.named_parameters():
        part = name.partition(".")[0]
        found[part] = found.get(part, 0) + parameter.numel()
    return found
