"""The runs of a matrix: trials, which choose settings, and final runs."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch

from study.matrix import Matrix


@dataclass(frozen=True)
class Run:
    """One training from start to end. `trial`: its number, None for a final run; `multiple`: of the
    task's budget."""

    task: str
    arm: str
    seed: int
    trial: int | None = None
    multiple: float = 1.0

    @property
    def name(self) -> str:
        last = f"seed-{self.seed}" if self.trial is None else f"trial-{self.trial}"
        budget = "" if self.multiple == 1 else f"budget-{self.multiple:g}/"
        return f"{self.task}/{self.arm}/{budget}{last}"


@dataclass(frozen=True)
class Selection:
    """A part of the final runs; an empty field selects all.

    `only`: globs of `Run.name`, where `*` also matches `/`.
    """

    only: Collection[str] = ()
    seeds: Collection[int] = ()
    multiples: Collection[float] = ()

    def __contains__(self, run: Run) -> bool:
        return (
            (not self.only or any(fnmatch(run.name, glob) for glob in self.only))
            and (not self.seeds or run.seed in self.seeds)
            and (not self.multiples or run.multiple in self.multiples)
        )


def runs(matrix: Matrix, selection: Selection | None = None) -> list[Run]:
    """The selected final runs, after the trials that choose their settings; all without one."""
    if selection is None:
        return [*trial_runs(matrix), *final_runs(matrix)]
    final = [run for run in final_runs(matrix) if run in selection]
    needed = {trial for run in final for trial in trials_for(matrix, run)}
    return [*(trial for trial in trial_runs(matrix) if trial in needed), *final]


def trial_runs(matrix: Matrix) -> Iterator[Run]:
    """All trials that final runs need, task by task."""
    needed = dict.fromkeys(trial for run in final_runs(matrix) for trial in trials_for(matrix, run))
    for task in matrix.tasks:
        yield from (trial for trial in needed if trial.task == task)


def final_runs(matrix: Matrix) -> Iterator[Run]:
    """Final runs, small budgets first, then seed by seed, so that every task has a result early."""
    tasks = {name: matrix.tasks[name] for name in matrix.named}
    of_arms = {
        name: dict.fromkeys(task.arms, task.budgets) | task.amortised
        for name, task in tasks.items()
    }
    every = {one for arms in of_arms.values() for multiples in arms.values() for one in multiples}
    for multiple in sorted(every):
        for seed in matrix.seeds:
            for name, arms in of_arms.items():
                for arm, multiples in arms.items():
                    if multiple in multiples:
                        yield Run(name, arm, seed, None, multiple)


def trials_for(matrix: Matrix, run: Run) -> list[Run]:
    """The trials that choose the settings of a run."""
    task = matrix.tasks[run.task].settings_of or run.task
    arm = matrix.arms[run.arm].settings_of or run.arm
    if matrix.tasks[task].trial_budget is None:
        return []
    numbers = range(len(matrix.trials[matrix.arms[arm].trials]))
    return [Run(task, arm, matrix.trial_seed, number) for number in numbers]
