"""How gradients decay with distance, by the path that SMT learns by and by BPTT's: curves, fits, a
figure.

Gradients are computed on windows of T tokens of text, or on whole rows, from the memories that each
path meets: the decoder the teacher's, the cell the RNN's own, free-running. An RNN without its
teacher, or that never had one, has the cell's path alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smtkit.config import TrainEncoderConfig
from smtkit.corpus.windows import Windows
from smtkit.evaluation.decay import fit_decay
from smtkit.evaluation.gradient_paths import Path as GradientPath
from smtkit.evaluation.gradient_paths import (
    Point,
    curve,
    distances_up_to,
    through_cell,
    through_decoder,
)
from smtkit.networks.loading import build_teacher
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.networks.teacher import Teacher
from smtkit.training.progress import Progress

FIGURE = "gradients.svg"
SAMPLES = 256
"""Pairs of a memory and a target, a distance; of more windows than pairs no use is made."""
_SEED = 0


@dataclass(frozen=True)
class TrainedTeacher:
    """A teacher, the config of its training, and the window it was trained on."""

    network: Teacher
    config: TrainEncoderConfig
    window: int


Networks = Mapping[str, tuple[RecurrentNetwork, Teacher | None]]
"""trained, and initial: the same with the weights of a fixed seed."""


def with_initial_weights(network: RecurrentNetwork, teacher: TrainedTeacher | None) -> Networks:
    """Beside the trained networks the same before training; the RNN starts from the same memory."""
    vocabulary_size = network.architecture["vocabulary_size"]
    device = network.empty_memory.device
    fresh_teacher = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        fresh_network = RecurrentNetwork.from_architecture(network.architecture)
        if teacher is not None:
            fresh_teacher = build_teacher(teacher.config, vocabulary_size, teacher.window)
            fresh_teacher.eval().requires_grad_(False).to(device)
    fresh_network.requires_grad_(False).empty_memory.copy_(network.empty_memory)
    return {
        "trained": (network, teacher.network if teacher else None),
        "initial": (fresh_network.eval().to(device), fresh_teacher),
    }


def measure(
    network: RecurrentNetwork,
    teacher: TrainedTeacher | None,
    windows: Windows,
    window: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """A record for each path, trained and at initialisation.

    The cell's path is measured up to T tokens, the decoder's as far as it was trained to look.
    """
    device = network.empty_memory.device
    tokens = torch.from_numpy(windows.tokens).to(device)
    targets = torch.from_numpy(windows.targets).to(device)
    longest = min(window, tokens.shape[1])
    future = teacher.config.objective.future_length if teacher else 0
    seen = longest if future == "rest" else min(future, longest)
    records = []
    for weights, (cell, taught_by) in with_initial_weights(network, teacher).items():
        paths: dict[str, tuple[GradientPath, Callable[[Tensor], Tensor], int]] = {}
        if taught_by is not None:
            paths["decoder"] = through_decoder(taught_by.decoder), taught_by.encoder, seen
        paths["cell"] = through_cell(cell.step, cell.readout), cell.rollout, longest
        for name, (path, remember, furthest) in paths.items():
            with torch.no_grad():
                memories = remember(tokens)
            distances = distances_up_to(furthest)
            points = curve(path, memories, tokens, targets, distances, SAMPLES, _SEED)
            records.append(_record(name, weights, points))
            progress.update("gradients", len(records), 2 * len(paths))
    return records


def draw(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The curves on logarithmic axes. Raises ImportError where there is no matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure

    # Text stays text, and the file is the same every time.
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


_COLORS = {"decoder": "#0072b2", "cell": "#d55e00"}
_PATHS = {"decoder": "through the decoder (SMT)", "cell": "through d steps of the cell (BPTT)"}
_WEIGHTS = {"trained": "trained", "initial": "at initialisation"}


def _record(path: str, weights: str, points: Sequence[Point]) -> dict[str, Any]:
    decay = fit_decay([point.distance for point in points], [point.norm for point in points])
    return {
        "path": path,
        "weights": weights,
        "curve": [asdict(point) for point in points],
        "fits": asdict(decay),
    }
