"""Artifacts and inputs that are made to harm: links, special files, names that lead outside, files
that expand to much, and files of every format that are broken."""

import os
import random
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import bombs
from faults.mutations import seal
from faults.outcomes import Outcome, Verdict, judge, judge_use, verdict
from faults.processes import in_fork
from faults.world import KINDS, USES, World

_OUTSIDE = "../outside/file-0"
_NAMES = [f"../{_OUTSIDE}", _OUTSIDE, "/etc/hostname", "run-x/../../outside/file-0", "run-x/"]
_FORMATS = [
    "txt",
    "py",
    "md",
    "json",
    "jsonl",
    "csv",
    "tsv",
    "parquet",
    "arrow",
    "npy",
    "npz",
    "png",
    "jpg",
    "gz",
    "txt.gz",
    "csv.gz",
    "zst",
]
_MADE = list(bombs.BOMBS)


def case(world: World, draw: random.Random, number: int) -> Verdict:
    ways = [_special, _special, _run_folder, _name, _broken, _broken, _folder, _bomb]
    return draw.choice(ways)(world, draw)


def _special(world: World, draw: random.Random) -> Verdict:
    """A file of an artifact is replaced by something that is no ordinary file."""
    kind, use = _use(world, draw)
    path = draw.choice(world.files(kind))
    what, replace = draw.choice(list(_SPECIAL.items()))
    shutil.copyfile(path, world.outside / "copy")
    path.unlink()
    replace(path, world.outside)
    return judge_use(world, kind, use, f"{path.relative_to(world.inside)}: {what}")


def _run_folder(world: World, draw: random.Random) -> Verdict:
    """The folder of a run, or one more beside it, is a link to a folder outside."""
    kind, use = _use(world, draw)
    run = next((world.inside / kind).glob("run-*"))
    if draw.random() < 0.5:
        shutil.move(run, world.outside / "moved")
        run.symlink_to(world.outside / "moved")
        what = f"{kind}: its run folder is a link"
    else:
        run.with_name("run-01234567").symlink_to(world.outside)
        what = f"{kind}: a run folder more, which is a link"
    return judge_use(world, kind, use, what)


def _name(world: World, draw: random.Random) -> Verdict:
    """The manifest names a file outside."""
    kind = draw.choice([each for each in KINDS if (world.made / each / "manifest.json").exists()])
    use = draw.choice(USES[kind])
    world.prepare(kind, use)
    manifest = world.inside / kind / "manifest.json"
    entry = draw.choice(world.files(kind)[1:])
    name = draw.choice(_NAMES)
    inside = str(entry.relative_to(world.inside / kind))
    manifest.write_text(manifest.read_text().replace(inside, name))
    seal(world.inside / kind)
    return judge_use(world, kind, use, f"{kind}: {inside} is named {name}")


def _use(world: World, draw: random.Random) -> tuple[str, tuple[str, ...]]:
    kind = draw.choice(KINDS)
    use = draw.choice(USES[kind])
    world.prepare(kind, use)
    return kind, use


def _bomb(world: World, draw: random.Random) -> Verdict:
    """A small input that expands to much."""
    name = draw.choice(_MADE)
    file, write = bombs.BOMBS[name]
    world.fresh()
    world.inside.joinpath("in").mkdir()
    if not (made := world.made / f"bomb-{_MADE.index(name)}").exists():
        in_fork(lambda: write(made))
    os.link(made, world.inside / "in" / file)
    text = file.endswith((".gz", ".csv", ".parquet")) and "idx3" not in file
    return _tokenize(world, name, "char" if text else "pixel")


def _broken(world: World, draw: random.Random) -> Verdict:
    """Random bytes, or half of a real file, under the name of every format."""
    world.fresh()
    world.inside.joinpath("in").mkdir()
    suffix = draw.choice(_FORMATS)
    path = world.inside / "in" / f"a.{suffix}"
    real = world.made / "train-images-idx3-ubyte"
    content = draw.choice(
        [
            draw.randbytes(3000),
            b"",
            real.read_bytes()[: draw.randrange(1, 144)],
            _start_of(suffix) + draw.randbytes(300),
            b'{"text": ' * 3000,
            b"\xff\xfe" + "text,1\n".encode("utf-16-le") * 50,
            b"text\n" + b'"never closed\n' * 100,
            b"\x00" * 5000,
        ]
    )
    path.write_bytes(content)
    tokenizer = draw.choice(["byte", "char", "sentencepiece", "pixel"])
    return _tokenize(world, f"{path.name} of {content[:12]!r}...", tokenizer)


def _start_of(suffix: str) -> bytes:
    starts = {
        "png": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
        "jpg": b"\xff\xd8\xff\xe0\x00\x10JFIF",
        "npy": b"\x93NUMPY\x01\x00\x76\x00{'descr': '|O', 'fortran_order': False, 'shape': (9,), }",
        "npz": b"PK\x03\x04",
        "parquet": b"PAR1",
        "arrow": b"ARROW1\x00\x00",
        "zst": b"\x28\xb5\x2f\xfd",
    }
    return starts.get(suffix.split(".")[-1], b"\x1f\x8b\x08\x00")


def _folder(world: World, draw: random.Random) -> Verdict:
    """A folder of texts with special files, and names that a terminal would obey."""
    world.fresh("texts")
    folder = world.inside / "texts"
    what, replace = draw.choice(list(_SPECIAL.items()))
    name = draw.choice(["b.txt", "\x1b[2J.txt", "a\nb.txt", "\udcff.txt", "-rf.txt", ".hidden.txt"])
    (world.outside / "copy").write_text("outside")
    replace(folder / name, world.outside)
    return _tokenize(world, f"texts with {name!r}, {what}", "byte", "texts")


def _tokenize(world: World, what: str, tokenizer: str, source: str = "in") -> Verdict:
    world.guard()
    command = ("tokenize", source, "--out", "out", "--quiet", "--tokenizer", tokenizer)
    ended = world.run(command)
    findings = [judge(ended, same=False, forged=True)]
    if not world.is_untouched():
        findings.append((Outcome.OUTSIDE, ended.stderr))
    return verdict(f"{what}; {tokenizer}", findings)


def _socket(path: Path, outside: Path) -> None:
    with socket.socket(socket.AF_UNIX) as each:
        os.chdir(path.parent)
        each.bind(path.name)


def _link(target: str) -> Callable[[Path, Path], None]:
    return lambda path, outside: path.symlink_to(target.format(outside=outside, path=path))


_SPECIAL: dict[str, Callable[[Path, Path], None]] = {
    "a FIFO": lambda path, outside: os.mkfifo(path),
    "a folder": lambda path, outside: path.mkdir(),
    "a link to a copy outside": _link("{outside}/copy"),
    "a link to another file": _link("{outside}/file-0"),
    "a link to itself": _link("{path}"),
    "a link to nothing": _link("{outside}/nothing"),
    "a link to /dev/zero": _link("/dev/zero"),
    "a link to /proc/self/mem": _link("/proc/self/mem"),
    "a link to a folder": _link("{outside}"),
}
if sys.platform != "darwin":
    _SPECIAL["a socket"] = _socket
