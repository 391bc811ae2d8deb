"""Injects faults of all kinds, and prints a table of what they did.

python -m faults                            the full run, about an hour
python -m faults --share 0.01               a hundredth of it
python -m faults --kinds damage --case 17   one case, with what the command printed

Ctrl-C ends it with the table of the cases until then; `--first` goes on from there.
"""

import argparse
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

from faults import damage, hostile, inputs, kills, mutations, processes, signals, stores
from faults.outcomes import BAD, Tally, Verdict, table
from faults.world import World

Case = Callable[[World, random.Random, int], Verdict]
KINDS: dict[str, tuple[int, Case]] = {
    "kills": (1190, kills.case),
    "signals": (200, signals.case),
    "damage": (3000, damage.case),
    "mutations": (5000, mutations.case),
    "hostile": (300, hostile.case),
    "inputs": (1000, inputs.case),
    "stores": (50, stores.case),
}
"""Cases of a full run."""
_EVERY = 100  # cases after which a line shows the progress
_stopped = Event()


def main() -> None:
    options = _parser().parse_args()
    processes.prepare()
    # An exception could be lost in what Python calls at a fork.
    signal.signal(signal.SIGINT, lambda number, frame: _stopped.set())
    with _world() as world:
        tallies = [_run(world, kind, options) for kind in options.kinds]
    print(table(tallies))
    sys.exit(130 if _stopped.is_set() else any(tally.bad for tally in tallies))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--share", type=float, default=1.0, help="share of the full run")
    parser.add_argument("--seed", type=int, help="default: drawn, and printed")
    parser.add_argument("--case", type=int, help="only this case")
    parser.add_argument("--first", type=int, default=0, help="the case to begin with")
    return parser


@contextmanager
def _world() -> Iterator[World]:
    """In memory where possible: commands wait for the disk at every file they write."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(prefix="faults-", dir=memory if memory.is_dir() else None) as root:
        yield World(Path(root) / "world")


def _run(world: World, kind: str, options: argparse.Namespace) -> Tally:
    count, case = KINDS[kind]
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    numbers = range(options.first, round(count * options.share))
    if options.case is not None:
        numbers = range(options.case, options.case + 1)
    tally = Tally(kind, seed)
    started = time.monotonic()
    for number in numbers:
        if _stopped.is_set():
            break
        found = case(world, random.Random(f"{kind} {seed} {number}"), number)
        tally.counts[found.outcome] += 1
        if found.outcome in BAD or options.case is not None:
            where = f"--kinds {kind} --seed {seed} --case {number}"
            print(f"{found.outcome}: {found.what}\n{where}\n{found.shown}\n", flush=True)
        if number % _EVERY == _EVERY - 1:
            print(f"{kind}, seed {seed}: {number + 1} of {numbers.stop}", file=sys.stderr)
    tally.seconds = time.monotonic() - started
    print(f"{kind}, seed {seed}: {tally.counts.total()} cases, {tally.bad} bad", flush=True)
    return tally


if __name__ == "__main__":
    main()
