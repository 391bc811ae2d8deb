"""Test scores of the RNN and its teacher in raw results, and whether a goal was reached."""

import math

from study.matrix import Table
from study.runs import Run
from study.specification import budget_of
from study.store import Store, total

RNN, TEACHER = "rnn, free-running", "teacher, readout"
METHODS = {
    "smt": "SMT",
    "dmt": "SMT, DMT",
    "finetune": "SMT, DMT, BPTT",
    "bptt": "BPTT",
}


def reached(store: Store, task: str, result: Table) -> bool:
    return not result["failed"] and bool(reached_in(store, task, result))


def reached_in(store: Store, task: str, result: Table) -> str:
    """The first stage whose RNN reached the goal; empty if none did."""
    goal = store.matrix.tasks[task].goal
    assert goal is not None
    for stage in result["stages"]:
        named = stage["stage"] in METHODS
        if named and stage["validation"]["free_running_accuracy"] >= goal:
            return str(stage["stage"])
    return ""


def charged(store: Store, run: Run, result: Table) -> float:
    """CPU-seconds of a run; its whole budget if it diverged."""
    return budget_of(store.matrix, run) if result["failed"] else total(result, "seconds")


def last_test(result: Table) -> Table | None:
    """The test of the last RNN of a run; None if the run diverged."""
    tests = list(result["tests"].values())
    return tests[-1]["test"] if tests and not result["failed"] else None


def at_full_length(test: Table | None, predictor: str) -> float:
    """Accuracy on the longest rows; 0 without a test."""
    if test is None:
        return 0.0
    if not test["by_length"]:
        return float(
            next(one["accuracy"] for one in test["overall"] if one["predictor"] == predictor)
        )
    records = [one for one in test["by_length"] if one["predictor"] == predictor]
    return float(max(records, key=lambda one: one["length"])["accuracy"])


def bits(test: Table | None, predictor: str) -> float:
    """Bits per target at positions 1..T; infinite without a test."""
    if test is None:
        return math.inf
    window = test["window"]
    some = [
        one for one in test["results"] if one["predictor"] == predictor and one["last"] <= window
    ]
    targets = sum(one["targets"] for one in some)
    return float(sum(one["nll"] * one["targets"] for one in some) / targets / math.log(2))


def shown(value: float, *, accurate: bool) -> str:
    """An accuracy, or bits per target, which are infinite after divergence."""
    if accurate:
        return f"{value:.1%}"
    return "diverged" if math.isinf(value) else f"{value:.3f}"


def parameters(results: list[Table | None]) -> str:
    found = [one["stages"][-1].get("parameters") for one in results if one and one["stages"]]
    return f"{found[0]:,}" if found and found[0] else ""


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
