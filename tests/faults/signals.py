"""SIGINT, SIGTERM and SIGHUP while a real `smtkit` process starts and imports its libraries."""

import random
import signal
import subprocess
import sys
import time

from faults.outcomes import Outcome, Verdict, verdict
from faults.processes import Ended
from faults.world import BUILDERS, World, needed

_PROGRAM = "import sys; from smtkit.cli.app import main; sys.argv[0] = 'smtkit'; main()"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_usual: list[float] = []


def case(world: World, draw: random.Random, number: int) -> Verdict:
    if not _usual:
        _usual.append(_run(world, None, 60.0).seconds)
    sent = draw.choice(_SIGNALS)
    after = draw.uniform(0.02, _usual[0])
    ended = _run(world, sent, after)
    # Before Python runs the first line of smtkit, it is the signal itself that ends the process.
    fine = ended.code in (0, -sent, 128 + sent) and "Traceback" not in ended.stderr
    what = f"{sent.name} after {after:.3f} of {_usual[0]:.3f} s"
    shown = f"exit {ended.code}\n{ended.stderr[-1500:]}"
    if ended.hung:
        return verdict(what, [(Outcome.HUNG, shown)])
    ordinary = Outcome.HARMLESS if ended.code == 0 else Outcome.DETECTED
    return verdict(what, [(ordinary if fine else Outcome.CRASHED, shown)])


def _run(world: World, number: signal.Signals | None, after: float) -> Ended:
    """Trains a teacher for a few steps, and sends the signal `after` seconds."""
    world.fresh(*needed("encoder", BUILDERS["encoder"]))
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM, *BUILDERS["encoder"], "--out", "out"],
        cwd=world.inside,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    hung = False
    try:
        process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        process.send_signal(number or signal.SIGKILL)
    try:
        _, error = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        _, error = process.communicate()
        hung = True
    return Ended(process.returncode, b"", error, time.monotonic() - started, 0, hung)
