"""Local copies of remote files, by content: a file is fetched once, by one process of the machine.

The cache is `$SMTKIT_CACHE`, or `~/.cache/smtkit`: `files/XXH3/NAME`. It also holds `staging/`,
where runs that write to a URI work.
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import xxhash

from smtkit.artifacts.locks import DirectoryLock
from smtkit.artifacts.remote import Remote
from smtkit.errors import ArtifactError, InputOutputError

if TYPE_CHECKING:
    from smtkit.artifacts.manifest import FileEntry

_FETCHED_TOGETHER = 8


def staging(remote: Remote) -> Path:
    """Where runs on this machine that write to `remote` work."""
    key = hashlib.sha256(remote.uri.encode()).hexdigest()[:16]
    return _root() / "staging" / key


def fetch(remote: Remote, entries: "Sequence[FileEntry]") -> list[Path]:
    """Local copies of files of `remote`, whole and checked; those not yet here are read from there.

    Raises ArtifactError where what comes is not what the manifest says, InputOutputError where
    nothing comes or the disk is full.
    """
    with ThreadPoolExecutor(_FETCHED_TOGETHER) as pool:
        return list(pool.map(lambda entry: _fetch(remote, entry), entries))


def check(remote: Remote, entry: "FileEntry", sink: BinaryIO | None = None) -> None:
    """Reads a file of `remote`, not its copy, and writes it to `sink`. Raises ArtifactError where
    it is not what the manifest says, or not there."""
    place, checksum, size = remote.place(entry.name), xxhash.xxh3_128(), 0
    try:
        for block in remote.blocks(entry.name):
            checksum.update(block)
            size += len(block)
            if sink is not None:
                sink.write(block)
    except FileNotFoundError:
        raise ArtifactError(f"{place}: missing, though the manifest names it") from None
    if (found := checksum.hexdigest()) != entry.xxh3 or size != entry.bytes:
        raise ArtifactError(
            f"{place}: damaged: {size} bytes, xxh3 is {found}, the manifest says {entry.bytes} and "
            f"{entry.xxh3}"
        )


def _fetch(remote: Remote, entry: "FileEntry") -> Path:
    directory = _root() / "files" / entry.xxh3
    path = directory / entry.logical_name
    if _is_here(path, entry):
        return path
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = DirectoryLock(directory, wait=True)
        try:
            if not _is_here(path, entry):
                _download(remote, entry, path)
        finally:
            lock.release()
    except OSError as error:
        raise InputOutputError(f"{path}: {error.strerror}") from None
    return path


def _download(remote: Remote, entry: "FileEntry", path: Path) -> None:
    temporary = path.with_name(f".{path.name}")
    try:
        with temporary.open("wb") as file:
            check(remote, entry, file)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_here(path: Path, entry: "FileEntry") -> bool:
    try:
        return path.stat().st_size == entry.bytes
    except OSError:
        return False


def _root() -> Path:
    return Path(os.environ.get("SMTKIT_CACHE") or "~/.cache/smtkit").expanduser()
