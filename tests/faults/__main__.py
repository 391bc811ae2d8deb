"""Injects faults of all kinds, and prints a table of what they did.

python -m faults                            the full run, about an hour
python -m faults --share 0.01               a hundredth of it
python -m faults --kinds damage --case 17   one case, with what the command printed
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

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


def main() -> None:
    options = _parser().parse_args()
    processes.prepare()
    with _world() as world:
        tallies = [_run(world, kind, options) for kind in options.kinds]
    print(table(tallies))
    sys.exit(any(tally.bad for tally in tallies))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--share", type=float, default=1.0, help="share of the full run")
    parser.add_argument("--seed", type=int, help="default: drawn, and printed")
    parser.add_argument("--case", type=int, help="only this case")
    return parser


@contextmanager
def _world() -> Iterator[World]:
    with tempfile.TemporaryDirectory(prefix="faults-") as root:
        yield World(Path(root) / "world")


def _run(world: World, kind: str, options: argparse.Namespace) -> Tally:
    count, case = KINDS[kind]
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    numbers = [options.case] if options.case is not None else range(round(count * options.share))
    tally = Tally(kind, seed)
    started = time.monotonic()
    for number in numbers:
        found = case(world, random.Random(f"{kind} {seed} {number}"), number)
        tally.counts[found.outcome] += 1
        if found.outcome in BAD or options.case is not None:
            where = f"--kinds {kind} --seed {seed} --case {number}"
            print(f"{found.outcome}: {found.what}\n{where}\n{found.shown}\n", flush=True)
    tally.seconds = time.monotonic() - started
    print(f"{kind}, seed {seed}: {tally.counts.total()} cases, {tally.bad} bad", flush=True)
    return tally


if __name__ == "__main__":
    main()
