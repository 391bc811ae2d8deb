"""Raw results: one JSON file per run, in a folder of the repository."""

import json
import os
from pathlib import Path

from study.matrix import Matrix, Table
from study.runs import Run, trials_for
from study.specification import Specification, specify


class Store:
    """Results of a matrix. A result counts only if its declaration has not changed since.

    Results of the matrices that it extends, in the folders beside it, count too.
    """

    def __init__(self, matrix: Matrix, folder: Path) -> None:
        self.matrix = matrix
        self.folder = folder
        self._folders = [folder, *(folder.with_name(base) for base in matrix.bases)]

    def result(self, run: Run) -> Table | None:
        """The result of a run; None if it is missing or its declaration has changed."""
        found = [one for folder in self._folders if (one := _read(folder / _file(run)))]
        if not found or not self.ready(run):
            return None
        digest = self.specification(run).digest
        return next((one for one in found if one["digest"] == digest), None)

    def ready(self, run: Run) -> bool:
        """Whether all trials that choose the settings of a run have results."""
        return run.trial is not None or all(self.result(one) for one in self.trials(run))

    def trials(self, run: Run) -> list[Run]:
        return trials_for(self.matrix, run)

    def specification(self, run: Run) -> Specification:
        number = run.trial if run.trial is not None else self.best_trial(run)
        arm = self.matrix.arms[run.arm]
        tables = self.matrix.trials[self.matrix.arms[arm.settings_of or run.arm].trials]
        return specify(self.matrix, run, {} if number is None else tables[number])

    def best_trial(self, run: Run) -> int | None:
        """Number of the trial with the best validation; None if none is declared."""
        trials = self.trials(run)
        if not trials:
            return None
        best = min(trials, key=lambda one: merit(self.result(one) or {}, self._goal(one)))
        return best.trial

    def write(self, run: Run, result: Table) -> None:
        path = self.folder / _file(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)

    def _goal(self, run: Run) -> float | None:
        return self.matrix.tasks[run.task].goal


def _file(run: Run) -> str:
    return f"{run.name}.json"


def _read(path: Path) -> Table | None:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except ValueError:
        return None  # incomplete: is run again


def merit(result: Table, goal: float | None) -> tuple[int, float]:
    """Sort key of trials, smaller is better: those that reached the goal by their seconds, then the
    others by the last free-running nll on validation, then those that failed."""
    if not result or result["failed"]:
        return (2, 0.0)
    last = result["stages"][-1]["validation"]
    if goal is not None and last["free_running_accuracy"] >= goal:
        return (0, total(result, "seconds"))
    return (1, last["free_running_nll"])


def total(result: Table, cost: str, until: str | None = None) -> float:
    """Sum of a cost over the stages, up to and including `until`."""
    added = 0.0
    for stage in result["stages"]:
        added += stage[cost]
        if stage["stage"] == until:
            break
    return added
