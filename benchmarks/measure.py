"""Shared by the benchmarks: options, timing in turns, medians and ranges, the machine.

torch is imported inside functions: Linux counts the memory of a process's parent at the fork in the
process's peak, which tokenization.py reports.
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
    """A parser with the common options; the first line of `doc` is its description."""
    found = argparse.ArgumentParser(description=doc.splitlines()[0])
    found.add_argument("--repetitions", type=int, default=3)
    found.add_argument("--threads", type=int, default=1)
    found.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    return found


def take_turns(
    contenders: Mapping[str, Callable[[], Result]], repetitions: int
) -> dict[str, list[Result]]:
    """Results of each contender. All run once, then all again, so that they share disturbances."""
    found: dict[str, list[Result]] = {name: [] for name in contenders}
    for _ in range(repetitions):
        for name, contender in contenders.items():
            found[name].append(contender())
    return found


def seconds(work: Callable[[], object], device: "torch.device", times: int = 1) -> float:
    """Mean seconds of `times` calls in a row: CPU time for one CPU thread, else wall time."""
    import torch

    one_thread = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if one_thread else time.perf_counter
    _wait(device)
    started = clock()
    for _ in range(times):
        work()
    _wait(device)
    return (clock() - started) / times


def spread(values: Iterable[float], digits: int = 1) -> str:
    """Median and range, as text."""
    numbers = list(values)
    low, middle, high = min(numbers), statistics.median(numbers), max(numbers)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """Ratio of the medians."""
    return statistics.median(values) / statistics.median(base)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints a table in Markdown."""
    for row in (columns, ["---"] * len(columns), *rows):
        print(f"| {' | '.join(map(str, row))} |")
    print(flush=True)


def machine(device: str = "cpu", threads: int | None = None, others: Sequence[str] = ()) -> str:
    """Processor, threads, and versions of smtkit, torch and the packages `others`."""
    hardware = _processor()
    if device == "cuda":
        import torch

        hardware += f", {torch.cuda.get_device_name()}"
    if threads:
        hardware += f", threads: {threads}"
    names = ("smtkit", "torch", *others)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    return f"{hardware}; {versions}, Python {platform.python_version()}"


def library_tokens(out: Path) -> Path:
    """A `tokens` artifact of the modules of Python's standard library, tokenized as bytes."""
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
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = models[0] if models else platform.processor() or platform.machine()
    return f"{name} ({platform.machine()}), cores: {os.cpu_count()}"
