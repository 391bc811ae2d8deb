"""Figures as SVG, drawn with matplotlib, in colours that follow the page's.

Text of artifacts never reaches matplotlib: legends are a part of the page.
"""

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from smtkit.errors import UsageError
from smtkit.report.content import Cell, Figure, Key, Table

COLORS = 8
"""The page defines so many colours `--s0`, `--s1`, ... for series."""
_DASHES = {"solid": "-", "dashed": (0, (5, 2)), "dotted": (0, (1, 1.6))}
_TEXT, _GRID = "#000001", "#000002"
_SIZE = 4.1, 2.6
_POINTS = 1000  # per line; longer ones are thinned


@dataclass(frozen=True)
class Line:
    """A curve: its label, x and y of each point, the number of its colour, how it is drawn."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    color: int
    dash: str = "solid"
    marker: bool = False
    faint: bool = False
    error: Sequence[float | None] = ()
    """Standard error of each y; empty: unknown."""


def color(number: int) -> str:
    """CSS of a colour of a series."""
    return f"var(--s{number % COLORS})"


def line_figure(
    name: str,
    title: str,
    lines: Sequence[Line],
    labels: tuple[str, str],
    *,
    log_x: bool = False,
    log_y: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    ticks: Sequence[float] = (),
) -> Figure:
    """Lines over x. `labels`: of both axes; `marks`: (x, label) of vertical lines; `ticks`: those
    of x, by default matplotlib's."""
    with axes_of(name) as (axes, done):
        from matplotlib.ticker import LogLocator

        for line in lines:
            _draw(axes, line)
        if log_x:
            axes.set_xscale("symlog", base=2, linthresh=1)
        if log_y:
            axes.set_yscale("log")
        for x, label in marks:
            axes.axvline(x, color=_TEXT, linewidth=0.8, linestyle=(0, (2, 2)), alpha=0.6)
            axes.annotate(
                label, (x, 1), (3, -3), ("data", "axes fraction"), "offset points", va="top"
            )
        if ticks:
            axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
        elif log_x or all(x == round(x) for line in lines for x in line.x):
            axes.xaxis.set_major_formatter(_short)
        if log_y:
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
            axes.yaxis.set_major_formatter(_short)
        axes.minorticks_off()
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
    legend = [Key(line.label, color(line.color), line.dash, line.faint) for line in lines]
    rows: list[list[Cell]] = []
    for line in lines:
        errors = line.error or [None] * len(line.x)
        rows += map(list, zip([line.label] * len(line.x), line.x, line.y, errors, strict=True))
    head = ["line", *labels]
    if any(line.error for line in lines):
        head.append("standard error")
    else:
        rows = [row[:3] for row in rows]
    return Figure(name, title, done[0], legend, Table(head, rows))


def dot_figure(
    name: str, title: str, rows: Sequence[str], lines: Sequence[Line], x_label: str
) -> Figure:
    """One dot per row and line, the first row at the top; `x` of a line are numbers of rows."""
    height = 0.7 + 0.3 * len(rows)
    with axes_of(name, (_SIZE[0], height)) as (axes, done):
        for number, line in enumerate(lines):
            shift = 0.14 * (number - (len(lines) - 1) / 2)
            places = [row + shift for row in line.x]
            axes.errorbar(
                [math.nan if y is None else y for y in line.y],
                places,
                xerr=[2 * (error or 0) for error in line.error] or None,
                color=_series(line.color),
                fmt="o",
                markersize=5,
                elinewidth=1.2,
            )
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(x_label)
    legend = [Key(line.label, color(line.color)) for line in lines]
    data: list[list[Cell]] = []
    for line in lines:
        errors = line.error or [None] * len(line.x)
        for row, value, error in zip(line.x, line.y, errors, strict=True):
            data.append([line.label, rows[int(row)], value, error])
    return Figure(
        name, title, done[0], legend, Table(["run", "row", x_label, "standard error"], data)
    )


@contextmanager
def axes_of(name: str, size: tuple[float, float] = _SIZE) -> Iterator[tuple[Any, list[str]]]:
    """Axes to draw on; at the end of the block the second of the pair holds the SVG.

    Raises UsageError if matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        hint = "pip install 'smtkit[figures]'"
        raise UsageError("report: figures need matplotlib", hint) from None
    style: Any = {
        "svg.fonttype": "none",  # text is not converted to outlines
        "svg.hashsalt": name,  # reproducible, and other ids in each figure of a page
        "text.parse_math": False,
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 8.5,
        "text.color": _TEXT,
        "axes.labelcolor": _TEXT,
        "axes.edgecolor": _TEXT,
        "xtick.color": _TEXT,
        "ytick.color": _TEXT,
        "axes.linewidth": 0.6,
        "grid.color": _GRID,
        "axes.formatter.use_mathtext": False,
    }
    with matplotlib.rc_context(style):
        canvas = Canvas(figsize=size, layout="constrained")
        axes = canvas.add_subplot()
        done: list[str] = []
        yield axes, done
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(linewidth=0.5)
        axes.set_axisbelow(True)
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        done.append(_for_page(buffer.getvalue()))


def thinned(count: int) -> slice:
    """The points of a line of `count` points that are drawn: at most about a thousand."""
    return slice(None, None, max(1, math.ceil(count / _POINTS)))


def _short(value: float, _: object = None) -> str:
    """A number of a scale: 1500000 as 1.5M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if suffix == 'k' else size):g}{suffix}"
    return f"{value:g}"


def _draw(axes: Any, line: Line) -> None:
    y = [math.nan if value is None else value for value in line.y]
    axes.plot(
        line.x,
        y,
        color=_series(line.color),
        linestyle=_DASHES[line.dash],
        linewidth=1.0 if line.faint else 1.8,
        alpha=0.5 if line.faint else 1.0,
        marker="o" if line.marker or len(line.x) == 1 else None,
        markersize=3.5,
    )
    if line.error:
        errors = [2 * (error or 0) for error in line.error]
        low = [value - error for value, error in zip(y, errors, strict=True)]
        high = [value + error for value, error in zip(y, errors, strict=True)]
        axes.fill_between(line.x, low, high, color=_series(line.color), alpha=0.12, linewidth=0)


def _series(number: int) -> str:
    """The colour that stands for `color(number)` until `_for_page`."""
    return f"#0001{number % COLORS:02x}"


def _for_page(svg: str) -> str:
    """The element `svg` alone, in the page's colours. The page sets its size, joins and fonts."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[A-Za-z0-9]+_\d+"', "", svg)  # repeated in every figure, and never used
    svg = svg.replace(_TEXT, "var(--text)").replace(_GRID, "var(--grid)")
    for number in range(COLORS):
        svg = svg.replace(_series(number), color(number))
    return svg
