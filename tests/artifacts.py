"""Helpers that make small artifacts, read them, and damage them."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash

from smtkit.config import Config
from smtkit.storage.manifest import MANIFEST, METRICS, Manifest
from smtkit.storage.run import Run


class Settings(Config):
    """A schema with one key that decides the result and one that does not."""

    width: int = 1
    device: str = "cpu"


def make(
    out: str | Path,
    content: bytes = b"some content",
    *,
    kind: Any = "tokens",
    width: int = 1,
    config: Config | None = None,
    metrics: str | None = None,
    **options: Any,
) -> Manifest:
    """An artifact of one file, `data`, and perhaps metrics."""
    with Run(out, kind, config or Settings(width=width), **options) as run:
        if run.finished:
            return run.finished
        (run.directory / "data").write_bytes(content)
        run.add("data", rows=3)
        if metrics is not None:
            (run.directory / METRICS).write_text(metrics)
            run.add(METRICS)
        return run.commit({"answer": 42})


def interrupt(
    out: str | Path, content: str = "half", *, config: Config | None = None, **options: Any
) -> Path:
    """A run that is interrupted after it called `keep`; returns its folder."""
    run = Run(out, "tokens", config or Settings(), **options)
    with suppress(KeyboardInterrupt), run:
        (run.directory / "work").write_text(content)
        run.keep()
        raise KeyboardInterrupt
    return run.directory


def everything_below(directory: Path) -> dict[str, bytes | None]:
    """All files with their content, and all directories, including hidden ones."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


def flip_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def edit_manifest(out: Path, **changes: Any) -> None:
    """Forges fields of a manifest; without a checksum, they are not verified."""
    content = json.loads((out / MANIFEST).read_text())
    (out / MANIFEST).write_text(json.dumps(content | {"checksum": None} | changes))


def write_part(out: str | Path, *names: str, width: int = 1) -> None:
    """A run with `part`, which writes some of the shards `a` and `b`."""
    with Run(out, "tokens", Settings(width=width), part=True) as run:
        for name in names:
            (run.directory / name).write_bytes(name.encode())
            run.add(name, rows=1)


def finalize(out: str | Path, width: int = 1, **options: Any) -> list[str]:
    """Makes an artifact of the shards `a` and `b`; returns those that were missing."""
    made = []
    with Run(out, "tokens", Settings(width=width), resume=True, **options) as run:
        if run.finished:
            return made
        for name in ("a", "b"):
            if not run.has(name):
                made.append(name)
                (run.directory / name).write_bytes(name.encode())
            run.add(name, rows=1)
        run.commit({})
    return made


def edit_files(out: Path) -> None:
    """Makes the manifest agree with the files that are there, so that forged ones pass."""
    files = json.loads((out / MANIFEST).read_text())["files"]
    for entry in files:
        content = (out / entry["name"]).read_bytes()
        entry |= {"bytes": len(content), "xxh3": xxhash.xxh3_128_hexdigest(content)}
    edit_manifest(out, files=files)
