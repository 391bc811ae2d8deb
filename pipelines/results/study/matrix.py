"""The declaration of the comparison in TOML: tasks, arms, settings, budgets and trials."""

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Table = dict[str, Any]
Stage = Literal["encoder", "labels", "smt", "dmt", "finetune", "bptt"]
Positive = Annotated[float, Field(gt=0)]
_VALIDATIONS = 40  # per budget


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Longer(_Declared):
    """A second test of every RNN, on rows or windows longer than those it was trained on."""

    tokens: Table | None = None
    """Source and settings as in the task; unset: the tokens of the task."""
    lengths: int = 1
    """Length of the windows of text, in multiples of T."""
    windows: int
    """Number of rows or windows."""


class Task(_Declared):
    title: str
    tokens: Table
    """Source (`synthesize`, `library`, `digits` or `files`) and its settings."""
    windows: int = 1000
    """Number of rows or windows of the test split."""
    longer: Longer | None = None
    goal: float | None = None
    """Validation accuracy at which a run stops; unset: it uses its whole budget."""
    budget: Positive
    """CPU-seconds of one thread."""
    trial_budget: Positive | None = None
    """CPU-seconds per trial; unset: no trials, settings are those of the task `settings_of`."""
    settings_of: str | None = None
    shares: dict[Stage, Positive] = {}
    """Shares of the budget that differ from the matrix's."""
    arms: list[str]
    settings: dict[Stage, Table] = {}
    network: Table = {}


class Arm(_Declared):
    title: str
    kind: Literal["smt", "bptt"]
    network: Table = {}
    """`memory`, `cell` and `readout`, the same for every stage."""
    settings: dict[Stage, Table] = {}
    trials: str
    """Name of a list of trials."""
    settings_of: str | None = None
    """For an ablation: the arm whose trials choose its settings."""


class Matrix(_Declared):
    seeds: list[int]
    trial_seed: int
    shares: dict[Stage, Positive]
    """Shares of the budget for the stages of an `smt` arm; extraction has no limit."""
    network: Table
    settings: dict[Stage, Table]
    trials: dict[str, list[Table]]
    """Settings to try, each a table of `stage.key = value`."""
    arms: dict[str, Arm]
    tasks: dict[str, Task]


@dataclass(frozen=True)
class Run:
    """One training from start to end. `trial`: its number; None for a final run."""

    task: str
    arm: str
    seed: int
    trial: int | None = None

    @property
    def name(self) -> str:
        last = f"seed-{self.seed}" if self.trial is None else f"trial-{self.trial}"
        return f"{self.task}/{self.arm}/{last}"


def load(path: Path, scale: float = 1.0) -> Matrix:
    """The matrix of a file, merged with the one it `extends`; budgets are multiplied by `scale`."""
    declared = _read(path)
    for task in declared["tasks"].values():
        for name in task.keys() & {"budget", "trial_budget"}:
            task[name] *= scale
    return Matrix(**declared)


def _read(path: Path) -> Table:
    declared = tomllib.loads(path.read_text(encoding="utf-8"))
    base = declared.pop("extends", None)
    return merged(_read(path.with_name(base)), declared) if base else declared


def trial_runs(matrix: Matrix) -> Iterator[Run]:
    for name, task in matrix.tasks.items():
        for arm in task.arms if task.trial_budget else ():
            for number in range(len(matrix.trials[matrix.arms[arm].trials])):
                yield Run(name, arm, matrix.trial_seed, number)


def final_runs(matrix: Matrix) -> Iterator[Run]:
    """Final runs, seed by seed, so that every task has a result early."""
    for seed in matrix.seeds:
        for name, task in matrix.tasks.items():
            for arm in task.arms:
                yield Run(name, arm, seed)


def trials_for(matrix: Matrix, run: Run) -> list[Run]:
    """The trials that choose the settings of a run."""
    task = matrix.tasks[run.task].settings_of or run.task
    arm = matrix.arms[run.arm].settings_of or run.arm
    return [one for one in trial_runs(matrix) if (one.task, one.arm) == (task, arm)]


@dataclass(frozen=True)
class Specification:
    """Everything that determines the result of a run, in JSON types."""

    task: Table
    kind: str
    seed: int
    budget: float
    evaluated: bool
    stages: dict[str, Table]

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(vars(self), sort_keys=True).encode()).hexdigest()[:16]


def specify(matrix: Matrix, run: Run, chosen: Mapping[str, Any]) -> Specification:
    """The specification of a run with the settings `chosen`: its trial's, or the best trial's."""
    task, arm = matrix.tasks[run.task], matrix.arms[run.arm]
    network = merged(matrix.network, arm.network, task.network, arm.network)
    names: tuple[Stage, ...] = ("encoder", "labels", "smt", "dmt", "finetune")
    if arm.kind == "bptt":
        names = ("bptt",)
    budget = task.budget if run.trial is None else task.trial_budget
    assert budget is not None
    stages: dict[str, Table] = {
        name: merged(
            _network_of(name, network),
            matrix.settings.get(name, {}),
            task.settings.get(name, {}),
            arm.settings.get(name, {}),
            _nested(chosen).get(name, {}),
            _limits(matrix, task, name, arm.kind, budget),
        )
        for name in names
    }
    return Specification(
        task=task.model_dump(include={"tokens", "windows", "longer", "goal"}),
        kind=arm.kind,
        seed=run.seed,
        budget=budget,
        evaluated=run.trial is None,
        stages=stages,
    )


def _network_of(stage: Stage, network: Table) -> Table:
    """The network settings of a stage: only the teacher and bptt from scratch have any."""
    if stage == "encoder":
        parts: Table = {name: network[name] for name in ("cell", "readout") if name in network}
        return {"encoder": network["memory"], **parts}
    return network if stage == "bptt" else {}


def _limits(matrix: Matrix, task: Task, stage: Stage, kind: str, budget: float) -> Table:
    """Limits on CPU time; every stage of every arm is validated equally often in that time."""
    if stage == "labels":
        return {}
    share = 1.0 if kind == "bptt" else {**matrix.shares, **task.shares}[stage]
    limits: Table = {
        "clock": "cpu",
        "max_seconds": share * budget,
        "validate_seconds": budget / _VALIDATIONS,
    }
    if task.goal is not None:
        limits["stop_at_accuracy"] = task.goal
    return {"training": limits}


def merged(*tables: Mapping[str, Any]) -> Table:
    """Tables merged recursively, later ones override; the value "unset" removes a key."""
    result: Table = {}
    for table in tables:
        for key, value in table.items():
            old = result.get(key)
            both = isinstance(old, dict) and isinstance(value, dict)
            result[key] = merged(old, value) if both else value
    return {key: value for key, value in result.items() if value != "unset"}


def _nested(settings: Mapping[str, Any]) -> Table:
    """`{"a.b.c": 1}` -> `{"a": {"b": {"c": 1}}}`."""
    tables: list[Table] = []
    for dotted, value in settings.items():
        for part in reversed(dotted.split(".")):
            value = {part: value}
        tables.append(value)
    return merged(*tables)
