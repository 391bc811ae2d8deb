"""How gradients decay with distance, by the path that SMT learns by and by BPTT's: curves, fits, a
figure.

Gradients are computed on windows of T tokens of text, or on whole rows, from the memories that each
path meets: the decoder the teacher's, the cell the RNN's own, free-running.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from smtkit.config import TrainEncoderConfig
from smtkit.data.windows import Windows
from smtkit.decay import fit_decay
from smtkit.methods.gradient_paths import (
    Point,
    curve,
    distances_up_to,
    through_cell,
    through_decoder,
)
from smtkit.models.rnn import RecurrentNetwork
from smtkit.models.teacher import Teacher
from smtkit.progress import Progress
from smtkit.stages.train_encoder import build_teacher

FIGURE = "gradients.svg"
_SAMPLES = 256  # pairs of a memory and a target, a distance
_SEED = 0
_POSITIONS = 2**15  # memories held at once

Networks = Mapping[str, tuple[RecurrentNetwork, Teacher]]
"""trained, and initial: the same with the weights of a fixed seed."""


def windows_needed(window: int) -> int:
    """How many windows to read, of `window` tokens each."""
    return max(1, min(_SAMPLES, _POSITIONS // window))


def with_initial_weights(
    network: RecurrentNetwork, teacher: Teacher, config: TrainEncoderConfig, window: int
) -> Networks:
    """Beside the trained networks the same before training; the RNN starts from the same memory."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        fresh_network = RecurrentNetwork.from_architecture(network.architecture)
        vocabulary_size = network.architecture["vocabulary_size"]
        fresh_teacher = build_teacher(config, vocabulary_size, window)
    device = network.empty_memory.device
    fresh_network.requires_grad_(False).empty_memory.copy_(network.empty_memory)
    fresh = (
        fresh_network.eval().to(device),
        fresh_teacher.eval().requires_grad_(False).to(device),
    )
    return {"trained": (network, teacher), "initial": fresh}


def measure(
    networks: Networks,
    windows: Windows,
    window: int,
    future_length: int | Literal["rest"],
    progress: Progress,
) -> list[dict[str, Any]]:
    """A record for each path and each of `networks`.

    The cell's path is measured up to T tokens, the decoder's as far as it was trained to look.
    """
    device = networks["trained"][0].empty_memory.device
    tokens = torch.from_numpy(windows.tokens).to(device)
    targets = torch.from_numpy(windows.targets).to(device)
    longest = min(window, tokens.shape[1])
    seen = longest if future_length == "rest" else min(future_length, longest)
    records = []
    for weights, (network, teacher) in networks.items():
        with torch.no_grad():
            memories = {"decoder": teacher.encoder(tokens), "cell": network.rollout(tokens)}
        paths = {
            "decoder": (through_decoder(teacher.decoder), seen),
            "cell": (through_cell(network.step, network.readout), longest),
        }
        for name, (path, furthest) in paths.items():
            distances = distances_up_to(furthest)
            points = curve(path, memories[name], tokens, targets, distances, _SAMPLES, _SEED)
            records.append(_record(name, weights, points))
            progress.update("gradients", len(records), len(paths) * len(networks))
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
