"""Reading speed of label windows: smtkit, other data loaders, and a plain copy as the limit.

A sample is a whole window, T + 1 memories of Z float16 numbers; a batch is contiguous memory. The
limit copies windows from numpy memory maps into a reused buffer, unchecked. smtkit reads the
batches of `train-rnn`: shuffled, with tokens and targets, every checksum verified. All contenders
take turns; printed are medians and ranges of gigabytes per second of wall time and per core-second.

    python benchmarks/labels.py [--others other/bin/python] [--mebibytes 1024] [--widths 4096]

`--others` is the Python of an environment with mosaicml-streaming, litdata and datasets.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from label_rivals import RIVALS, SHARD_BYTES, timed
from measure import machine, ratio, spread, table, take_turns

from smtkit.config import TransitionObjectiveConfig
from smtkit.corpus.windows import Windows
from smtkit.labels.format import LabelShape
from smtkit.labels.reader import LabelShards
from smtkit.labels.writer import write_labels
from smtkit.methods.smt import TransitionSampler
from smtkit.training.prefetch import Prefetch

WINDOWS = {4096: (64, 16), 256: (256, 4)}  # width: T, slots
BATCHES = (4, 16, 64)
THREADS = (1, 2)


class Reader:
    """A reader of label shards in this process; each run maps the shards again."""

    def __init__(self, directory: Path, reader: Callable[..., Iterator[Any]]) -> None:
        self._paths = sorted(directory.glob("*.arrow"))
        self._reader = reader

    def read(self, threads: int, batch: int, order: str) -> dict[str, float]:
        return timed(self._reader(self._paths, threads, batch, order == "shuffled"))

    def end(self) -> None:
        pass


class Rival:
    """Another library in a process of its own. Raises RuntimeError if the process ends early."""

    def __init__(self, python: Path, name: str, directory: Path) -> None:
        # LitData deletes the folder `data` in the temporary folder, so each rival has its own.
        temporary = directory / f"temporary-{name}"
        temporary.mkdir()
        self._process = subprocess.Popen(
            [python, Path(__file__).with_name("label_rivals.py"), name, directory],
            env={**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(directory / f"{name}.log").open("w"),
            text=True,
        )
        self._log = directory / f"{name}.log"
        self._line("written")

    def read(self, threads: int, batch: int, order: str) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{threads if threads > 1 else 0} {batch} {order}\n")
        self._process.stdin.flush()
        return json.loads(self._line("{"))

    def end(self) -> None:
        self._process.communicate()

    def _line(self, beginning: str) -> str:
        """The next line with this beginning; libraries print lines of their own."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(beginning):
                return line
        raise RuntimeError((self._log.read_text().strip().splitlines() or ["no message"])[-1])


Contender = Reader | Rival


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mebibytes", type=int, default=1024)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--widths", type=int, nargs="+", default=list(WINDOWS), choices=WINDOWS)
    parser.add_argument("--others", type=Path)
    parser.add_argument("--rivals", nargs="*", default=list(RIVALS), choices=RIVALS)
    parser.add_argument("--orders", nargs="+", default=["shuffled", "sequential"])
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(machine())
    for width in options.widths:
        with tempfile.TemporaryDirectory() as directory:
            compare(Path(directory), width, options)


def compare(directory: Path, width: int, options: argparse.Namespace) -> None:
    make_labels(directory, width, options.mebibytes * 2**20)
    contenders: dict[str, Contender] = {"limit": Reader(directory, copies)}
    contenders["smtkit"] = Reader(directory, batches)
    for name in options.rivals if options.others else []:
        try:
            contenders[name] = Rival(options.others, name, directory)
        except RuntimeError as error:
            print(f"{name}: {error}", file=sys.stderr)
    for order in options.orders:
        for threads in THREADS:
            report(width, order, threads, measured(contenders, order, threads, options.repetitions))
    for contender in contenders.values():
        contender.end()


def measured(
    contenders: dict[str, Contender], order: str, threads: int, repetitions: int
) -> dict[str, list[dict[str, float]]]:
    """Measurements of every contender, each at the batch size that was best for it."""
    best = {}
    for name, contender in contenders.items():
        tried = {batch: contender.read(threads, batch, order) for batch in BATCHES}
        best[name] = max(BATCHES, key=lambda batch: tried[batch]["bytes"] / tried[batch]["seconds"])
    turns = {
        name: partial(each.read, threads, best[name], order) for name, each in contenders.items()
    }
    return {
        name: [{**run, "batch": best[name]} for run in runs]
        for name, runs in take_turns(turns, repetitions).items()
    }


def report(width: int, order: str, threads: int, found: dict[str, list[dict[str, float]]]) -> None:
    print(f"\nZ = {width}, {order}, threads: {threads}\n")
    speeds = {
        name: [[run["bytes"] / run[clock] / 1e9 for run in runs] for clock in ("seconds", "cpu")]
        for name, runs in found.items()
    }
    rows = []
    for name, runs in found.items():
        row = [name, f"{runs[0]['batch']}"]
        for own, limit in zip(speeds[name], speeds["limit"], strict=True):
            row += [spread(own, 2), f"{ratio(own, limit):.2f}"]
        rows.append(row)
    table(["", "batch", "GB/s", "of the limit", "GB per core-second", "of the limit"], rows)


def make_labels(directory: Path, width: int, size: int) -> None:
    """Writes label shards, and the same windows as one array."""
    window, slots = WINDOWS[width]
    random = np.random.default_rng(0)
    shape = LabelShape(window, slots, width // slots, 256, "float16")
    rows = SHARD_BYTES // shape.row_bytes
    shards = -(-size // (rows * shape.row_bytes))
    array = np.lib.format.open_memmap(
        directory / "windows.npy", "w+", np.float16, (shards * rows, window + 1, width)
    )
    for shard in range(shards):
        content = Windows(
            random.integers(0, 256, (rows, window)),
            random.integers(0, 256, (rows, window + 1)),
            np.full(rows, window),
        )
        memory = random.standard_normal((rows, window + 1, width), dtype=np.float32)
        array[shard * rows : (shard + 1) * rows] = memory
        path = directory / f"train-{shard:05d}.arrow"
        write_labels(
            path,
            shape,
            content,
            memory.reshape(rows, window + 1, slots, -1),
            np.arange(rows) + shard * rows,
        )
    array.flush()


def batches(paths: list[Path], threads: int, size: int, shuffled: bool) -> Iterator[torch.Tensor]:
    """The batches of `train-rnn` with all positions of a window; their order is always shuffled."""
    labels = LabelShards(paths)
    source = TransitionSampler(
        labels,
        TransitionObjectiveConfig(),
        batch_size=size,
        seed=0,
        positions=labels.shape.window,
    )
    with Prefetch(source, threads if threads > 1 else 0) as ahead:
        for step in range(len(labels) // size):
            yield ahead.batch(step).memory.columns["memory"]


def copies(paths: list[Path], threads: int, size: int, shuffled: bool) -> Iterator[np.ndarray]:
    """Each thread copies its share of the windows into its own buffer, which it reuses."""
    batches = [pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0) for path in paths]
    maps = [batch["memory"].flatten().to_numpy().view(np.uint16) for batch in batches]
    rows = [batch.num_rows for batch in batches]
    windows = [part for m, count in zip(maps, rows, strict=True) for part in m.reshape(count, -1)]
    order = np.random.default_rng(0).permutation(len(windows)) if shuffled else range(len(windows))
    whole = len(order) // size * size

    def copy(numbers: list[int]) -> None:
        buffer = np.empty((size, len(windows[0])), dtype=np.uint16)
        for index, number in enumerate(numbers):
            np.copyto(buffer[index % size], windows[number])

    shares = [[int(n) for n in order[k:whole:threads]] for k in range(threads)]
    running = [threading.Thread(target=copy, args=(share,)) for share in shares]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    yield np.broadcast_to(windows[0], (whole, len(windows[0])))


if __name__ == "__main__":
    main()
