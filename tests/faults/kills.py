"""SIGKILL at any write, or any moment, of every command that makes an artifact; then `--resume`."""

import os
import random
import signal
from collections.abc import Callable

from faults.outcomes import Outcome, Verdict, judge, verdict
from faults.processes import Ended
from faults.world import STAGES, Command, Result, World, needed
from faults.writes import at_write

_usual: dict[str, tuple[Ended, Result, int]] = {}
"""Per stage: how it ends, what it makes, and the number of its writes."""


def case(world: World, draw: random.Random) -> Verdict:
    stage = draw.choice(list(STAGES))
    usual, expected, writes = _undisturbed(world, stage)
    older = draw.random() < 0.3
    if draw.random() < 0.6:
        number = draw.randrange(writes)
        at, options = f"write {number} of {writes}", {"before": lambda: at_write(_die_at(number))}
    else:
        seconds = draw.uniform(0, usual.seconds)
        at, options = f"{seconds:.3f} of {usual.seconds:.3f} s", {"killed_after": seconds}
    command = _command(world, stage, older=older)
    world.guard()
    world.run(command, **options)
    findings = []
    if older:  # one of the two, whole
        seen = world.run(("inspect", "out", "--verify"))
        findings.append(judge(seen, same=seen.code == 0, strict=True))
    ended = world.run((*command, "--resume"), patience=60)
    same = ended.code == 0 and world.result(ended) == expected
    findings.append(judge(ended, same, strict=True))
    if not world.is_untouched():
        findings.append((Outcome.OUTSIDE, ended.stderr))
    over = " over an older artifact" if older else ""
    return verdict(f"{stage}{over}, killed at {at}", findings)


def _command(world: World, stage: str, *, older: bool) -> Command:
    """The command that makes the artifact of a stage, with what it needs."""
    world.fresh(*needed(stage, STAGES[stage]))
    command = (*STAGES[stage], "--out", "out")
    if not older:
        return command
    ended = world.run((*command, *_variation(stage)), patience=60)
    assert ended.code == 0, ended.stderr
    return (*command, "--overwrite")


def _variation(stage: str) -> Command:
    """A setting that gives another result."""
    return ("--set", "seed=7") if stage != "evaluation" else ("--set", "windows=4")


def _undisturbed(world: World, stage: str) -> tuple[Ended, Result, int]:
    if stage not in _usual:
        read, write = os.pipe()
        command = _command(world, stage, older=False)

        def count() -> None:
            at_write(lambda event, path: os.write(write, b".") and None)

        ended = world.run(command, before=count, patience=60)
        assert ended.code == 0, ended.stderr
        os.close(write)
        writes = len(os.read(read, 2**16))
        os.close(read)
        _usual[stage] = (ended, world.result(ended), writes)
    return _usual[stage]


def _die_at(number: int) -> Callable[[str, str], None]:
    left = [number]

    def act(event: str, path: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return act
