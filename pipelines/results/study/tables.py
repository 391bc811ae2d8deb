"""Tables of the report: one task, or all of them."""

import statistics
from collections.abc import Iterator
from typing import Any

from study.matrix import Table
from study.measures import (
    METHODS,
    RNN,
    TEACHER,
    at_full_length,
    bits,
    last_test,
    parameters,
    reached,
    reached_in,
    table,
)
from study.runs import Run, final_runs, trial_runs
from study.store import Store, total


def first_runs(store: Store, task: str) -> list[Run]:
    """The final runs of the arms of a task with its budget itself, not a multiple of it."""
    arms = store.matrix.tasks[task].arms
    every = (run for run in final_runs(store.matrix) if run.task == task and run.arm in arms)
    return [run for run in every if run.multiple == 1]


def _arms(store: Store, task: str) -> Iterator[tuple[str, list[Table | None]]]:
    """Every arm of a task with its results, one per seed; without arms that have none."""
    by_arm: dict[str, list[Table | None]] = {}
    for run in first_runs(store, task):
        by_arm.setdefault(run.arm, []).append(store.result(run))
    return ((arm, results) for arm, results in by_arm.items() if any(results))


def goal_table(store: Store, task: str) -> str:
    """CPU-seconds to the goal, and test accuracy on rows of full length, for each seed."""
    rows = []
    for arm, results in _arms(store, task):
        rows.append(
            [
                store.matrix.arms[arm].title,
                parameters(results),
                *(_goal_cell(store, task, result) for result in results),
                _of_teacher(results, at_full_length),
            ]
        )
    seeds = [f"seed {seed}" for seed in store.matrix.seeds]
    return (
        "CPU-seconds to the goal, the stage that reached it, test accuracy on rows of length T; "
        "*not reached*: accuracy at the end of the budget.\n\n"
        + table(["", "parameters", *seeds, "teacher"], rows)
    )


def _goal_cell(store: Store, task: str, result: Table | None) -> str:
    if result is None:
        return "not run"
    if result["failed"]:
        return "diverged"
    accuracy = at_full_length(last_test(result), RNN)
    if not reached(store, task, result):
        return f"*not reached*, {accuracy:.1%}"
    method = METHODS[reached_in(store, task, result)]
    return f"{total(result, 'seconds'):.0f} s ({method}), {accuracy:.1%}"


def nll_table(store: Store, task: str) -> str:
    """Bits per target at 1..T on test, after each stage that trains an RNN."""
    rows = []
    for arm, results in _arms(store, task):
        title = store.matrix.arms[arm].title
        stages = dict.fromkeys(stage for one in results if one for stage in one["tests"])
        for stage in stages or ["diverged"]:
            seconds = [
                total(one, "seconds", stage) for one in results if one and stage in one["tests"]
            ]
            rows.append(
                [
                    f"{title}: {METHODS.get(stage, stage)}",
                    parameters(results),
                    f"{statistics.median(seconds):.0f}" if seconds else "",
                    *(_bits_cell(result, stage) for result in results),
                    _of_teacher(results, bits) if stage == "smt" else "",
                ]
            )
    seeds = [f"seed {seed}" for seed in store.matrix.seeds]
    header = ["", "parameters", "CPU-seconds", *seeds, "teacher"]
    return f"Bits per target at positions 1..T, test.\n\n{table(header, rows)}"


def _bits_cell(result: Table | None, stage: str) -> str:
    if result is None:
        return "not run"
    if stage not in result["tests"]:
        return "diverged" if result["failed"] else ""
    return f"{bits(result['tests'][stage]['test'], RNN):.3f}"


def longer_table(store: Store, task: str) -> str:
    """Every RNN and its teacher on sequences longer than in training."""
    accurate = store.matrix.tasks[task].goal is not None
    rows, columns = [], []
    for arm, results in _arms(store, task):
        for stage in METHODS:
            tests = [
                one["tests"][stage]["longer"] for one in results if one and stage in one["tests"]
            ]
            for predictor in (RNN, TEACHER):
                by_group = [dict(_by_group(one, predictor)) for one in tests]
                if not by_group or not by_group[0]:
                    continue
                columns = list(by_group[0])
                medians = [statistics.median(one[name] for one in by_group) for name in columns]
                title = f"{store.matrix.arms[arm].title}: {METHODS[stage]}"
                shown = title if predictor == RNN else f"{title}: its teacher"
                rows.append([shown, *(f"{m:.1%}" if accurate else f"{m:.3f}" for m in medians)])
    metric = "Accuracy" if accurate else "Bits per target"
    return (
        f"{metric} past the trained length, median of the seeds.\n\n{table(['', *columns], rows)}"
    )


def _by_group(test: Table, predictor: str) -> Iterator[tuple[str, float]]:
    """Accuracy by length of row; for text, bits by range of positions."""
    if test["by_length"]:
        for record in test["by_length"]:
            if record["predictor"] == predictor and record["accuracy"] is not None:
                yield f"T = {record['length']}", record["accuracy"]
    else:
        for record in test["results"]:
            if record["predictor"] == predictor:
                yield record["range"], record["bits_per_token"]


def cost_table(store: Store) -> str:
    """Costs of whole runs: medians over the seeds of each arm and task."""
    rows = []
    for name in store.matrix.named:
        for arm, results in _arms(store, name):
            found = [one for one in results if one and one["stages"]]
            if not found:
                continue
            axes = ("seconds", "tokens", "sequential", "operations")
            middle = {axis: statistics.median(total(one, axis) for one in found) for axis in axes}
            parts = [f"{stage['stage']} {stage['seconds']:.0f}" for stage in found[0]["stages"]]
            rows.append(
                [
                    store.matrix.tasks[name].title,
                    store.matrix.arms[arm].title,
                    f"{middle['seconds']:.0f}",
                    " + ".join(parts),
                    *(f"{middle[axis]:.2g}" for axis in axes[1:]),
                ]
            )
    header = ["task", "arm", "CPU-seconds", "of which (first seed)", "tokens", "sequential steps"]
    return table([*header, "operations"], rows)


def trials_table(store: Store) -> str:
    matrix = store.matrix
    rows = []
    for run in trial_runs(matrix):
        if run.trial != 0:
            continue
        trials = store.trials(run)
        results = [store.result(one) for one in trials]
        if any(result is None for result in results):
            continue
        best = store.best_trial(run)
        assert best is not None
        tried = matrix.trials[matrix.arms[run.arm].trials]
        rows.append(
            [
                matrix.tasks[run.task].title,
                matrix.arms[run.arm].title,
                ", ".join(f"{key.split('.')[-1]} {value}" for key, value in tried[best].items()),
                ", ".join(_trial_cell(one) for one in results if one),
                f"{sum(total(one, 'seconds') for one in results if one):.0f}",
            ]
        )
    header = ["task", "arm", "chosen", "each trial: accuracy and nll on validation", "CPU-seconds"]
    return table(header, rows)


def _trial_cell(result: Table) -> str:
    if result["failed"]:
        return "diverged"
    last = result["stages"][-1]["validation"]
    return f"{last['free_running_accuracy']:.0%} {last['free_running_nll']:.2f}"


def _of_teacher(results: list[Table | None], measure: Any) -> str:
    """A measure of the teacher's dense readout, median of the seeds."""
    tests = [one["tests"]["smt"]["test"] for one in results if one and "smt" in one["tests"]]
    if not tests:
        return ""
    middle = statistics.median(measure(test, TEACHER) for test in tests)
    return f"{middle:.1%}" if measure is at_full_length else f"{middle:.3f}"
