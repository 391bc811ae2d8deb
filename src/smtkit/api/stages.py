"""`smtkit.tokenize`, `smtkit.train_rnn`, ...: one function per stage.

Settings are keywords, as in the command line: `smtkit train-rnn labels --out rnn --cell gru --set
rollout.backprop=16` is `smtkit.train_rnn("labels", "rnn", cell="gru", rollout={"backprop": 16})`.
A keyword is the name of a flag, with underscores, or a section of the settings, with a table;
docs/configuration.md lists both. `config` is a TOML file, whose settings are weaker than keywords.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from smtkit import config as schemas
from smtkit.stages import evaluate as evaluate_stage
from smtkit.stages import export as export_stage
from smtkit.stages import extract_labels as extract_labels_stage
from smtkit.stages import synthesize as synthesize_stage
from smtkit.stages import tokenize as tokenize_stage
from smtkit.stages import train_encoder as train_encoder_stage
from smtkit.stages import train_rnn as train_rnn_stage
from smtkit.stages.export import Exported
from smtkit.storage.location import PathOrURI
from smtkit.storage.manifest import Manifest
from smtkit.training.listeners import Listener
from smtkit.training.progress import Progress

ConfigT = TypeVar("ConfigT", bound=schemas.Config)
Settings = str | os.PathLike[str] | None
"""A TOML file of settings."""


class Warnings:
    """Passes warnings of a stage to Python's `warnings`, and ignores its progress."""

    def update(self, *_: object, **__: object) -> None:
        pass

    def show(self, *_: object) -> None:
        pass

    def warn(self, message: str) -> None:
        warnings.warn(message, stacklevel=2)


def tokenize(
    inputs: PathOrURI | Sequence[PathOrURI],
    out: PathOrURI,
    *,
    config: Settings = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> Manifest:
    """Tokenizes files, folders or globs of text or images to the `tokens` artifact `out`.

    Settings: those of `smtkit tokenize`, as `tokenizer="sentencepiece"`. Raises UsageError,
    InputOutputError.
    """
    paths = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
    settings["inputs"] = [os.fspath(path) for path in paths]
    return tokenize_stage.run(
        _resolve(schemas.TokenizeConfig, config, settings),
        out,
        progress=progress or Warnings(),
        overwrite=overwrite,
        resume=resume,
    )


def synthesize(
    task: str,
    out: PathOrURI,
    *,
    config: Settings = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> Manifest:
    """Writes rows of a synthetic memory task to the `tokens` artifact `out`.

    Settings: those of `smtkit synthesize`, as `lengths=[64]`. Raises UsageError.
    """
    settings["task"] = task
    return synthesize_stage.run(
        _resolve(schemas.SynthesizeConfig, config, settings),
        out,
        progress=progress or Warnings(),
        overwrite=overwrite,
        resume=resume,
    )


def train_encoder(
    tokens: PathOrURI,
    out: PathOrURI,
    *,
    init: PathOrURI | None = None,
    config: Settings = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    listeners: Sequence[Listener] = (),
    **settings: Any,
) -> Manifest:
    """Trains a teacher on the artifact `tokens`; writes the `encoder` artifact `out`. `init`: the
    encoder whose weights it starts from; `listeners` receive its metrics.

    Settings: those of `smtkit train-encoder`, as `max_steps=1000, encoder={"slots": 8}`. Raises
    UsageError, ArtifactError, NonFiniteLossError, InterruptedRunError.
    """
    return train_encoder_stage.run(
        _resolve(schemas.TrainEncoderConfig, config, settings),
        tokens,
        out,
        init=init,
        progress=progress or Warnings(),
        listeners=listeners,
        overwrite=overwrite,
        resume=resume,
    )


def extract_labels(
    encoder: PathOrURI,
    tokens: PathOrURI,
    out: PathOrURI,
    *,
    rnn: PathOrURI | None = None,
    config: Settings = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> Manifest:
    """Writes the memories of the teacher `encoder` on `tokens` to the `labels` artifact `out`.

    Settings: those of `smtkit extract-labels`, as `max_windows=6000`. Raises UsageError,
    ArtifactError, InterruptedRunError.
    """
    return extract_labels_stage.run(
        _resolve(schemas.ExtractLabelsConfig, config, settings),
        encoder,
        tokens,
        out,
        rnn=rnn,
        progress=progress or Warnings(),
        overwrite=overwrite,
        resume=resume,
    )


def train_rnn(
    labels_or_tokens: PathOrURI,
    out: PathOrURI,
    *,
    init: PathOrURI | None = None,
    config: Settings = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    listeners: Sequence[Listener] = (),
    **settings: Any,
) -> Manifest:
    """Trains an RNN on labels or, with `method="bptt"`, on tokens; writes the `rnn` artifact `out`.

    `init`: the RNN whose weights it starts from; `listeners` receive its metrics.

    Settings: those of `smtkit train-rnn`, as `cell="gru", max_steps=1000`. Raises UsageError,
    ArtifactError, NonFiniteLossError, InterruptedRunError.
    """
    return train_rnn_stage.run(
        _resolve(schemas.TrainRnnConfig, config, settings),
        labels_or_tokens,
        out,
        init=init,
        progress=progress or Warnings(),
        listeners=listeners,
        overwrite=overwrite,
        resume=resume,
    )


def evaluate(
    rnn: PathOrURI,
    tokens: PathOrURI,
    out: PathOrURI,
    *,
    encoder: PathOrURI | None = None,
    config: Settings = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> Manifest:
    """Evaluates an RNN on a split of `tokens`, beside its teacher `encoder`; writes the
    `evaluation` artifact `out`, whose results are in the manifest's `statistics`.

    Settings: those of `smtkit eval`, as `split="validation"`. Raises UsageError, ArtifactError.
    """
    return evaluate_stage.run(
        _resolve(schemas.EvaluateConfig, config, settings),
        rnn,
        tokens,
        out,
        encoder=encoder,
        progress=progress or Warnings(),
        overwrite=overwrite,
        resume=resume,
    )


def export(
    rnn: PathOrURI,
    out: PathOrURI,
    *,
    tokens: PathOrURI | None = None,
    config: Settings = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> Exported:
    """Writes one step of an RNN to the file `out` as a program that runs without smtkit, and what
    it starts from beside it (docs/export.md). Returns the files, how well program and RNN agree,
    and what quantization costs.

    Settings: those of `smtkit export`, as `quantize="int8"`. Raises UsageError, ArtifactError, and
    SmtkitError where program and RNN differ.
    """
    return export_stage.run(
        _resolve(schemas.ExportConfig, config, settings),
        rnn,
        out,
        tokens=tokens,
        progress=progress or Warnings(),
        overwrite=overwrite,
    )


def _resolve(schema: type[ConfigT], file: Settings, settings: Mapping[str, Any]) -> ConfigT:
    """The settings of a stage from a file and keywords. Raises UsageError."""
    flagged = [(s.flag, s.key) for s in schemas.settings_of(schema) if s.flag]
    keys = {
        name.replace("-", "_"): key for flag, key in flagged for name in (flag.name, flag.alias)
    }
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            values.update(schemas.flatten(value, f"{name}."))
        else:
            values[keys.get(name, name)] = value
    return schemas.resolve(schema, None if file is None else Path(file), flags=values)
