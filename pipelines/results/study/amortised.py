"""One teacher for several RNNs, against BPTT of the same cells: accounts and their table."""

import statistics
from collections.abc import Iterator
from typing import NamedTuple

from study.matrix import Table
from study.measures import RNN, at_full_length, bits, charged, last_test, shown, table
from study.runs import Run, final_runs
from study.specification import STUDENT, budget_of
from study.store import Store, total


class Account(NamedTuple):
    """CPU-seconds and test result of one cell by both methods, in one seed.

    Results are accuracies on rows of length T, or bits per target; 0 and infinite after divergence.
    """

    rival: str
    smt_seconds: float
    smt: float
    bptt_seconds: float
    bptt: float


def shared_seconds(result: Table) -> float:
    """CPU-seconds of the teacher and its labels, which all RNNs of an amortised run share."""
    return float(sum(one["seconds"] for one in result["stages"] if "/" not in one["stage"]))


def own_seconds(result: Table, rival: str) -> float:
    """CPU-seconds of one RNN of an amortised run, without those of the teacher and its labels."""
    stages = (one for one in result["stages"] if one["stage"].startswith(f"{rival}/"))
    return float(sum(one["seconds"] for one in stages))


def accounts(store: Store, run: Run) -> list[Account]:
    """One account per rival; empty unless the run and those of all rivals have results."""
    result = store.result(run)
    rivals = store.matrix.arms[run.arm].rivals
    others = [Run(run.task, rival, run.seed, None, run.multiple) for rival in rivals]
    against = [(other, found) for other in others if (found := store.result(other))]
    if result is None or len(against) < len(others):
        return []
    score = _accuracy if store.matrix.tasks[run.task].goal is not None else _bits
    return [
        Account(
            other.arm,
            own_seconds(result, other.arm),
            score(_own_test(result, other.arm)),
            charged(store, other, found),
            score(last_test(found)),
        )
        for other, found in against
    ]


def amortised_tables(store: Store, task: str) -> Iterator[str]:
    """For each arm and budget with results: cells, costs and results, medians over the seeds."""
    declared = store.matrix.tasks[task]
    for arm, multiples in declared.amortised.items():
        for multiple in sorted(multiples):
            runs = [
                run
                for run in final_runs(store.matrix)
                if (run.task, run.arm, run.multiple) == (task, arm, multiple)
            ]
            by_seed = {run: found for run in runs if (found := accounts(store, run))}
            if by_seed:
                yield _table(store, by_seed)


def _table(store: Store, by_seed: dict[Run, list[Account]]) -> str:
    run = next(iter(by_seed))
    arm, accurate = store.matrix.arms[run.arm], store.matrix.tasks[run.task].goal is not None
    rows, ahead = [], 0
    for same_cell in zip(*by_seed.values(), strict=True):
        middle = [statistics.median(values) for values in list(zip(*same_cell, strict=True))[1:]]
        smt_seconds, smt, bptt_seconds, bptt = middle
        ahead += smt > bptt if accurate else smt < bptt
        rows.append(
            [
                store.matrix.arms[same_cell[0].rival].title.removeprefix("BPTT, "),
                f"{smt_seconds:.0f}",
                shown(smt, accurate=accurate),
                f"{bptt_seconds:.0f}",
                shown(bptt, accurate=accurate),
            ]
        )
    results = [found for one in by_seed if (found := store.result(one))]
    teacher = statistics.median(shared_seconds(result) for result in results)
    whole = statistics.median(total(result, "seconds") for result in results)
    against = statistics.median(
        sum(one.bptt_seconds for one in accounts) for accounts in by_seed.values()
    )
    rows.append(["teacher and labels", f"{teacher:.0f}", "", "", ""])
    rows.append(["together", f"{whole:.0f}", "", f"{against:.0f}", ""])
    metric = "accuracy on rows of length T" if accurate else "bits per target"
    header = ["RNN", "SMT: CPU-seconds", f"SMT: {metric}", "BPTT: CPU-seconds", f"BPTT: {metric}"]
    return (
        f"{arm.title}: budget {budget_of(store.matrix, run):g} CPU-seconds for all RNNs together, "
        f"test, median of {len(by_seed)} seeds. SMT is ahead with {ahead} of {len(rows) - 2} cells."
        f"\n\n{table(header, rows)}"
    )


def _own_test(result: Table, rival: str) -> Table | None:
    """The last test of one RNN of an amortised run; None if it diverged."""
    failed = any(one["stage"] == f"{rival}/failed" for one in result["stages"])
    tested = [name for stage in STUDENT if (name := f"{rival}/{stage}") in result["tests"]]
    return result["tests"][tested[-1]]["test"] if tested and not failed else None


def _accuracy(test: Table | None) -> float:
    return at_full_length(test, RNN)


def _bits(test: Table | None) -> float:
    return bits(test, RNN)
