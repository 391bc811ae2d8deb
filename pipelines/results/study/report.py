"""docs/results.md, its figures and the table in the README, from the raw results."""

import math
import statistics
from pathlib import Path

from study import budgets, figures
from study.amortised import amortised_tables
from study.matrix import Task
from study.measures import RNN, at_full_length, bits, last_test, reached, table
from study.runs import final_runs, runs
from study.store import Store, total
from study.tables import (
    cost_table,
    first_runs,
    goal_table,
    longer_table,
    nll_table,
    trials_table,
)

HERE = Path(__file__).parent.parent
BEGIN, END = "<!-- results: make results writes what follows -->", "<!-- end of results -->"


def write(store: Store, root: Path, matrix: str) -> None:
    """Writes the report of a matrix into the repository at `root`.

    For core.toml docs/results.md and the table in the README; for others a page of their own.
    """
    core = matrix == "core"
    name = "results" if core else f"results-{matrix}"
    docs = root / "docs"
    (docs / f"{name}.md").write_text(page(store, name), encoding="utf-8")
    for task in _with_results(store):
        figures.write(store, task, first_runs(store, task), docs / name)
        if len(store.matrix.tasks[task].budgets) > 1:
            budgets.write(store, task, docs / name)
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
    """The page of a matrix, after its conclusions, if any: those of `results` are in
    conclusions.md, those of `results-NAME` in conclusions-NAME.md."""
    conclusions = HERE / f"{name.replace('results', 'conclusions')}.md"
    parts = [conclusions.read_text(encoding="utf-8")] if conclusions.exists() else []
    parts.append(_how(store))
    parts += [_section(store, task, name) for task in _with_results(store)]
    parts.append(f"## Cost of each arm\n\n{cost_table(store)}")
    parts.append(f"## Trials\n\n{trials_table(store)}")
    return "\n".join(parts)


def _section(store: Store, task: str, name: str) -> str:
    """The tables and figures of a task."""
    declared = store.matrix.tasks[task]
    title = declared.title
    parts = [f"## {title[0].upper()}{title[1:]}\n\n{_declared(declared)}\n"]
    parts.append(goal_table(store, task) if declared.goal else nll_table(store, task))
    if declared.longer:
        parts.append(longer_table(store, task))
    parts.append(f"![{title}]({name}/{task}.svg)\n\n[CSV]({name}/{task}.csv)\n")
    if len(declared.budgets) > 1:
        figure = f"{name}/{task}-budgets"
        parts.append(budgets.budgets_table(store, task))
        parts.append(f"![{title}, over budgets]({figure}.svg)\n\n[CSV]({figure}.csv)\n")
    parts += amortised_tables(store, task)
    return "\n".join(parts)


def _with_results(store: Store) -> list[str]:
    """Tasks of which at least one final run has a result."""
    found = {run.task for run in final_runs(store.matrix) if store.result(run)}
    return [task for task in store.matrix.named if task in found]


def summary(store: Store) -> str:
    """The table in the README: one row per arm, one column per task, medians over the seeds."""
    if not any(store.result(run) for run in final_runs(store.matrix)):
        return "No declared run has a result yet; `make results` runs them.\n"
    tasks = {name: store.matrix.tasks[name] for name in store.matrix.named}
    arms = dict.fromkeys(arm for task in tasks.values() for arm in task.arms)
    rows = [
        [store.matrix.arms[arm].title, *(_summarized(store, task, arm) for task in tasks)]
        for arm in arms
    ]
    return table(["", *(task.title for task in tasks.values())], rows)


def _summarized(store: Store, task: str, arm: str) -> str:
    """Median over the seeds with results; a failed seed has accuracy 0 and infinite seconds."""
    if arm not in store.matrix.tasks[task].arms:
        return ""
    results = [store.result(run) for run in first_runs(store, task) if run.arm == arm]
    found = [result for result in results if result]
    if not found:
        return "not run"
    seeds = "" if len(found) == len(results) else f" ({len(found)} of {len(results)} seeds)"
    if store.matrix.tasks[task].goal is None:
        middle = statistics.median(bits(last_test(one), RNN) for one in found)
        return f"{middle:.3f} bits{seeds}"
    accuracy = statistics.median(at_full_length(last_test(one), RNN) for one in found)
    seconds = statistics.median(
        total(one, "seconds") if reached(store, task, one) else math.inf for one in found
    )
    if math.isinf(seconds):
        return f"{accuracy:.0%}{seeds}"
    return f"**{accuracy:.0%}** in {seconds:.0f} s{seeds}"


def _how(store: Store) -> str:
    every = runs(store.matrix)
    found = [result for run in every if (result := store.result(run))]
    spent = sum(total(one, "seconds") for one in found) / 3600
    machines = {
        ", ".join(f"{key} {value}" for key, value in one["machine"].items()) for one in found
    }
    lines = [
        (HERE / "rules.md").read_text(encoding="utf-8").rstrip("\n"),
        f"{len(found)} of {len(every)} declared runs have results; they took {spent:.1f} "
        "CPU-hours.",
        *sorted(machines),
    ]
    return "\n\n".join(lines) + "\n"


def _declared(task: Task) -> str:
    goal = f"; a run ends at a validation accuracy of {task.goal:.1%}" if task.goal else ""
    return f"Budget: {task.budget:g} CPU-seconds{goal}."
