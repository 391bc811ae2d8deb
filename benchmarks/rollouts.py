"""Time of an update of the RNN by every method, as a share of a sequential rollout's.

All read the same windows of made-up labels; an update is forward, backward, clipping and AdamW.
Every method is timed in turn, three times over; what is printed are the median and the range.

    python benchmarks/rollouts.py [--device cuda] [--length 256] [--batch 32] [--cell mlp]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smtkit.config import (
    CellConfig,
    DecoderConfig,
    ReadoutConfig,
    RolloutConfig,
    TransitionObjectiveConfig,
)
from smtkit.data.labels import LabelShape, LabelShards, write_labels
from smtkit.data.transitions import RolloutSource, SequenceBatch, TransitionSource
from smtkit.data.windows import Windows
from smtkit.methods.bptt import BackpropagationThroughTime
from smtkit.methods.dmt import DaggerMemoryTraining
from smtkit.methods.smt import SupervisedMemoryTraining
from smtkit.models.rnn import RecurrentNetwork
from smtkit.training import moved

VOCABULARY, SLOTS, SLOT_WIDTH = 256, 4, 64
ROLLOUTS = {
    "dmt, sequential": RolloutConfig(kind="sequential"),
    "dmt, segments of 8": RolloutConfig(depth=8),
    "dmt, segments of 16": RolloutConfig(depth=16),
    "dmt, segments of 32": RolloutConfig(depth=32),
    "dmt, jacobi, 4 sweeps": RolloutConfig(kind="jacobi", sweeps=4),
    "dmt, jacobi, 16 sweeps": RolloutConfig(kind="jacobi", sweeps=16),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--cell", default="mlp")
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--updates", type=int, default=5)
    options = parser.parse_args()
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as directory:
        labels = made_up_labels(Path(directory) / "labels.arrow", options.batch, options.length)
        updates = {
            name: update(method, moved(batch, device), device)
            for name, method, batch in methods(labels, options)
        }
        seconds: dict[str, list[float]] = {name: [] for name in updates}
        for name in [*updates, *updates, *updates]:
            seconds[name].append(timed(updates[name], options.updates, device))
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(
        f"T = {options.length}, {options.batch} windows, {options.cell} cell of width "
        f"{options.width}; {kind}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    print("| update | calls of the cell, one after the other | ms | of sequential |")
    print("| --- | --- | --- | --- |")
    reference = statistics.median(seconds["dmt, sequential"])
    for name, times in seconds.items():
        low, middle, high = min(times), statistics.median(times), max(times)
        print(
            f"| {name} | {calls(name, options.length)} | {1e3 * middle:.1f} "
            f"({1e3 * low:.1f} to {1e3 * high:.1f}) | {middle / reference:.2f} |"
        )


def calls(name: str, length: int) -> int:
    """Of the cell, each of which waits for the one before."""
    if name == "smt":
        return 1
    numbers = [int(word) for word in name.split() if word.isdigit()]
    return numbers[0] if numbers else length


def methods(labels: LabelShards, options: argparse.Namespace) -> list[tuple[str, Any, Any]]:
    """Name, method and batch of every update."""
    objective = TransitionObjectiveConfig()
    settings = {"batch_size": options.batch, "seed": 0}
    transitions = TransitionSource(labels, objective, positions=options.length, **settings)
    found: list[tuple[str, Any, Any]] = [
        ("smt", SupervisedMemoryTraining(network(options), objective), transitions.batch(0))
    ]
    for name, rollout in ROLLOUTS.items():
        source = RolloutSource(labels, objective, rollout, **settings)
        method = DaggerMemoryTraining(network(options), objective, rollout)
        found.append((name, method, source.batch(0)))
    rows = [labels.row(row) for row in range(options.batch)]
    batch = SequenceBatch(
        *(
            torch.from_numpy(np.stack([row[name] for row in rows])).long()
            for name in ("tokens", "targets")
        ),
        torch.full((options.batch,), options.length),
    )
    found.append(("bptt", BackpropagationThroughTime(network(options), None), batch))
    return found


def network(options: argparse.Namespace) -> RecurrentNetwork:
    torch.manual_seed(0)
    cell = CellConfig(kind=options.cell, width=options.width)
    return RecurrentNetwork(VOCABULARY, SLOTS, SLOT_WIDTH, cell, ReadoutConfig(), DecoderConfig())


def made_up_labels(path: Path, windows: int, length: int) -> LabelShards:
    random = np.random.default_rng(0)
    shape = LabelShape(length, SLOTS, SLOT_WIDTH, VOCABULARY, "float16")
    content = Windows(
        random.integers(0, VOCABULARY, (windows, length)),
        random.integers(0, VOCABULARY, (windows, length + 1)),
        np.full(windows, length),
    )
    memory = random.standard_normal((windows, length + 1, SLOTS, SLOT_WIDTH), dtype=np.float32)
    write_labels(path, shape, content, memory, np.arange(windows))
    return LabelShards([path])


def update(method: Any, batch: Any, device: torch.device) -> Callable[[], None]:
    trained = method.network.to(device).train()
    method.state.to(device)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3, fused=True)
    counts, weights = method.counts(batch), method.weights(0)

    def run() -> None:
        sums = method.losses(batch)
        loss = sum(weights[name] * total / max(counts[name], 1) for name, total in sums.items())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def timed(run: Callable[[], None], updates: int, device: torch.device) -> float:
    """Seconds an update, after one that does not count."""
    run()
    wait(device)
    began = time.perf_counter()
    for _ in range(updates):
        run()
    wait(device)
    return (time.perf_counter() - began) / updates


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
