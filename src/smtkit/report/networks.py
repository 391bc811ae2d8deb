"""Sections for which the networks run: the shape of their memories, and samples.

B: windows, T: tokens per window, N: memories, K: slots, D: slot width.
"""

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smtkit.config import ReportConfig
from smtkit.corpus.pictures import write_grid
from smtkit.corpus.shards import is_stream
from smtkit.corpus.stored_tokenizer import check_tokenizers
from smtkit.corpus.tokenizers import PixelTokenizer, TextTokenizer, Tokenizer
from smtkit.corpus.windows import open_windows
from smtkit.errors import SmtkitError
from smtkit.evaluation.predictors import evenly_spaced
from smtkit.inference.trained import TrainedRNN, TrainedTeacher, find_device
from smtkit.methods.losses import memory_health
from smtkit.report.content import Cell, Figure, Key, Sample, Section, Table
from smtkit.report.drawing import Line, axes_of, color, line_figure
from smtkit.report.runs import ReportRun, Runs
from smtkit.storage.artifact import Artifact

_DRAWN = 500  # memories per figure
_COUNTED = 2000  # memories of which the spectrum is computed
_NAMED = 6  # most frequent tokens, each with its colour
_COMPONENTS = 32


class Memories(NamedTuple):
    """N memories (N, Z), the position of each and the last token before it (N,)."""

    title: str
    run: ReportRun
    memory: NDArray[np.float32]
    position: NDArray[np.int64]
    token: NDArray[np.int64]
    tokenizer: Tokenizer
    is_teacher: bool


def memory(runs: Runs, config: ReportConfig) -> Section:
    """Principal components by position and token, spectrum, and signs of collapse."""
    title, missing, found = "Memory", [], list[Memories]()
    for run in runs.of("rnn"):
        tokens = runs.find(run, "tokens")
        if tokens is None:
            missing.append(f"{run.label}: name its tokens too: smtkit report {run.label} TOKENS")
            continue
        encoder = runs.find(run, "encoder")
        for network in (run.artifact, encoder):
            if network is not None:
                found.append(_memories(run, network, tokens, config))
    if not found:
        missing = missing or ["name rnn artifacts and their tokens: smtkit report rnn tokens"]
        return Section("memory", title, missing=missing)
    figures: list[Figure] = [_spectrum(found)]
    for number, each in enumerate(found):
        figures += _components(each, number)
    head = ["network", "effective rank", "of numbers", "variance", "uniformity"]
    rows: list[list[Cell]] = []
    for each in found:
        health = memory_health(torch.from_numpy(each.memory)[:, None])
        size = each.memory.shape[1]
        rows.append(
            [each.title, health["effective_rank"], size, health["variance"], health["uniformity"]]
        )
    text = (
        "Memories at positions of the validation split. Effective rank near 1, or a variance near "
        "0: memory has collapsed. Components that follow the position alone: memory counts tokens "
        "more than it holds what was read."
    )
    return Section("memory", title, text, figures, [Table(head, rows)], missing=missing)


def samples(runs: Runs, config: ReportConfig) -> Section:
    """Samples of each RNN for the same prompts and seeds, side by side."""
    networks: list[tuple[ReportRun, TrainedRNN]] = []
    missing = []
    for run in runs.of("rnn"):
        network = TrainedRNN(run.artifact, find_device(config.device))
        if isinstance(network.tokenizer, TextTokenizer | PixelTokenizer):
            networks.append((run, network))
        else:
            command = f"smtkit generate {run.label} --tokens TOKENS --from-split test"
            missing.append(f"{run.label} answers rows of a task: {command}")
    rows: list[list[Sample]] = []
    for seed in range(config.samples):
        for prompt in config.prompts or [""]:
            texts = [
                _text(run, network, prompt, seed, config)
                for run, network in networks
                if isinstance(network.tokenizer, TextTokenizer)
            ]
            rows += [texts] if texts else []
    if len(networks) == 1:
        rows = [[sample for row in rows for sample in row]] if rows else []
    pictures = [
        _picture(run, network, network.tokenizer, config)
        for run, network in networks
        if isinstance(network.tokenizer, PixelTokenizer)
    ]
    rows += [pictures] if pictures else []
    if not rows and not missing:
        missing = ["name rnn artifacts: smtkit report rnn ..."]
    text = f"Written by each RNN alone, at temperature {config.temperature:g}." if rows else ""
    return Section("samples", "Samples", text, samples=rows, missing=missing)


def _memories(
    run: ReportRun, network: Artifact, tokens: Artifact, config: ReportConfig
) -> Memories:
    """Memories of a network on validation windows."""
    check_tokenizers(network, tokens)
    is_teacher = network.manifest.kind == "encoder"
    load = TrainedTeacher if is_teacher else TrainedRNN
    trained = load(network, find_device(config.device))
    windows = open_windows(tokens, "validation", trained.window if is_stream(tokens) else None)
    read = windows.read(evenly_spaced(windows, config.windows))
    with torch.no_grad():
        given = torch.from_numpy(read.tokens).to(trained.device)
        if isinstance(trained, TrainedRNN):
            rolled = trained.rollout(given)
        else:
            rolled = trained.encode(given)
    row, position = np.nonzero(np.arange(1, rolled.shape[1]) <= read.length[:, None])
    position += 1
    chosen = np.linspace(0, len(row) - 1, min(_COUNTED, len(row))).round().astype(np.int64)
    row, position = row[chosen], position[chosen]
    memory = rolled[torch.from_numpy(row), torch.from_numpy(position)].flatten(1).float().cpu()
    what = "teacher of " if is_teacher else ""
    token = read.tokens[row, position - 1]
    return Memories(
        f"{what}{run.label}", run, memory.numpy(), position, token, trained.tokenizer, is_teacher
    )


def _components(found: Memories, number: int) -> list[Figure]:
    """The first two principal components, coloured by position and by token."""
    flat = torch.from_numpy(found.memory).double()
    centered = flat - flat.mean(0)
    if not bool(centered.isfinite().all()):
        return []
    _, _, directions = torch.linalg.svd(centered, full_matrices=False)
    xy: Tensor = centered @ directions[:2].T
    x, y = (xy if xy.shape[1] == 2 else torch.nn.functional.pad(xy, (0, 1))).T.numpy()
    some = np.linspace(0, len(x) - 1, min(_DRAWN, len(x))).round().astype(np.int64)
    x, y, position, token = x[some], y[some], found.position[some], found.token[some]
    frequent = [t for t, _ in Counter(token.tolist()).most_common(_NAMED)]
    names = [repr(found.tokenizer.decode([t])) for t in frequent]
    group = np.array([frequent.index(t) if t in frequent else -1 for t in token.tolist()])
    data = Table(
        ["token", "position", "first component", "second component"],
        [
            [repr(found.tokenizer.decode([t])), p, a, b]
            for t, p, a, b in zip(
                token.tolist(), position.tolist(), x.tolist(), y.tolist(), strict=True
            )
        ],
    )
    labels = "first principal component", "second"
    name = f"components_{number}"
    with axes_of(f"{name}_position") as (axes, by_position):
        dots = axes.scatter(x, y, c=position, s=7, cmap="viridis", linewidths=0)
        axes.figure.colorbar(dots, ax=axes, label="position")
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
    with axes_of(f"{name}_token") as (axes, by_token):
        for index in (-1, *range(len(frequent))):
            shown = group == index
            grey, own = "#888888", f"#0001{max(index, 0):02x}"
            axes.scatter(x[shown], y[shown], color=grey if index < 0 else own, s=7, linewidths=0)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
    legend = [Key(name, color(index)) for index, name in enumerate(names)]
    legend.append(Key("other tokens", "#888888"))
    title = f"{found.title}: principal components"
    return [
        Figure(f"{name}_position", f"{title} by position", by_position[0], [], data),
        Figure(f"{name}_token", f"{title} by token", by_token[0], legend, data),
    ]


def _spectrum(found: Sequence[Memories]) -> Figure:
    """Shares of the variance along the principal components."""
    lines = []
    for each in found:
        centered = torch.from_numpy(each.memory - each.memory.mean(0)).double()
        spectrum = torch.linalg.svdvals(centered.nan_to_num()).square()
        shares = (spectrum / spectrum.sum().clamp_min(1e-12))[:_COMPONENTS].clamp_min(1e-9)
        x = [float(i + 1) for i in range(len(shares))]
        dash = "dashed" if each.is_teacher else "solid"
        lines.append(Line(each.title, x, shares.tolist(), each.run.color, dash))
    labels = "principal component", "share of the variance"
    return line_figure("spectrum", "Spectrum of memory", lines, labels, log_y=True)


def _text(
    run: ReportRun, network: TrainedRNN, prompt: str, seed: int, config: ReportConfig
) -> Sample:
    text = network.generate(prompt, config.max_tokens, temperature=config.temperature, seed=seed)
    return Sample(f"{run.label}, seed {seed}", text, prompt)


def _picture(
    run: ReportRun, network: TrainedRNN, tokenizer: PixelTokenizer, config: ReportConfig
) -> Sample:
    """A grid of images from nothing."""
    height, width, white = tokenizer.height, tokenizer.width, tokenizer.levels - 1
    count = 8 * config.samples
    prompts = torch.zeros(count, 0, dtype=torch.int64)
    drawn = network.complete(prompts, height * width, temperature=config.temperature, seed=0)
    images = list(drawn.cpu().numpy().reshape(-1, height, width))
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "samples.png"
            write_grid(images, white, path)
            return Sample(f"{run.label}, {count} images, seed 0", png=path.read_bytes())
    except SmtkitError as error:
        return Sample(run.label, f"{error} ({error.hint})")
