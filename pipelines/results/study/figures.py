"""Learning curves of every run: the figure of a task, and its CSV."""

import csv
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from study.matrix import Table
from study.runs import Run
from study.store import Store

AXES = {
    "seconds": "CPU-seconds of one thread",
    "tokens": "tokens read",
    "sequential": "sequential steps",
    "operations": "operations, estimated",
}


class Point(NamedTuple):
    """Costs up to a validation, and nll and accuracy of the free-running RNN in it."""

    arm: str
    seed: int
    stage: str
    seconds: float
    tokens: float
    sequential: float
    operations: float
    nll: float
    accuracy: float


def learning_curve(run: Run, result: Table, budget: float) -> Iterator[Point]:
    """Every validation of a run, beginning with those of the teacher's co-trained cell.

    A run that diverged ends with a point at the end of its budget, with an accuracy of 0.
    """
    before = dict.fromkeys(AXES, 0.0)
    for stage in result["stages"]:
        for step, seconds, tokens, nll, accuracy in stage.get("curve", ()):
            share = step / stage["steps"]
            here = {
                "seconds": seconds,
                "tokens": tokens,
                "sequential": share * stage["sequential"],
                "operations": share * stage["operations"],
            }
            costs = {name: round(before[name] + here[name], 2) for name in AXES}
            yield Point(run.arm, run.seed, stage["stage"], *costs.values(), nll, accuracy)
        before = {name: before[name] + stage[name] for name in AXES}
    if result["failed"]:
        costs = {**before, "seconds": budget}
        yield Point(run.arm, run.seed, "failed", *costs.values(), math.nan, 0.0)


def write(store: Store, task: str, runs: list[Run], folder: Path) -> None:
    """Writes `TASK.svg` and `TASK.csv`."""
    budget = store.matrix.tasks[task].budget
    points = [
        point
        for run in runs
        if (result := store.result(run))
        for point in learning_curve(run, result, budget)
    ]
    save_rows(folder / f"{task}.csv", Point, points)
    _draw(store, task, points, folder / f"{task}.svg")


@contextmanager
def drawing(panels: int, arms: int, size: tuple[float, float]) -> Iterator[tuple[Any, Any, Any]]:
    """A figure, its panels with one y-axis, and a color per arm.

    It has no date and no random names, so that the same numbers give the same file.
    """
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    with mpl.rc_context({"svg.hashsalt": "smtkit", "svg.fonttype": "none", "font.size": 9}):
        figure, axes = pyplot.subplots(1, panels, figsize=size, sharey=True)
        yield figure, axes, cycle(mpl.color_sequences["tab20" if arms > 10 else "tab10"])
        pyplot.close(figure)


def save_rows(path: Path, kind: Any, rows: Iterable[Any]) -> None:
    """Writes named tuples of one kind as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(kind._fields)
        writer.writerows(rows)


def _draw(store: Store, task: str, points: list[Point], path: Path) -> None:
    declared = store.matrix.tasks[task]
    with drawing(len(AXES), len(declared.arms), (14, 3.6)) as (figure, panels, colors):
        for arm, color in zip(declared.arms, colors, strict=False):
            label: str | None = store.matrix.arms[arm].title
            for seed in dict.fromkeys(point.seed for point in points if point.arm == arm):
                some = [point for point in points if (point.arm, point.seed) == (arm, seed)]
                for panel, axis in zip(panels, AXES, strict=True):
                    _line(panel, axis, some, color, label, accuracy=declared.goal is not None)
                label = None
        for panel, (axis, title) in zip(panels, AXES.items(), strict=True):
            panel.set_xlabel(title)
            panel.set_xscale("linear" if axis == "seconds" else "log")
            panel.grid(alpha=0.3)
        panels[0].set_ylabel("accuracy" if declared.goal is not None else "bits per target")
        if points:
            panels[0].legend(fontsize=7)
        figure.suptitle(f"{declared.title}: the RNN on its own, on validation", fontsize=10)
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None})


def _line(
    panel: Any, axis: str, points: list[Point], color: Any, label: str | None, *, accuracy: bool
) -> None:
    """Draws one seed: a dotted line for the co-trained cell, a dot where the run ends."""
    if not points:
        return
    along = [getattr(point, axis) for point in points]
    values = [point.accuracy if accuracy else point.nll / math.log(2) for point in points]
    joint = sum(point.stage == "encoder" for point in points)
    panel.plot(along[:joint], values[:joint], color=color, linewidth=0.8, linestyle=":")
    panel.plot(along[joint:], values[joint:], color=color, linewidth=1.0, label=label)
    panel.plot(along[-1], values[-1], "o", color=color, markersize=3)
