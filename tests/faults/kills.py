"""SIGKILL at every write, and at any moment, of all commands that make an artifact; then they are
resumed, and must make what an undisturbed run makes, bit for bit, with nothing left over."""

import json
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.outcomes import Outcome, Verdict, judge, verdict
from faults.processes import Ended
from faults.world import EXTRACT, STAGES, Command, Result, World, content_of, needed, snapshot
from faults.writes import at_write

Plan = tuple[Command, ...]
_PARTS = tuple((*EXTRACT, *words) for words in [("--part", "1/2"), ("--part", "2/2")])
PLANS: dict[str, Plan] = {
    **{name: ((*command, "--out", "out"),) for name, command in STAGES.items()},
    **{  # over an artifact of other settings, which is there first
        f"{name} over an older one": ((*STAGES[name], "--out", "out", "--overwrite"),)
        for name in ("tokens", "encoder", "labels", "rnn", "evaluation")
    },
    "parts": tuple((*each, "--out", "out") for each in (*_PARTS, (*EXTRACT, "--finalize"))),
}
"""Commands, one after the other, that make one artifact."""
_VERIFY = ("inspect", "out", "--verify")
_AGAIN = 0.2
"""Share of the cases that are killed again while they resume."""


@dataclass
class _Usual:
    """What an undisturbed run of a plan makes, the seconds of its commands, and its writes: the
    command and the number of each, in random order."""

    result: Result
    seconds: list[float]
    writes: list[tuple[int, int]]


_usual: dict[str, _Usual] = {}


def case(world: World, draw: random.Random, number: int) -> Verdict:
    """Plans take turns; when all writes of one have had theirs, moments are drawn."""
    name, turn = list(PLANS)[number % len(PLANS)], number // len(PLANS)
    if name not in _usual:
        _usual[name] = _measure(world, name)
    usual = _usual[name]
    if turn < len(usual.writes):
        step, write = usual.writes[turn]
        return _killed(world, draw, name, step, f"write {write}", before=_die_at(write))
    step = draw.randrange(len(PLANS[name]))
    seconds = draw.uniform(0, usual.seconds[step])
    return _killed(world, draw, name, step, f"{seconds:.3f} s", killed_after=seconds)


def _killed(
    world: World, draw: random.Random, name: str, step: int, at: str, **options: Any
) -> Verdict:
    """The plan, of which one command is killed as `options` of `run` say, and then resumed."""
    plan, expected = PLANS[name], _usual[name].result
    what = f"{name}, command {step + 1} of {len(plan)}, killed at {at}"
    _start(world, name)
    out = world.inside / "out"
    old = _manifest(out)["digest"]
    world.guard()
    findings = [_finished(world.run(command)) for command in plan[:step]]
    world.run(plan[step], **options)
    there = _manifest(out)["digest"]
    if old:  # the old artifact or the new one is there, whole
        findings.append(_finished(world.run(_VERIFY)))
    if draw.random() < _AGAIN:
        write = draw.randrange(20)
        what += f", and again at write {write} of the resumed run"
        world.run(_resumed(plan[step]), before=_die_at(write))
    for command in plan[step:]:
        findings.append(_finished(world.run(_resumed(command))))
    findings.append(_finished(world.run(_VERIFY), content_of(out) == expected))
    if there not in (old, _manifest(out)["digest"]):
        findings.append((Outcome.USED, "an artifact that is neither the old nor the new one"))
    if left := _left_over(out):
        findings.append((Outcome.USED, f"left over: {', '.join(sorted(left))}"))
    if not world.is_untouched():
        findings.append((Outcome.OUTSIDE, ""))
    return verdict(what, findings)


def _finished(ended: Ended, same: bool = True) -> tuple[Outcome, str]:
    """The outcome of a command that must succeed."""
    return judge(ended, same, strict=True)


def _resumed(command: Command) -> Command:
    """Parts and their end go on by themselves."""
    by_itself = {"--part", "--finalize"} & set(command)
    return command if by_itself else (*command, "--resume")


def _start(world: World, name: str) -> None:
    """Puts the inputs of a plan into the world's directory, and the artifact that is replaced."""
    plan = PLANS[name]
    world.fresh(*needed("", [word for command in plan for word in command]))
    if "--overwrite" in plan[0]:
        other = ("--set", "windows=4") if plan[0][0] == "eval" else ("--set", "seed=7")
        _must(world, (*plan[0], *other))


def _measure(world: World, name: str) -> _Usual:
    _start(world, name)
    seconds: list[float] = []
    writes: list[tuple[int, int]] = []
    for step, command in enumerate(PLANS[name]):
        read, write = os.pipe()
        ended = _must(world, command, before=_count_to(write))
        os.close(write)
        writes += [(step, each) for each in range(len(os.read(read, 2**16)))]
        os.close(read)
        seconds.append(ended.seconds)
    random.Random(0).shuffle(writes)
    return _Usual(content_of(world.inside / "out"), seconds, writes)


def _must(world: World, command: Command, **options: Any) -> Ended:
    ended = world.run(command, patience=60, **options)
    assert ended.code == 0, f"{command}: {ended.stderr}"
    return ended


def _count_to(descriptor: int) -> Callable[[], None]:
    """Before a process: it writes a byte to a pipe at each of its writes."""
    return lambda: at_write(lambda event, path: os.write(descriptor, b".") and None)


def _die_at(write: int) -> Callable[[], None]:
    """Before a process: it dies just before a write, of which the first is 0."""
    left = [write]

    def act(event: str, path: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return lambda: at_write(act)


def _manifest(out: Path) -> Any:
    path = out / "manifest.json"
    return json.loads(path.read_bytes()) if path.exists() else {"digest": None, "files": []}


def _left_over(out: Path) -> set[str]:
    """Files and folders that the manifest does not name."""
    named = {entry["name"] for entry in _manifest(out)["files"]}
    folders = {str(Path(name).parent) for name in named}
    return snapshot(out).keys() - named - folders - {"manifest.json"}
