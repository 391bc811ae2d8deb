"""The artifacts that a report shows: opened, and their metrics and results checked.

They may be anyone's: what does not have the expected form raises ArtifactError, or is left out
where a run may lack it.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from smtkit.config import TrainEncoderConfig, TrainRnnConfig
from smtkit.errors import ArtifactError, SmtkitError
from smtkit.methods.sequential import steps_of_encoder, steps_of_rnn
from smtkit.storage.artifact import Artifact
from smtkit.storage.location import PathOrURI
from smtkit.storage.manifest import METRICS, Kind
from smtkit.training.metrics import Record, parse_records


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Score(_Result):
    """Means over the targets of one predictor, in a range of positions or at one length."""

    predictor: str
    targets: int
    nll: float
    accuracy: float | None
    nll_standard_error: float | None = None
    bits_per_token: float | None = None
    bits_per_byte: float | None = None
    range: str = ""
    first: int = 0
    last: int = 0
    length: int = 0


class Offset(_Result):
    """Sufficiency at one offset."""

    offset: int
    targets: int
    nll: float
    full_context_nll: float
    gap: float


class Cost(_Result):
    """Cost of inference of one predictor after a number of tokens."""

    predictor: str
    tokens: int
    seconds_per_token: float | None
    bytes: int


class Evaluation(_Result):
    """The statistics of an `evaluation` artifact that are shown."""

    split: str
    window: int = Field(gt=0)
    windows: int
    tokens: str
    overall: list[Score]
    results: list[Score]
    by_distance: list[Score] | None = None
    by_length: list[Score] | None = None
    drift: list[float] | None = None
    drift_between_sequences: list[float | None] | None = None
    sufficiency: list[Offset] | None = None
    cost: list[Cost] | None = None


class Training(_Result):
    """The statistics of a training run that are shown."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    parameters: int = 0


@dataclass(frozen=True)
class ReportRun:
    """An artifact, the name and the number of the colour under which it is shown."""

    label: str
    color: int
    artifact: Artifact

    @property
    def kind(self) -> Kind:
        return self.artifact.manifest.kind

    @cached_property
    def records(self) -> list[Record]:
        """Records of the metrics log; empty where the artifact has none."""
        if not any(entry.logical_name == METRICS for entry in self.artifact.manifest.files):
            return []
        return list(parse_records(self.artifact.read(METRICS)[1]))

    @cached_property
    def training(self) -> Training:
        return self._parsed(Training)

    @cached_property
    def evaluation(self) -> Evaluation:
        return self._parsed(Evaluation)

    @cached_property
    def sequential_steps(self) -> float | None:
        """Sequential steps of an update; None where the settings are not known to this version."""
        config, training = self.artifact.manifest.config, self.training
        with contextlib.suppress(ValidationError, SmtkitError, ArithmeticError):
            schema = TrainEncoderConfig if self.kind == "encoder" else TrainRnnConfig
            found = schema(**config)
            tokens = training.tokens / (training.steps * found.training.batch_size)
            lengths = np.array([max(1, round(tokens))])
            if isinstance(found, TrainEncoderConfig):
                return steps_of_encoder(found, lengths)
            return steps_of_rnn(found, lengths)
        return None

    def _parsed(self, schema: Any) -> Any:
        try:
            return schema.model_validate(self.artifact.manifest.statistics)
        except ValidationError as error:
            detail = error.errors()[0]
            key = ".".join(map(str, detail["loc"]))
            where = f"{self.artifact.directory}: statistics: {key}"
            raise ArtifactError(f"{where}: {detail['msg']}") from None


class Runs(Sequence[ReportRun]):
    """The artifacts of a report."""

    def __init__(self, runs: Sequence[ReportRun]) -> None:
        self._runs = list(runs)

    def __getitem__(self, index: Any) -> Any:
        return self._runs[index]

    def __len__(self) -> int:
        return len(self._runs)

    def of(self, *kinds: Kind) -> list[ReportRun]:
        return [run for run in self._runs if run.kind in kinds]

    def find(self, run: ReportRun, kind: Literal["tokens", "encoder", "rnn"]) -> Artifact | None:
        """The ancestor of `kind` of a run: one that was given, or one found where the manifest says
        that it was, or beside the run. Only paths are looked at, and digests must be equal."""
        parent = run.artifact.manifest.ancestor(kind)
        if parent is None:
            return None
        for other in self.of(kind):
            if other.artifact.manifest.digest == parent.digest:
                return other.artifact
        directory = run.artifact.directory
        if not isinstance(directory, Path) or "://" in parent.path:
            return None
        for place in (directory.parent / Path(parent.path).name, Path(parent.path)):
            with contextlib.suppress(SmtkitError, OSError, ValueError):
                found = Artifact.open(place, kind)
                if found.manifest.digest == parent.digest:
                    return found
        return None


def open_runs(paths: Sequence[PathOrURI]) -> Runs:
    """Opens the artifacts; an evaluation has the label and colour of its RNN, if that is given."""
    artifacts: dict[str, Artifact] = {}
    for path in paths:
        artifact = Artifact.open(path)
        artifacts.setdefault(str(artifact.directory), artifact)
    labels = dict(zip(artifacts, _short_names(list(artifacts)), strict=True))
    colors: dict[str, int] = {}
    names: dict[str, str] = {}
    for name, artifact in artifacts.items():
        if artifact.manifest.kind in ("encoder", "rnn"):
            colors.setdefault(artifact.manifest.digest, len(colors))
            names.setdefault(artifact.manifest.digest, labels[name])
    runs = []
    for name, artifact in artifacts.items():
        digest, label = artifact.manifest.digest, labels[name]
        if artifact.manifest.kind == "evaluation":
            subject = artifact.manifest.ancestor("rnn")
            digest = subject.digest if subject else digest
        color = colors.setdefault(digest, len(colors))
        runs.append(ReportRun(label, color, artifact))
    return Runs(list(_with_subjects(runs, names)))


def finite(values: Sequence[float | None]) -> list[float | None]:
    """Values, with None in place of what cannot be drawn."""
    return [v if v is not None and math.isfinite(v) else None for v in values]


def _with_subjects(runs: Sequence[ReportRun], names: dict[str, str]) -> Iterator[ReportRun]:
    """Evaluations under the name of their RNN, unless an RNN has several of them."""
    subjects = [run.artifact.manifest.ancestor("rnn") for run in runs]
    evaluated = [
        subject.digest
        for run, subject in zip(runs, subjects, strict=True)
        if run.kind == "evaluation" and subject
    ]
    for run, subject in zip(runs, subjects, strict=True):
        is_only = run.kind == "evaluation" and subject and evaluated.count(subject.digest) == 1
        if is_only and subject and subject.digest in names:
            yield ReportRun(names[subject.digest], run.color, run.artifact)
        else:
            yield run


def _short_names(paths: Sequence[str]) -> list[str]:
    """For each path its shortest end that no other path has."""
    parts = [path.replace("\\", "/").rstrip("/").split("/") for path in paths]
    names = []
    for own in parts:
        others = [other for other in parts if other is not own]
        length = 1
        while length < len(own) and any(other[-length:] == own[-length:] for other in others):
            length += 1
        names.append("/".join(own[-length:]))
    return names
