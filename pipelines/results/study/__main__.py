"""Runs a matrix, several runs in parallel, each in its own process; or one of its runs.

python -m study run core.toml        all missing runs, then the report
python -m study report core.toml     the report of the existing results
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from study.matrix import Matrix, Run, final_runs, load, trial_runs
from study.store import Store

HERE = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="study", description=__doc__)
    parser.add_argument("command", choices=["run", "one", "report"])
    parser.add_argument("matrix", type=Path)
    parser.add_argument("name", nargs="?", help="name of the run, for `one`")
    parser.add_argument("--workers", type=int, default=2, help="number of parallel runs")
    parser.add_argument("--keep", action="store_true", help="keep every run's artifacts")
    parser.add_argument("--scale", type=float, help="factor of every budget, for a smoke test")
    options = parser.parse_args()
    matrix = load(options.matrix, options.scale or 1.0)
    folder = "artifacts/raw" if options.scale else "raw"
    store = Store(matrix, HERE / folder / options.matrix.stem)
    if options.command == "one":
        _one(store, options.name, options.keep)
        return
    if options.command == "run":
        _all(store, options)
    if not options.scale:
        from study import report

        report.write(store, HERE.parent.parent, options.matrix.stem)


def _runs(matrix: Matrix) -> list[Run]:
    return [*trial_runs(matrix), *final_runs(matrix)]


def _artifacts(store: Store) -> Path:
    """Folder of artifacts; smoke tests have their own."""
    smoke = store.folder.is_relative_to(HERE / "artifacts")
    return HERE / "artifacts" / ("smoke" if smoke else "runs") / store.folder.name


def _one(store: Store, name: str, keep: bool) -> None:
    from study.work import Work

    run = next((run for run in _runs(store.matrix) if run.name == name), None)
    if run is None:
        sys.exit(f"{name}: not a run of this matrix; names are TASK/ARM/seed-0 or TASK/ARM/trial-0")
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
    from study.work import make_tokens

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


def _all(store: Store, options: argparse.Namespace) -> None:
    missing = [run for run in _runs(store.matrix) if store.result(run) is None]
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
