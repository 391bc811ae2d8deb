"""What a case ended in, and the table of all of them."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from faults.processes import MEMORY, SECONDS, Ended
from faults.world import Command, Result, World, out_of
from smtkit.storage.manifest import METRICS


class Outcome(StrEnum):
    """From harmless to harmful; a case counts as the worst of its commands."""

    HARMLESS = "harmless"  # the result of the undamaged files
    VALID = "valid"  # a forged file that is valid: a result, of its own
    DETECTED = "detected"  # an error in one line, with the exit code that is documented
    USED = "used"  # another result, with exit code 0
    CRASHED = "crashed"  # a traceback, a signal, another exit code, or no line
    HUNG = "hung"
    LARGE = "too large"  # more than 1 GiB of memory
    OUTSIDE = "outside"  # files outside the artifact were touched


BAD = (Outcome.USED, Outcome.CRASHED, Outcome.HUNG, Outcome.LARGE, Outcome.OUTSIDE)
ERRORS = (2, 3, 4, 5, 74)
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Verdict:
    outcome: Outcome
    what: str
    """The case in words."""
    shown: str = ""
    """What the command printed, for outcomes that are bad."""


def verdict(what: str, findings: Iterable[tuple[Outcome, str]]) -> Verdict:
    """The worst of the outcomes of the commands of a case."""
    order = list(Outcome)
    worst = max(findings, key=lambda each: order.index(each[0]), default=(Outcome.HARMLESS, ""))
    return Verdict(worst[0], what, worst[1] if worst[0] in BAD else "")


def judge(
    ended: Ended, same: bool, *, forged: bool = False, strict: bool = False
) -> tuple[Outcome, str]:
    """The outcome of one command.

    same: whether its result is that of undamaged files. forged: a result of its own is allowed.
    strict: an error is not, as nothing is damaged.
    """
    shown = f"exit {ended.code}, {ended.seconds:.1f} s, {ended.peak / 2**20:.0f} MiB\n"
    shown += ended.stderr[-1500:]
    if ended.hung:
        return Outcome.HUNG, shown
    if ended.peak > MEMORY:
        return Outcome.LARGE, shown
    if ended.code == 0:
        different = Outcome.VALID if forged else Outcome.USED
        fine = "Traceback" not in ended.stderr
        return (Outcome.HARMLESS if same else different) if fine else Outcome.CRASHED, shown
    refused = is_error_line(ended, ERRORS) and not strict
    return Outcome.DETECTED if refused else Outcome.CRASHED, shown


def is_error_line(ended: Ended, codes: Iterable[int]) -> bool:
    """Whether the command ended with an error in one line, and without control characters."""
    lines = ended.stderr.rstrip("\n").split("\n")
    errors = [line for line in lines if line.startswith("smtkit: ")]
    plain = "Traceback" not in ended.stderr and not _OBEYED.search(ended.stderr)
    return ended.code in codes and errors == lines[-1:] and plain and len(errors[0]) < 5000


def judge_use(world: World, kind: str, use: Command, what: str, *, forged: bool = False) -> Verdict:
    """Runs a use of the artifact that lies in the world's directory, and judges it."""
    usual, expected = world.expected[kind, use]
    world.guard()
    ended = world.run_use(kind, use, patience=usual.seconds + SECONDS)
    found = world.result(ended, out_of(kind, use))
    same = ended.code == 0 and _told(found, ended) == _told(expected, ended)
    findings = [judge(ended, same, forged=forged)]
    if use[0] == "status" and b" damaged " in ended.stdout:
        findings = [(Outcome.DETECTED, "")]
    if not world.is_untouched():
        findings.append((Outcome.OUTSIDE, ended.stderr))
    return verdict(f"{what}; {' '.join(world.named(kind, use))}", findings)


def _told(result: Result, ended: Ended) -> Result:
    """A result without metrics, if a warning says that lines of them are lost."""
    lost = "metrics.jsonl: damaged: " in ended.stderr
    return {name: each for name, each in result.items() if not (lost and name == METRICS)}


@dataclass
class Tally:
    """Cases of one kind."""

    kind: str
    seed: int
    counts: Counter[Outcome] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def bad(self) -> int:
        return sum(self.counts[outcome] for outcome in BAD)


def table(tallies: Iterable[Tally]) -> str:
    """The counts per kind, as a table of Markdown."""
    heads = ["kind", "cases", *map(str, Outcome), "minutes"]
    rows = [
        [
            tally.kind,
            f"{tally.counts.total():,}",
            *(f"{tally.counts[outcome]:,}" for outcome in Outcome),
            f"{tally.seconds / 60:.1f}",
        ]
        for tally in tallies
    ]
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
