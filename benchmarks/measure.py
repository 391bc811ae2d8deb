"""What the benchmarks share: options, turns, medians and ranges, and which machine it was.

torch is imported where it is needed: Linux counts what the parent of a process holds in memory to
that process's peak, which tokenization.py reads.
"""

import argparse
import os
import platform
import statistics
import sysconfig
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")


def parser(doc: str) -> argparse.ArgumentParser:
    """The options that all have; `doc` is the script's own, whose first line says what it does."""
    found = argparse.ArgumentParser(description=doc.splitlines()[0])
    found.add_argument("--repetitions", type=int, default=3)
    found.add_argument("--threads", type=int, default=1)
    found.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    return found


def take_turns(
    contenders: Mapping[str, Callable[[], Result]], repetitions: int
) -> dict[str, list[Result]]:
    """Results of each; all once, then all again, so that what disturbs the machine disturbs all."""
    found: dict[str, list[Result]] = {name: [] for name in contenders}
    for _ in range(repetitions):
        for name, contender in contenders.items():
            found[name].append(contender())
    return found


def seconds(work: Callable[[], object], device: "torch.device", times: int = 1) -> float:
    """For one of `times` in a row; of one thread on a CPU, its time there, whatever else runs."""
    import torch

    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    _wait(device)
    began = clock()
    for _ in range(times):
        work()
    _wait(device)
    return (clock() - began) / times


def spread(values: Iterable[float], digits: int = 1) -> str:
    """Median and range."""
    numbers = list(values)
    low, middle, high = min(numbers), statistics.median(numbers), max(numbers)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """Of medians."""
    return statistics.median(values) / statistics.median(base)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table in Markdown."""
    for row in (columns, ["---"] * len(columns), *rows):
        print(f"| {' | '.join(map(str, row))} |")
    print(flush=True)


def machine(device: str = "cpu", threads: int | None = None, others: Sequence[str] = ()) -> str:
    """What it ran on, and the versions of what ran; `others`: packages beside smtkit and torch."""
    where = _processor()
    if device == "cuda":
        import torch

        where += f", {torch.cuda.get_device_name()}"
    if threads:
        where += f", threads: {threads}"
    names = ("smtkit", "torch", *others)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    return f"{where}; {versions}, Python {platform.python_version()}"


def library_tokens(out: Path) -> Path:
    """A `tokens` artifact of Python's standard library, without its packages, by bytes."""
    from smtkit.config import TokenizeConfig
    from smtkit.stages import tokenize

    sources = str(Path(sysconfig.get_path("stdlib"), "*.py"))
    tokenize.run(TokenizeConfig(inputs=[sources]), out)
    return out


def _wait(device: "torch.device") -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def _processor() -> str:
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.processor() or platform.machine()
    return f"{name} ({platform.machine()}), cores: {os.cpu_count()}"
