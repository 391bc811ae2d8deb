"""docs/results.md, its figures and the table in the README, from the raw results."""

import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from study import figures
from study.matrix import Run, Table, Task, final_runs, trial_runs
from study.store import Store, total

RNN, TEACHER = "rnn, free-running", "teacher, readout"
METHODS = {
    "smt": "SMT",
    "dmt": "SMT, DMT",
    "finetune": "SMT, DMT, BPTT",
    "bptt": "BPTT",
}
BEGIN, END = "<!-- results: make results writes what follows -->", "<!-- end of results -->"


def write(store: Store, root: Path, matrix: str) -> None:
    """Writes the report of a matrix into the repository at `root`.

    For core.toml docs/results.md and the table in the README; for others a page of their own.
    """
    core = matrix == "core"
    name = "results" if core else f"results-{matrix}"
    docs = root / "docs"
    (docs / f"{name}.md").write_text(page(store, name), encoding="utf-8")
    for task in store.matrix.tasks:
        figures.write(store, task, _runs(store, task), docs / name)
    if core:
        readme = root / "README.md"
        written = with_summary(readme.read_text(encoding="utf-8"), store)
        readme.write_text(written, encoding="utf-8")


def with_summary(readme: str, store: Store) -> str:
    """The README with a new table."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{summary(store)}\n{END}{after}"


def page(store: Store, name: str = "results") -> str:
    here = Path(__file__).parent.parent
    parts = [(here / "conclusions.md").read_text(encoding="utf-8"), _how(store)]
    for task, declared in store.matrix.tasks.items():
        title = declared.title
        parts.append(f"## {title[0].upper()}{title[1:]}\n\n{_declared(declared)}\n")
        parts.append(_goal_table(store, task) if declared.goal else _nll_table(store, task))
        if declared.longer:
            parts.append(_longer_table(store, task))
        parts.append(f"![{title}]({name}/{task}.svg)\n\n[CSV]({name}/{task}.csv)\n")
    parts.append(f"## Cost of each arm\n\n{_cost_table(store)}")
    parts.append(f"## Trials\n\n{_trials_table(store)}")
    return "\n".join(parts)


def summary(store: Store) -> str:
    """The table in the README: one row per arm, one column per task, medians over the seeds."""
    if not any(store.result(run) for run in final_runs(store.matrix)):
        return "No declared run has a result yet; `make results` runs them.\n"
    tasks = store.matrix.tasks
    arms = dict.fromkeys(arm for task in tasks.values() for arm in task.arms)
    rows = [
        [store.matrix.arms[arm].title, *(_summarized(store, task, arm) for task in tasks)]
        for arm in arms
    ]
    return _table(["", *(task.title for task in tasks.values())], rows)


def _summarized(store: Store, task: str, arm: str) -> str:
    """Median over the seeds with results; a failed seed has accuracy 0 and infinite seconds."""
    if arm not in store.matrix.tasks[task].arms:
        return ""
    results = [store.result(run) for run in _runs(store, task) if run.arm == arm]
    found = [result for result in results if result]
    if not found:
        return "not run"
    seeds = "" if len(found) == len(results) else f" ({len(found)} of {len(results)} seeds)"
    if store.matrix.tasks[task].goal is None:
        bits = statistics.median(_bits(_last_test(one), RNN) for one in found)
        return f"{bits:.3f} bits{seeds}"
    accuracy = statistics.median(_at_full_length(_last_test(one), RNN) for one in found)
    seconds = statistics.median(
        total(one, "seconds") if _reached(store, task, one) else math.inf for one in found
    )
    if math.isinf(seconds):
        return f"{accuracy:.0%}{seeds}"
    return f"**{accuracy:.0%}** in {seconds:.0f} s{seeds}"


def _runs(store: Store, task: str) -> list[Run]:
    return [run for run in final_runs(store.matrix) if run.task == task]


def _how(store: Store) -> str:
    matrix = store.matrix
    runs = [store.result(run) for run in (*trial_runs(matrix), *final_runs(matrix))]
    found = [one for one in runs if one]
    spent = sum(total(one, "seconds") for one in found) / 3600
    machines = {
        ", ".join(f"{key} {value}" for key, value in one["machine"].items()) for one in found
    }
    lines = [
        (Path(__file__).parent.parent / "rules.md").read_text(encoding="utf-8").rstrip("\n"),
        f"{len(found)} of {len(runs)} declared runs have results; they took {spent:.1f} CPU-hours.",
        *sorted(machines),
    ]
    return "\n\n".join(lines) + "\n"


def _declared(task: Task) -> str:
    goal = f"; a run ends at a validation accuracy of {task.goal:.1%}" if task.goal else ""
    return f"Budget: {task.budget:g} CPU-seconds{goal}."


def _goal_table(store: Store, task: str) -> str:
    """CPU-seconds to the goal, and test accuracy on rows of full length, for each seed."""
    rows = []
    for arm in store.matrix.tasks[task].arms:
        runs = [run for run in _runs(store, task) if run.arm == arm]
        results = [store.result(run) for run in runs]
        rows.append(
            [
                store.matrix.arms[arm].title,
                _parameters(results),
                *(_goal_cell(store, task, result) for result in results),
                _of_teacher(results, _at_full_length),
            ]
        )
    seeds = [f"seed {seed}" for seed in store.matrix.seeds]
    return (
        "CPU-seconds to the goal, the stage that reached it, test accuracy on rows of length T; "
        "*not reached*: accuracy at the end of the budget.\n\n"
        + _table(["", "parameters", *seeds, "teacher"], rows)
    )


def _goal_cell(store: Store, task: str, result: Table | None) -> str:
    if result is None:
        return "not run"
    if result["failed"]:
        return "diverged"
    accuracy = _at_full_length(_last_test(result), RNN)
    if not _reached(store, task, result):
        return f"*not reached*, {accuracy:.1%}"
    method = METHODS[_reached_in(store, task, result)]
    return f"{total(result, 'seconds'):.0f} s ({method}), {accuracy:.1%}"


def _reached(store: Store, task: str, result: Table) -> bool:
    return not result["failed"] and bool(_reached_in(store, task, result))


def _reached_in(store: Store, task: str, result: Table) -> str:
    """The first stage whose RNN reached the goal; empty if none did."""
    goal = store.matrix.tasks[task].goal
    assert goal is not None
    for stage in result["stages"]:
        named = stage["stage"] in METHODS
        if named and stage["validation"]["free_running_accuracy"] >= goal:
            return str(stage["stage"])
    return ""


def _nll_table(store: Store, task: str) -> str:
    """Bits per target at 1..T on test, after each stage that trains an RNN."""
    rows = []
    for arm in store.matrix.tasks[task].arms:
        results = [store.result(run) for run in _runs(store, task) if run.arm == arm]
        title = store.matrix.arms[arm].title
        stages = dict.fromkeys(stage for one in results if one for stage in one["tests"])
        for stage in stages or ["not run"]:
            seconds = [
                total(one, "seconds", stage) for one in results if one and stage in one["tests"]
            ]
            rows.append(
                [
                    f"{title}: {METHODS.get(stage, stage)}",
                    _parameters(results),
                    f"{statistics.median(seconds):.0f}" if seconds else "",
                    *(_bits_cell(result, stage) for result in results),
                    _of_teacher(results, _bits) if stage == "smt" else "",
                ]
            )
    seeds = [f"seed {seed}" for seed in store.matrix.seeds]
    header = ["", "parameters", "CPU-seconds", *seeds, "teacher"]
    return f"Bits per target at positions 1..T, test.\n\n{_table(header, rows)}"


def _bits_cell(result: Table | None, stage: str) -> str:
    if result is None:
        return "not run"
    if stage not in result["tests"]:
        return "diverged" if result["failed"] else ""
    return f"{_bits(result['tests'][stage]['test'], RNN):.3f}"


def _longer_table(store: Store, task: str) -> str:
    """Every RNN and its teacher on sequences longer than in training."""
    accurate = store.matrix.tasks[task].goal is not None
    rows, columns = [], []
    for arm in store.matrix.tasks[task].arms:
        results = [
            one for run in _runs(store, task) if run.arm == arm and (one := store.result(run))
        ]
        for stage in METHODS:
            tests = [one["tests"][stage]["longer"] for one in results if stage in one["tests"]]
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
        f"{metric} past the trained length, median of the seeds.\n\n{_table(['', *columns], rows)}"
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


def _cost_table(store: Store) -> str:
    """Costs of whole runs: medians over the seeds of each arm and task."""
    rows = []
    for name, task in store.matrix.tasks.items():
        for arm in task.arms:
            runs = [run for run in _runs(store, name) if run.arm == arm]
            found = [one for run in runs if (one := store.result(run)) and one["stages"]]
            if not found:
                continue
            axes = ("seconds", "tokens", "sequential", "operations")
            middle = {axis: statistics.median(total(one, axis) for one in found) for axis in axes}
            parts = [f"{stage['stage']} {stage['seconds']:.0f}" for stage in found[0]["stages"]]
            rows.append(
                [
                    task.title,
                    store.matrix.arms[arm].title,
                    f"{middle['seconds']:.0f}",
                    " + ".join(parts),
                    *(f"{middle[axis]:.2g}" for axis in axes[1:]),
                ]
            )
    header = ["task", "arm", "CPU-seconds", "of which (first seed)", "tokens", "sequential steps"]
    return _table([*header, "operations"], rows)


def _trials_table(store: Store) -> str:
    matrix = store.matrix
    rows = []
    for run in trial_runs(matrix):
        if run.trial != 0:
            continue
        trials = store.trials(run)
        results = [store.result(one) for one in trials]
        if any(result is None for result in results):
            rows.append(
                [matrix.tasks[run.task].title, matrix.arms[run.arm].title, "not run", "", ""]
            )
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
    return _table(header, rows)


def _trial_cell(result: Table) -> str:
    if result["failed"]:
        return "diverged"
    last = result["stages"][-1]["validation"]
    return f"{last['free_running_accuracy']:.0%} {last['free_running_nll']:.2f}"


def _last_test(result: Table) -> Table | None:
    """The test of the last RNN of a run; None if the run diverged."""
    tests = list(result["tests"].values())
    return tests[-1]["test"] if tests and not result["failed"] else None


def _at_full_length(test: Table | None, predictor: str) -> float:
    """Accuracy on the longest rows; 0 without a test."""
    if test is None:
        return 0.0
    if not test["by_length"]:
        return float(
            next(one["accuracy"] for one in test["overall"] if one["predictor"] == predictor)
        )
    records = [one for one in test["by_length"] if one["predictor"] == predictor]
    return float(max(records, key=lambda one: one["length"])["accuracy"])


def _bits(test: Table | None, predictor: str) -> float:
    """Bits per target at positions 1..T; infinite without a test."""
    if test is None:
        return math.inf
    window = test["window"]
    some = [
        one for one in test["results"] if one["predictor"] == predictor and one["last"] <= window
    ]
    targets = sum(one["targets"] for one in some)
    return float(sum(one["nll"] * one["targets"] for one in some) / targets / math.log(2))


def _of_teacher(results: list[Table | None], measure: Any) -> str:
    """A measure of the teacher's dense readout, median of the seeds."""
    tests = [one["tests"]["smt"]["test"] for one in results if one and "smt" in one["tests"]]
    if not tests:
        return ""
    middle = statistics.median(measure(test, TEACHER) for test in tests)
    return f"{middle:.1%}" if measure is _at_full_length else f"{middle:.3f}"


def _parameters(results: list[Table | None]) -> str:
    found = [one["stages"][-1].get("parameters") for one in results if one and one["stages"]]
    return f"{found[0]:,}" if found and found[0] else ""


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
