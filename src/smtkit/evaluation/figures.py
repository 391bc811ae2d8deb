"""Figures of evaluations, drawn with matplotlib where it is installed."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def svg_axes(path: Path) -> Iterator[Any]:
    """Axes of one figure with a legend, which is saved to `path` at the end of the block.

    Raises ImportError if matplotlib is not installed.
    """
    import matplotlib
    from matplotlib.figure import Figure

    # Text is not converted to outlines; a fixed salt makes the file reproducible.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "smtkit"}):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.add_subplot()
        yield axes
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.legend(frameon=False, fontsize="small")
        figure.savefig(path, metadata={"Date": None})
