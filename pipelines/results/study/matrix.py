"""What is compared: tasks, arms, settings, budgets and trials, as a TOML file declares them."""

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
_VALIDATIONS = 40  # a budget


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Longer(_Declared):
    """What the last RNN is evaluated on beside the test split: rows or windows longer than those it
    was trained on."""

    tokens: Table | None = None
    """Unset: those of the task."""
    lengths: int = 1
    """Of text: windows to read, in multiples of T."""
    windows: int
    """Rows or windows."""


class Task(_Declared):
    title: str
    tokens: Table
    """Source (`synthesize`, `library` or `digits`) and its settings."""
    windows: int = 1000
    """Rows or windows of the test split."""
    longer: Longer | None = None
    goal: float | None = None
    """Share of validation's answers at which an arm stops; unset: it uses its budget."""
    budget: Positive
    """CPU-seconds of one thread."""
    trial_budget: Positive | None = None
    """Of each trial; unset: settings are those that the trials of `settings_of` chose."""
    settings_of: str | None = None
    shares: dict[Stage, Positive] = {}
    """Where they are others than the matrix's."""
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
    """Of an ablation: the arm whose trials chose its settings."""


class Matrix(_Declared):
    seeds: list[int]
    trial_seed: int
    shares: dict[Stage, Positive]
    """Of the budget, for the stages of an `smt` arm; extraction takes what it takes."""
    network: Table
    settings: dict[Stage, Table]
    trials: dict[str, list[Table]]
    """Settings to be tried, each a table of `stage.key = value`."""
    arms: dict[str, Arm]
    tasks: dict[str, Task]


@dataclass(frozen=True)
class Run:
    """One training, start to end. `trial`: its number among the trials, or None."""

    task: str
    arm: str
    seed: int
    trial: int | None = None

    @property
    def name(self) -> str:
        last = f"seed-{self.seed}" if self.trial is None else f"trial-{self.trial}"
        return f"{self.task}/{self.arm}/{last}"


def load(path: Path, scale: float = 1.0) -> Matrix:
    """The matrix of a file, on top of the one that it `extends`; budgets multiplied by `scale`."""
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
    """Seed by seed, so that what is there after an hour says something of everything."""
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
    """All that decides what a run computes, in JSON's types."""

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
    """`chosen`: the trial's own table, or that of the trial that was best."""
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
    """Networks are described where they are begun: by the teacher, and by bptt from scratch."""
    if stage == "encoder":
        parts: Table = {name: network[name] for name in ("cell", "readout") if name in network}
        return {"encoder": network["memory"], **parts}
    return network if stage == "bptt" else {}


def _limits(matrix: Matrix, task: Task, stage: Stage, kind: str, budget: float) -> Table:
    """All stages of all arms are looked at as often, by the same clock that their budget is of."""
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
    """Each stronger than the one before, section by section; "unset" takes a key back."""
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
