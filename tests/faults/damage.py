"""Flipped bits, cut and extended files of every artifact, and then a command that uses it."""

import random
from pathlib import Path

from faults.outcomes import Verdict, judge_use
from faults.world import KINDS, USES, World


def case(world: World, draw: random.Random, number: int) -> Verdict:
    kind = draw.choice(KINDS)
    use = draw.choice(USES[kind])
    world.prepare(kind, use)
    path = draw.choice(world.files(kind))
    what = f"{path.relative_to(world.inside)}: {_damage(path, draw)}"
    return judge_use(world, kind, use, what)


def _damage(path: Path, draw: random.Random) -> str:
    content = bytearray(path.read_bytes())
    way = draw.choices(["flip", "cut", "extend", "zero"], [70, 15, 10, 5])[0]
    place = draw.randrange(len(content)) if content else 0
    if way == "extend" or not content:
        added = draw.randbytes(draw.choice([1, 7, 4096]))
        what = f"{len(added)} bytes added"
        content += added
    elif way == "flip":
        bit = draw.randrange(8)
        what = f"bit {bit} of byte {place} flipped"
        content[place] ^= 1 << bit
    elif way == "cut":
        what = f"cut from {len(content)} to {place} bytes"
        del content[place:]
    else:
        what = f"zeros from byte {place}"
        content[place : place + 512] = bytes(len(content[place : place + 512]))
    path.write_bytes(content)
    return what
