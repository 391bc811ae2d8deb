"""Local copies of remote files, by content: of processes that need a file, one fetches it, once.

The cache is `$SMTKIT_CACHE`, or `~/.cache/smtkit`: `files/XXH3/NAME`. It also holds `staging/`,
where runs that write to a URI work.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit

import xxhash

from smtkit.errors import ArtifactError, InputOutputError, UsageError
from smtkit.storage.files import publish
from smtkit.storage.locks import DirectoryLock
from smtkit.storage.remote import Remote

if TYPE_CHECKING:
    from smtkit.storage.manifest import FileEntry

_FETCHED_TOGETHER = 8

# Of copies that this process found whole: inode, time and size. One step of a dict is atomic.
_whole: dict[Path, tuple[int, int, int]] = {}


def staging(remote: Remote) -> Path:
    """Where runs with this cache that write to `remote` work, however its URI is spelled."""
    parts = urlsplit(remote.uri)
    place = unquote(parts.netloc.rpartition("@")[2] + parts.path).rstrip("/")
    endpoint = parse_qs(parts.query).get("endpoint_override", [""])[0]
    key = f"{parts.scheme}://{place}" + (f"?endpoint_override={endpoint}" if endpoint else "")
    return _root() / "staging" / hashlib.sha256(key.encode()).hexdigest()[:16]


def fetch(
    remote: Remote, entries: "Sequence[FileEntry]", *, rows_are_checked: bool = False
) -> list[Path]:
    """Local copies of files of `remote`, whole and checked; those that are not here, or no longer
    what they were, are read from there.

    `rows_are_checked`: whoever reads files of rows finds damage in them, so that copies of these
    are not read here for that alone. Raises ArtifactError where what comes is not what the manifest
    says, InputOutputError where nothing comes or the disk is full.
    """
    with ThreadPoolExecutor(_FETCHED_TOGETHER) as pool:
        return list(pool.map(lambda entry: _fetch(remote, entry, rows_are_checked), entries))


def drop_damaged(entry: "FileEntry") -> None:
    """Removes a copy that is not what the manifest says, to be fetched again."""
    path = _path(entry)
    if path.exists():
        with _locked(path):
            if not _is_whole(path, entry):
                path.unlink(missing_ok=True)


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


def _path(entry: "FileEntry") -> Path:
    return _root() / "files" / entry.xxh3 / entry.logical_name


def _fetch(remote: Remote, entry: "FileEntry", rows_are_checked: bool) -> Path:
    path = _path(entry)
    enough = _is_here if rows_are_checked and entry.rows is not None else _is_whole
    if not enough(path, entry):
        with _locked(path):
            if not _is_whole(path, entry):
                _download(remote, entry, path)
    return path


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = DirectoryLock(path.parent, wait=True)
        try:
            yield
        finally:
            lock.release()
    except OSError as error:
        raise InputOutputError(f"{path}: {error.strerror}") from None


def _download(remote: Remote, entry: "FileEntry", path: Path) -> None:
    temporary = path.with_name(".part")  # one name: what a kill leaves is written over
    try:
        with temporary.open("wb") as file:
            check(remote, entry, file)
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_here(path: Path, entry: "FileEntry") -> bool:
    """Whether a copy is here, by its size."""
    try:
        return path.stat().st_size == entry.bytes
    except OSError:
        return False


def _is_whole(path: Path, entry: "FileEntry") -> bool:
    """Whether a copy is here and right; read once a process, and again if it was touched."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
            if status.st_size != entry.bytes:
                return False
            if _whole.get(path) != stamp:
                if hashlib.file_digest(file, xxhash.xxh3_128).hexdigest() != entry.xxh3:
                    return False
                _whole[path] = stamp
    except OSError:
        return False
    return True


def _root() -> Path:
    text = os.environ.get("SMTKIT_CACHE") or "~/.cache/smtkit"
    if "://" in text:
        raise UsageError(f"SMTKIT_CACHE is {text}, expected a path")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UsageError(f"{text}: there is no such home", "set SMTKIT_CACHE to a path") from None
