"""How the gradient of a target's nll decays with the distance between the target and a memory.

Two paths lead from `memory[:, i]` to `targets[:, i + d]`: the decoder, which reads the d tokens
between them at once (SMT trains through it), and d steps of the cell (BPTT does).

N: pairs of a memory and a target, d: tokens between them, B: windows, L: tokens per window, K:
slots, D: slot width, V: vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smtkit import IGNORE
from smtkit.corpus.windows import Windows
from smtkit.evaluation.decay import fit_decay
from smtkit.evaluation.figures import svg_axes
from smtkit.evaluation.subject import Subject
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.networks.teacher import Teacher
from smtkit.training.progress import Progress

FIGURE = "gradients.svg"
SAMPLES = 256
"""Pairs per distance; more windows than this are not needed."""
_SEED = 0
_TOKENS = 4096  # read at once, over all pairs
_COLORS = {"decoder": "#0072b2", "cell": "#d55e00"}
_PATHS = {"decoder": "through the decoder (SMT)", "cell": "through d steps of the cell (BPTT)"}
_WEIGHTS = {"trained": "trained", "initial": "at initialisation"}

GradientPath = Callable[[Tensor, Tensor], Tensor]
"""memory (N, K, D), tokens (N, d) -> logits (N, V) of the target d tokens later."""


@dataclass(frozen=True)
class Point:
    """Mean over `samples` pairs of the norm of d nll(targets[i + distance]) / d memory[i]."""

    distance: int
    norm: float
    samples: int


def measure(subject: Subject, windows: Windows, progress: Progress) -> list[dict[str, Any]]:
    """A record per path, of the trained networks and of the same networks before training.

    The decoder's path starts from the teacher's memories and is as long as the future that it was
    trained to read; the cell's path starts from the RNN's own rollout and is up to T tokens long.
    Without a teacher there is only the cell's path.
    """
    device = subject.device
    tokens = torch.from_numpy(windows.tokens).to(device)
    targets = torch.from_numpy(windows.targets).to(device)
    longest = min(subject.window, tokens.shape[1])
    future = subject.future_length
    records: list[dict[str, Any]] = []
    for weights, measured in (("trained", subject), ("initial", with_initial_weights(subject))):
        network, teacher = measured.network, measured.teacher
        paths: dict[str, tuple[GradientPath, Callable[[Tensor], Tensor], int]] = {}
        if teacher is not None:
            furthest = longest if future == "rest" else min(future, longest)
            paths["decoder"] = through_decoder(teacher.decode), teacher.encoder, furthest
        paths["cell"] = through_cell(network.step, network.readout), network.rollout, longest
        for name, (path, encode, furthest) in paths.items():
            with torch.no_grad():
                memory = encode(tokens)
            points = curve(path, memory, tokens, targets, distances_up_to(furthest), SAMPLES, _SEED)
            fits = fit_decay([p.distance for p in points], [p.norm for p in points])
            records.append(
                {
                    "path": name,
                    "weights": weights,
                    "curve": [asdict(point) for point in points],
                    "fits": asdict(fits),
                }
            )
            progress.update("gradients", len(records), 2 * len(paths))
    return records


def with_initial_weights(subject: Subject) -> Subject:
    """The same networks with random weights of a fixed seed; the RNN keeps its empty memory."""
    network, teacher = subject.network, subject.teacher
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        fresh = RecurrentNetwork(network.architecture).requires_grad_(False)
        fresh.empty_memory.copy_(network.empty_memory)
        fresh_teacher = None
        if teacher is not None:
            fresh_teacher = Teacher(teacher.architecture).requires_grad_(False)
            fresh_teacher.eval().to(subject.device)
    return Subject(fresh.eval().to(subject.device), fresh_teacher, subject.future_length)


def through_decoder(decode: Callable[[Tensor, Tensor], Tensor]) -> GradientPath:
    """The path of decode: memory (N, K, D), tokens (N, d) -> logits (N, d + 1, V)."""
    return lambda memory, tokens: decode(memory, tokens)[:, -1]


def through_cell(
    step: Callable[[Tensor, Tensor], Tensor], readout: Callable[[Tensor], Tensor]
) -> GradientPath:
    """The path of d steps (memory (N, K, D), token (N,) -> memory) and a readout (-> (N, V))."""

    def path(memory: Tensor, tokens: Tensor) -> Tensor:
        for token in tokens.unbind(1):
            memory = step(memory, token)
        return readout(memory)

    return path


def curve(
    path: GradientPath,
    memory: Tensor,
    tokens: Tensor,
    targets: Tensor,
    distances: Sequence[int],
    samples: int,
    seed: int = 0,
) -> list[Point]:
    """A point for each distance at which there are targets, over at most `samples` pairs.

    memory (B, L + 1, K, D), tokens (B, L), targets (B, L + 1). Pairs are drawn by the seed from all
    whose target is not IGNORE.
    """
    points = []
    for distance in distances:
        pairs = (targets[:, distance:] != IGNORE).nonzero()  # (pairs, 2): row, position of memory
        if len(pairs) == 0:
            continue
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))[:samples]
        pairs = pairs[order.to(pairs.device)]
        offsets = torch.arange(distance, device=tokens.device)
        norms = []
        for rows, positions in (
            some.unbind(1) for some in pairs.split(max(1, _TOKENS // (distance + 1)))
        ):
            between = tokens[rows[:, None], positions[:, None] + offsets]
            target = targets[rows, positions + distance]
            norms.append(gradient_norms(path, memory[rows, positions], between, target))
        points.append(Point(distance, float(torch.cat(norms).mean()), len(pairs)))
    return points


def gradient_norms(path: GradientPath, memory: Tensor, tokens: Tensor, targets: Tensor) -> Tensor:
    """Norm of each target's gradient over the K D numbers of its memory, (N,) float64.

    memory (N, K, D), tokens (N, d), targets (N,). One backward pass serves all pairs, because no
    logit depends on another pair's memory. Zero where the path does not read the memory.
    """
    with torch.enable_grad():
        memory = memory.detach().requires_grad_()
        nll = F.cross_entropy(path(memory, tokens).float(), targets, reduction="sum")
        if not nll.requires_grad:
            return torch.zeros(len(memory), dtype=torch.float64, device=memory.device)
        (gradient,) = torch.autograd.grad(nll, memory, allow_unused=True, materialize_grads=True)
    return gradient.double().flatten(1).norm(dim=1)


def distances_up_to(longest: int) -> list[int]:
    """0, 1, 2, 3, 4, 6, 8, 12, ... and the longest: two per octave."""
    powers = [2**exponent for exponent in range(max(longest, 1).bit_length())]
    chosen = {0, longest, *powers, *(power + power // 2 for power in powers)}
    return sorted(distance for distance in chosen if distance <= longest)


def draw(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the curves of `measure` on logarithmic axes, a line per path and weights.

    Raises ImportError if matplotlib is not installed.
    """
    with svg_axes(path) as axes:
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
