"""The specification of a run: the settings of all its stages, with their limits on CPU time."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from study.matrix import Arm, Matrix, Stage, Table, Task, Variant, merged
from study.runs import Run

TEACHER: tuple[Stage, ...] = ("encoder", "labels")
STUDENT: tuple[Stage, ...] = ("smt", "dmt", "finetune")
_VALIDATIONS = 40  # per budget


@dataclass(frozen=True)
class Specification:
    """Everything that determines the result of a run, in JSON types.

    The stages of an amortised run are those of the teacher, and `RIVAL/STAGE` for each RNN.
    """

    task: Table
    kind: str
    seed: int
    budget: float
    evaluated: bool
    stages: dict[str, Table]

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(vars(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def rivals(self) -> list[str]:
        """The arms whose cells an amortised run trains."""
        return list(dict.fromkeys(name.split("/")[0] for name in self.stages if "/" in name))


def budget_of(matrix: Matrix, run: Run) -> float:
    """CPU-seconds of a run."""
    task, arm = matrix.tasks[run.task], matrix.arms[run.arm]
    if run.trial is not None:
        assert task.trial_budget is not None
        return task.trial_budget
    return task.budget * run.multiple * max(1, len(arm.rivals))


def specify(matrix: Matrix, run: Run, chosen: Mapping[str, Any]) -> Specification:
    """The specification of a run with the settings `chosen`: its trial's, or the best trial's.

    Raises ValueError if the rivals of an amortised run differ in memory.
    """
    task, arm = matrix.tasks[run.task], matrix.arms[run.arm]
    settings = _Settings(matrix, run, _nested(chosen))
    by_kind = {"bptt": settings.bptt, "smt": settings.smt, "amortised": settings.amortised}
    return Specification(
        task=task.model_dump(include={"tokens", "windows", "longer", "goal"}),
        kind=arm.kind,
        seed=run.seed,
        budget=settings.budget,
        evaluated=run.trial is None,
        stages=by_kind[arm.kind](),
    )


class _Settings:
    """The settings of every stage of one run."""

    def __init__(self, matrix: Matrix, run: Run, chosen: Table) -> None:
        self._matrix = matrix
        self._run = run
        self._task: Task = matrix.tasks[run.task]
        self._arm: Arm = matrix.arms[run.arm]
        self._chosen = chosen
        self.budget = budget_of(matrix, run)
        self._variants = _variants(matrix, self._task, self._arm)
        shares = [matrix.shares, self._task.shares, *(one.shares for one in self._variants)]
        self._shares: Table = {"bptt": 1.0, **merged(*shares)}

    def bptt(self) -> dict[str, Table]:
        network = _network(self._matrix, self._task, self._arm)
        return {"bptt": merged(network, self._stage("bptt", self.budget))}

    def smt(self) -> dict[str, Table]:
        network = _network(self._matrix, self._task, self._arm)
        students = {name: self._student(name, network, network) for name in self._students()}
        return {**self._teacher(network), **students}

    def amortised(self) -> dict[str, Table]:
        """The stages of the teacher, and those of one RNN per rival."""
        arms = {name: self._matrix.arms[name] for name in self._arm.rivals}
        networks = {name: _network(self._matrix, self._task, arm) for name, arm in arms.items()}
        teacher = next(iter(networks.values()))
        for name, network in networks.items():
            if network["memory"] != teacher["memory"]:
                raise ValueError(f"arms.{self._run.arm}.rivals: {name} has another memory")
        students = {
            f"{rival}/{name}": self._student(name, network, teacher)
            for rival, network in networks.items()
            for name in self._students()
        }
        return {**self._teacher(teacher), **students}

    def _students(self) -> list[Stage]:
        return [name for name in STUDENT if self._shares[name]]

    def _teacher(self, network: Table) -> dict[str, Table]:
        parts = {"encoder": network["memory"], **_cell(network)}
        labels = self._stage("labels", self.budget)
        if "max_windows" in labels:
            labels["max_windows"] = round(labels["max_windows"] * self._run.multiple)
        return {"encoder": merged(parts, self._stage("encoder", self.budget)), "labels": labels}

    def _student(self, name: Stage, network: Table, teacher: Table) -> Table:
        """The settings of a stage that trains an RNN.

        The first stage names the cell, unless it starts from the co-trained cell in the labels.
        """
        budget = self.budget / max(1, len(self._arm.rivals))
        settings = self._stage(name, budget)
        if name != self._students()[0]:
            return settings
        wanted = bool(self._stage("smt", budget).get("init_from_labels"))
        start = wanted and _cell(network) == _cell(teacher)
        own = {} if start else _cell(network)
        return merged(own, settings, {"init_from_labels": start})

    def _stage(self, name: Stage, budget: float) -> Table:
        """The settings of a stage, without its network."""
        limits: Table = {}
        if name != "labels":
            limits = {"training": _limits(budget, self._shares[name], self._task.goal)}
        return merged(
            self._matrix.settings.get(name, {}),
            self._task.settings.get(name, {}),
            *(variant.settings.get(name, {}) for variant in self._variants),
            self._arm.settings.get(name, {}),
            self._chosen.get(name, {}),
            limits,
        )


def _variants(matrix: Matrix, task: Task, arm: Arm) -> list[Variant]:
    """The variants of an arm in order, each followed by what it has on this task."""
    both = ((matrix.variants[name], task.variants.get(name)) for name in arm.variants)
    return [one for pair in both for one in pair if one]


def _network(matrix: Matrix, task: Task, arm: Arm) -> Table:
    """`memory`, `cell` and `readout` of an arm on a task."""
    of_variants = (variant.network for variant in _variants(matrix, task, arm))
    own = merged(*of_variants, arm.network)
    return merged(matrix.network, own, task.network, own)


def _cell(network: Table) -> Table:
    return {name: network[name] for name in ("cell", "readout") if name in network}


def _limits(budget: float, share: float, goal: float | None) -> Table:
    """Limits on CPU time; every stage of every arm is validated equally often in that time."""
    limits: Table = {
        "clock": "cpu",
        "max_seconds": share * budget,
        "validate_seconds": budget / _VALIDATIONS,
    }
    return limits if goal is None else {**limits, "stop_at_accuracy": goal}


def _nested(settings: Mapping[str, Any]) -> Table:
    """`{"a.b.c": 1}` -> `{"a": {"b": {"c": 1}}}`."""
    tables: list[Table] = []
    for dotted, value in settings.items():
        for part in reversed(dotted.split(".")):
            value = {part: value}
        tables.append(value)
    return merged(*tables)
