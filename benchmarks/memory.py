"""Memory of one update of the RNN, by every method, over the length of the windows.

Each update is made in a process of its own, twice: the first time allocates the buffers of the
libraries and the state of the optimizer. Measured is the peak of resident memory in the second
update above what is resident before it (weights, optimizer and batch). The number of windows is the
same at every length; methods, networks and labels are those of training.py. Linux only.

    python benchmarks/memory.py [--cells mlp] [--lengths 128 1024 4096] [--width 128]
"""

import argparse
import ctypes
import gc
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from measure import machine, parser, ratio, table, take_turns

CELLS = ("mlp", "gru", "transformer")
UPDATES = (
    "smt, sampled positions",
    "smt",
    "dmt, segments of 16",
    "dmt, segments of 16 with gradients",
    "bptt",
)
# Freed memory returns to the system at once, so that what is resident is what is in use.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    if options.one:
        cell, length, name = options.one
        print(_mebibytes(cell, int(length), name, options))
        return
    print(
        f"{options.windows} windows per update, {options.positions} sampled positions, width and "
        f"memory {options.width}; {machine(threads=options.threads)}\n"
    )
    for cell in options.cells:
        print(f"Cell: {cell}\n")
        columns = ["T", "update", "MiB", "KiB per token", "of bptt"]
        table(columns, [row for length in options.lengths for row in _rows(cell, length, options)])


def _parser() -> argparse.ArgumentParser:
    found = parser(__doc__)
    found.set_defaults(repetitions=1)  # two agreed within 3%
    found.add_argument("--cells", nargs="+", default=list(CELLS))
    found.add_argument("--lengths", type=int, nargs="+", default=[128, 1024, 4096])
    found.add_argument("--width", type=int, default=128)
    found.add_argument("--windows", type=int, default=8)
    found.add_argument("--positions", type=int, default=32, help="sampled in each window by smt")
    found.add_argument(
        "--one", nargs=3, metavar=("CELL", "T", "UPDATE"), help="measure one in this process"
    )
    return found


def _rows(cell: str, length: int, options: argparse.Namespace) -> list[tuple[object, ...]]:
    """Rows of the table for one length."""
    turns = {name: partial(measured, cell, length, name, options) for name in UPDATES}
    tokens = options.windows * length
    found = take_turns(turns, options.repetitions)
    return [
        (
            length,
            name,
            f"{statistics.median(peaks):,.1f}",
            f"{1024 * statistics.median(peaks) / tokens:.1f}",
            f"{ratio(peaks, found['bptt']):.3f}",
        )
        for name, peaks in found.items()
    ]


def measured(cell: str, length: int, name: str, options: argparse.Namespace) -> float:
    """MiB of one update, measured in a process of its own."""
    command = [sys.executable, __file__, "--one", cell, str(length), name]
    for option in ("width", "windows", "positions", "threads"):
        command += [f"--{option}", str(getattr(options, option))]
    environment = {**os.environ, **ALLOCATOR}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def _mebibytes(cell: str, length: int, name: str, options: argparse.Namespace) -> float:
    """MiB of one update in this process."""
    import torch

    import training

    torch.set_num_threads(options.threads)
    positions = options.positions if name == "smt, sampled positions" else length
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "labels.arrow"
        labels = training.made_up_labels(path, options.windows, length, options.width)
        made = training.updates(
            labels, cell, options.width, torch.device("cpu"), min(positions, length)
        )
        wanted = name.removesuffix(", sampled positions")
        update = next(each for called, each in made if called == wanted)
        made.close()
    update.run()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    update.run()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    """A size of this process, in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
