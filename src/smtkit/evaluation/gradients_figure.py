"""The figure of `gradients.measure`: norm over distance, a line per path and weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FIGURE = "gradients.svg"
_COLORS = {"decoder": "#0072b2", "cell": "#d55e00"}
_PATHS = {"decoder": "through the decoder (SMT)", "cell": "through d steps of the cell (BPTT)"}
_WEIGHTS = {"trained": "trained", "initial": "at initialisation"}


def draw(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the curves on logarithmic axes. Raises ImportError if matplotlib is not installed."""
    import matplotlib
    from matplotlib.figure import Figure

    # Text is not converted to outlines; a fixed salt makes the file reproducible.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "smtkit"}):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for record in records:
            shown = [p for p in record["curve"] if p["distance"] > 0 and p["norm"] > 0]
            axes.plot(
                [point["distance"] for point in shown],
                [point["norm"] for point in shown],
                color=_COLORS[record["path"]],
                linestyle="-" if record["weights"] == "trained" else "--",
                marker="o",
                markersize=3.5,
                label=f"{_PATHS[record['path']]}, {_WEIGHTS[record['weights']]}",
            )
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set_yscale("log")
        axes.set_xlabel("distance d, in tokens")
        axes.set_ylabel("norm of d nll(target i + d) / d memory i")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.legend(frameon=False, fontsize="small")
        figure.savefig(path, metadata={"Date": None})
