"""Time per update of the RNN for every method, and its share of the machine's peak.

All methods read the same windows of random labels, with the same number of tokens per update at
every length. An update is forward, backward, clipping and AdamW, in float32, without reading. The
memory has four slots, with as many numbers as the cell is wide. "bptt, fused" is torch's kernel
over all steps (`nn.GRU`, `nn.LSTM`); slots are not normalised for it.

The peak is the speed of a large float32 matrix product, measured in turn with the rest. Operations
are counted as torch dispatches them: matrix products, on a CPU without those of attention. A fused
kernel hides its operations: those of the same cell step by step are used.

    python benchmarks/training.py [--cells mlp] [--lengths 64 256 1024] [--widths 128]
    python benchmarks/training.py --widths 64 256 512 --lengths 256 --methods smt bptt --updates 1
"""

import argparse
import itertools
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import machine, parser, ratio, seconds, spread, table, take_turns
from torch.utils.flop_counter import FlopCounterMode

from smtkit.config import (
    CellConfig,
    MemoryConfig,
    RolloutConfig,
    TrainingConfig,
    TrainRnnConfig,
    TransitionObjectiveConfig,
)
from smtkit.corpus.windows import Windows
from smtkit.labels.format import LabelShape
from smtkit.labels.reader import LabelShards
from smtkit.labels.writer import write_labels
from smtkit.methods.bptt import BackpropagationThroughTime, SequenceSampler
from smtkit.methods.dmt import DaggerMemoryTraining, RolloutSampler
from smtkit.methods.smt import SupervisedMemoryTraining, TransitionSampler
from smtkit.networks.architecture import Architecture
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.training.optimizer import build_optimizer
from smtkit.training.protocols import moved

VOCABULARY, SLOTS = 256, 4
CELLS = ("mlp", "gru", "lstm", "transformer")
FUSED = ("gru", "lstm")
PARTS = (1, 4)
"""Parts of an smt update (`training.accumulation`): smaller parts stay in a CPU's cache."""
ROLLOUTS = {
    "sequential": RolloutConfig(kind="sequential"),
    "segments of 16": RolloutConfig(depth=16),
    "segments of 64": RolloutConfig(depth=64),
    "segments of 16 with gradients": RolloutConfig(depth=16, backprop=16),
    "jacobi, 4 sweeps": RolloutConfig(kind="jacobi", sweeps=4),
}


@dataclass(frozen=True)
class Update:
    """run: makes one update. calls: of the cell, one after the other."""

    run: Callable[[], None]
    calls: str


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(
        f"About {options.tokens} tokens per update, vocabulary {VOCABULARY}; "
        f"{machine(options.device, options.threads)}\n"
    )
    for cell, width in itertools.product(options.cells, options.widths):
        print(f"Cell: {cell}, width and memory {width}\n")
        rows = [row for length in options.lengths for row in measured(cell, width, length, options)]
        columns = ["T", "windows", "update", "calls", "microseconds per token", "of bptt"]
        table([*columns, "GFLOP/s", "share of peak"], rows)


def _parser() -> argparse.ArgumentParser:
    found = parser(__doc__)
    found.add_argument("--cells", nargs="+", default=list(CELLS), choices=CELLS)
    found.add_argument("--widths", type=int, nargs="+", default=[128])
    found.add_argument("--lengths", type=int, nargs="+", default=[64, 256, 1024])
    methods = ["smt", "dmt", "bptt"]
    found.add_argument("--methods", nargs="+", default=methods, choices=methods)
    found.add_argument("--tokens", type=int, default=8192, help="per update")
    found.add_argument("--updates", type=int, default=2, help="per turn")
    found.add_argument(
        "--matrix", type=int, default=2048, help="rows of the matrices that measure the peak"
    )
    return found


def measured(
    cell: str, width: int, length: int, options: argparse.Namespace
) -> Iterator[tuple[object, ...]]:
    """Rows of the table."""
    device, batch = torch.device(options.device), max(1, options.tokens // length)
    with tempfile.TemporaryDirectory() as directory:
        labels = made_up_labels(Path(directory) / "labels.arrow", batch, length, width)
        made = {
            name: each
            for name, each in updates(labels, cell, width, device)
            if name.split(",")[0] in options.methods
        }
    operations = {name: counted(each.run) for name, each in made.items()}  # also warms up
    if "bptt, fused" in operations:
        operations["bptt, fused"] = operations["bptt"]
    turns = {
        name: partial(seconds, each.run, device, options.updates) for name, each in made.items()
    }
    product = matrix_product(options.matrix, device)
    turns["peak"] = partial(seconds, product, device, options.updates)
    found = take_turns(turns, options.repetitions)
    peak = 2 * options.matrix**3 / min(found.pop("peak"))
    for name, times in found.items():
        speed = operations[name] / statistics.median(times)
        of_bptt = f"{ratio(times, found['bptt']):.2f}" if "bptt" in found else ""
        per_token = spread(1e6 * time / (batch * length) for time in times)
        first = (length, batch, name, made[name].calls, per_token, of_bptt)
        yield (*first, f"{speed / 1e9:.1f}", f"{speed / peak:.2f}")


def updates(
    labels: LabelShards,
    cell: str,
    width: int,
    device: torch.device,
    positions: int | None = None,
) -> Iterator[tuple[str, Update]]:
    """Name and update of every method. `positions` of each window for smt; None: all."""
    objective, length = TransitionObjectiveConfig(), labels.shape.window
    settings = {"batch_size": len(labels), "seed": 0}

    def network(normalize: str = "slot") -> RecurrentNetwork:
        torch.manual_seed(0)
        config = CellConfig(kind=cell, width=width, normalize=normalize)
        memory = MemoryConfig(slots=SLOTS, slot_width=width // SLOTS)
        settings = TrainRnnConfig(memory=memory, cell=config, training=TrainingConfig(max_steps=1))
        return RecurrentNetwork(Architecture.of_rnn(settings, VOCABULARY, length))

    def of_labels() -> RecurrentNetwork:
        rnn = network()
        rnn.fix_empty_memory(rnn.empty_memory.detach())
        return rnn

    positions = positions or length
    transitions = TransitionSampler(labels, objective, positions=positions, **settings)
    for parts in PARTS:
        if len(labels) % parts == 0:
            smt = SupervisedMemoryTraining(of_labels(), objective)
            batches = [transitions.batch(0, part, parts) for part in range(parts)]
            name = f"smt, {parts} parts" if parts > 1 else "smt"
            yield name, Update(update(smt, batches, device), "1")
    for name, rollout in ROLLOUTS.items():
        chains = RolloutSampler(labels, objective, rollout=rollout, **settings).batch(0)
        calls = rollout.sweeps if rollout.kind == "jacobi" else chains.tokens.shape[1]
        dmt = DaggerMemoryTraining(of_labels(), objective, rollout)
        yield f"dmt, {name}", Update(update(dmt, [chains], device), str(calls))
    windows = SequenceSampler(labels, **settings).batch(0)
    bptt = BackpropagationThroughTime(network(), None)
    yield "bptt", Update(update(bptt, [windows], device), str(length))
    if cell in FUSED:
        fused = BackpropagationThroughTime(network("none"), None)
        yield "bptt, fused", Update(update(fused, [windows], device), f"1, of {length} steps")


def update(method: Any, parts: Sequence[Any], device: torch.device) -> Callable[[], None]:
    """An update on a batch given in parts, whose gradients are accumulated."""
    trained = method.network.to(device).train()
    method.state.to(device)
    batches = [moved(part, device) for part in parts]
    config = TrainingConfig(max_steps=1)
    optimizer = build_optimizer(trained, config)
    counts = sum((Counter(method.counts(batch)) for batch in batches), Counter())
    weights = method.weights(0)

    def run() -> None:
        for batch in batches:
            sums = method.losses(batch)
            loss = sum(weights[name] * total / max(counts[name], 1) for name, total in sums.items())
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def counted(run: Callable[[], None]) -> int:
    """Floating-point operations of matrix products, as torch dispatches them."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def matrix_product(rows: int, device: torch.device) -> Callable[[], None]:
    one, other, out = torch.randn(3, rows, rows, device=device)
    return lambda: torch.matmul(one, other, out=out)


def made_up_labels(path: Path, windows: int, length: int, width: int) -> LabelShards:
    random = np.random.default_rng(0)
    shape = LabelShape(length, SLOTS, width // SLOTS, VOCABULARY, "float16")
    content = Windows(
        random.integers(0, VOCABULARY, (windows, length)),
        random.integers(0, VOCABULARY, (windows, length + 1)),
        np.full(windows, length),
    )
    memory = random.standard_normal((windows, length + 1, SLOTS, width // SLOTS), dtype=np.float32)
    write_labels(path, shape, content, memory, np.arange(windows))
    return LabelShards([path])


if __name__ == "__main__":
    main()
