"""Test results over the budget: table, figure and CSV of each task with several budgets."""

import math
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from study.figures import drawing, save_rows
from study.measures import RNN, at_full_length, bits, charged, last_test, shown, table
from study.runs import final_runs
from study.specification import budget_of
from study.store import Store, total

AXES = {"budget": "budget, CPU-seconds of one thread", "sequential": "sequential steps of the run"}


class End(NamedTuple):
    """The last RNN of a run on test, and what the run cost.

    `nll` is in nats per target at positions 1..T (NaN if the run diverged); `accuracy` is that on
    rows of full length.
    """

    arm: str
    seed: int
    budget: float
    seconds: float
    tokens: float
    sequential: float
    operations: float
    nll: float
    accuracy: float


def ends(store: Store, task: str) -> Iterator[End]:
    """The ends of all runs of a task that have results, with all budgets."""
    arms = store.matrix.tasks[task].arms
    for run in final_runs(store.matrix):
        if run.task != task or run.arm not in arms or not (result := store.result(run)):
            continue
        test = last_test(result)
        yield End(
            run.arm,
            run.seed,
            budget=budget_of(store.matrix, run),
            seconds=round(charged(store, run, result), 2),
            tokens=total(result, "tokens"),
            sequential=round(total(result, "sequential"), 2),
            operations=round(total(result, "operations"), 2),
            nll=round(bits(test, RNN) * math.log(2), 5) if test else math.nan,
            accuracy=round(at_full_length(test, RNN), 5),
        )


def budgets_table(store: Store, task: str) -> str:
    """Medians over the seeds, one column per budget."""
    declared = store.matrix.tasks[task]
    found = list(ends(store, task))
    budgets = [declared.budget * multiple for multiple in sorted(declared.budgets)]
    rows = []
    for arm in declared.arms:
        cells = [[end for end in found if (end.arm, end.budget) == (arm, b)] for b in budgets]
        if any(cells):
            medians = (_cell(some, accurate=declared.goal is not None) for some in cells)
            rows.append([store.matrix.arms[arm].title, *medians])
    metric = "Accuracy on rows of length T" if declared.goal is not None else "Bits per target"
    header = ["", *(f"{budget:g} s" for budget in budgets)]
    return (
        f"{metric} on test, after each budget of CPU-seconds: median of the seeds, and their "
        f"number.\n\n{table(header, rows)}"
    )


def _cell(some: list[End], *, accurate: bool) -> str:
    if not some:
        return ""
    middle = statistics.median(
        end.accuracy if accurate else _infinite(end.nll) / math.log(2) for end in some
    )
    return f"{shown(middle, accurate=accurate)} ({len(some)})"


def _infinite(nll: float) -> float:
    """The nll, infinite if the run diverged."""
    return math.inf if math.isnan(nll) else nll


def write(store: Store, task: str, folder: Path) -> None:
    """Writes `TASK-budgets.svg` and `TASK-budgets.csv`."""
    points = list(ends(store, task))
    save_rows(folder / f"{task}-budgets.csv", End, points)
    declared = store.matrix.tasks[task]
    accurate = declared.goal is not None
    with drawing(len(AXES), len(declared.arms), (11, 4.6)) as (figure, panels, colors):
        for arm, color in zip(declared.arms, colors, strict=False):
            some = [end for end in points if end.arm == arm]
            bptt = store.matrix.arms[arm].kind == "bptt"
            style: dict[str, Any] = {"color": color, "linestyle": "--" if bptt else "-"}
            for panel, axis in zip(panels, AXES, strict=True):
                label = store.matrix.arms[arm].title
                _line(panel, axis, some, {**style, "label": label}, accurate=accurate)
        for panel, title in zip(panels, AXES.values(), strict=True):
            panel.set_xlabel(title)
            panel.set_xscale("log")
            panel.grid(alpha=0.3, which="both")
        panels[0].set_ylabel("accuracy, rows of length T" if accurate else "bits per target")
        if points:
            panels[-1].legend(fontsize=7, bbox_to_anchor=(1.02, 1), loc="upper left")
        figure.suptitle(f"{declared.title}: the RNN on its own, on test", fontsize=10)
        figure.tight_layout()
        path = folder / f"{task}-budgets.svg"
        figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")


def _line(panel: Any, axis: str, some: list[End], style: dict[str, Any], *, accurate: bool) -> None:
    """Draws a dot for every seed, and a line through the medians of each budget."""
    if not some:
        return
    along, values = [], []
    for budget in sorted({end.budget for end in some}):
        ended = [end for end in some if end.budget == budget]
        along.append(statistics.median(getattr(end, axis) for end in ended))
        values.append(statistics.median(_heights(ended, accurate=accurate)))
    panel.plot(along, values, linewidth=1.2, **style)
    dots = [getattr(end, axis) for end in some]
    panel.plot(dots, list(_heights(some, accurate=accurate)), "o", color=style["color"], ms=3)


def _heights(some: Iterable[End], *, accurate: bool) -> Iterator[float]:
    return (end.accuracy if accurate else end.nll / math.log(2) for end in some)
