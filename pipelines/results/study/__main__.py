"""Runs a matrix, several runs in parallel, each in its own process; or one of its runs.

python -m study run core.toml        all missing runs, then the report
python -m study run crossing.toml --only 'text/*' --seeds 0 --budgets 1 3
python -m study list crossing.toml   all runs with their CPU-seconds, and which have results
python -m study report core.toml     the report of the existing results
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from study.matrix import load
from study.runs import Run, Selection, runs
from study.specification import budget_of
from study.store import Store

HERE = Path(__file__).parent.parent


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    matrix = load(options.matrix, options.scale or 1.0)
    folder = "artifacts/raw" if options.scale else "raw"
    store = Store(matrix, HERE / folder / options.matrix.stem)
    if options.command == "one":
        _one(store, options.name, options.keep)
        return
    selection = None
    if options.only or options.seeds or options.budgets:
        selection = Selection(options.only, options.seeds, options.budgets)
    chosen = runs(matrix, selection)
    if not chosen:
        sys.exit("no final run matches --only, --seeds and --budgets; `list` shows their names")
    if options.command == "list":
        _list(store, chosen)
        return
    if options.command == "run":
        _run(store, chosen, options)
    if not options.scale:
        from study import report

        report.write(store, HERE.parent.parent, options.matrix.stem)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["run", "list", "one", "report"])
    parser.add_argument("matrix", type=Path)
    parser.add_argument("name", nargs="?", help="name of the run, for `one`")
    parser.add_argument("--workers", type=int, default=2, help="number of parallel runs")
    parser.add_argument("--keep", action="store_true", help="keep every run's artifacts")
    parser.add_argument("--scale", type=float, help="factor of every budget, for a smoke test")
    part = parser.add_argument_group("a part of the final runs, with the trials that they need")
    part.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="GLOB",
        help="names of runs, TASK/ARM/seed-N or TASK/ARM/budget-N/seed-N; `*` also matches `/`",
    )
    part.add_argument("--seeds", nargs="+", type=int, default=[])
    part.add_argument(
        "--budgets", nargs="+", type=float, default=[], help="multiples of the tasks' budgets"
    )
    return parser


def _list(store: Store, chosen: list[Run]) -> None:
    """Prints all chosen runs, and the CPU-seconds of those without a result."""
    missing = 0.0
    for run in chosen:
        budget = budget_of(store.matrix, run)
        there = store.result(run) is not None
        missing += 0 if there else budget
        print(f"{'there' if there else 'missing':8}{budget:9.0f} s  {run.name}")
    print(f"{len(chosen)} runs; missing: {missing:.0f} CPU-seconds ({missing / 3600:.1f} hours)")


def _artifacts(store: Store) -> Path:
    """Folder of artifacts; smoke tests have their own."""
    smoke = store.folder.is_relative_to(HERE / "artifacts")
    return HERE / "artifacts" / ("smoke" if smoke else "runs") / store.folder.name


def _one(store: Store, name: str, keep: bool) -> None:
    from study.work import Work

    run = next((run for run in runs(store.matrix) if run.name == name), None)
    if run is None:
        sys.exit(f"{name}: not a run of this matrix; `list` shows the names of its runs")
    directory = _artifacts(store) / run.name
    task = _artifacts(store) / run.task
    work = Work(
        store.specification(run),
        task / "tokens",
        task / "longer" if _has_longer_tokens(store, run.task) else None,
        directory,
    )
    store.write(run, work.run())
    if not keep:
        shutil.rmtree(directory, ignore_errors=True)


def _has_longer_tokens(store: Store, task: str) -> bool:
    longer = store.matrix.tasks[task].longer
    return longer is not None and longer.tokens is not None


def _make_tokens(store: Store, task: str) -> bool:
    """Makes the tokens of a task; returns whether it succeeded."""
    from study.sources import make_tokens

    declared = store.matrix.tasks[task]
    directory = _artifacts(store) / task
    directory.mkdir(parents=True, exist_ok=True)
    try:
        make_tokens(declared.tokens, directory / "tokens")
        if declared.longer and declared.longer.tokens:
            make_tokens(declared.longer.tokens, directory / "longer")
    except ValueError as error:
        print(f"{task}: left out: {error}", flush=True)
        return False
    return True


def _run(store: Store, chosen: list[Run], options: argparse.Namespace) -> None:
    missing = [run for run in chosen if store.result(run) is None]
    tasks = dict.fromkeys(run.task for run in missing)
    available = {task for task in tasks if _make_tokens(store, task)}
    missing = [run for run in missing if run.task in available]
    count, started = len(missing), time.monotonic()
    running: dict[subprocess.Popen[bytes], Run] = {}
    failed: list[str] = []
    while missing or running:
        for process in [p for p in running if p.poll() is not None]:
            run = running.pop(process)
            minutes = (time.monotonic() - started) / 60
            left = len(missing) + len(running)
            print(f"{minutes:6.1f} min  {count - left}/{count}  {run.name}", flush=True)
            if process.returncode:
                failed.append(run.name)
        if len(running) == options.workers:
            time.sleep(0.2)
            continue
        ready = next((run for run in missing if store.ready(run)), None)
        if ready is None and missing and not running:
            break  # their trials failed
        if ready is None:
            time.sleep(1)
            continue
        missing.remove(ready)
        if store.result(ready) is None:  # another command may have run it meanwhile
            running[_start(options, ready)] = ready
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; run again to retry")


def _start(options: argparse.Namespace, run: Run) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "study", "one", str(options.matrix), run.name]
    command += ["--keep"] if options.keep else []
    command += ["--scale", str(options.scale)] if options.scale else []
    # One thread each: budgets are CPU time of one thread.
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    main()
