"""Local copies of remote files, stored by checksum and shared by all processes of a machine.

The cache is `$SMTKIT_CACHE`, or `~/.cache/smtkit`. A copy is `files/XXH3/NAME`; `staging/` holds
the working directories of runs that write to a URI.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit

from smtkit.errors import ArtifactError, InputOutputError, UsageError
from smtkit.storage.files import copy_hashed, file_size, hash_file, named_errors, publish
from smtkit.storage.locks import DirectoryLock
from smtkit.storage.manifest import FileEntry
from smtkit.storage.remote import Remote

_CONCURRENT_DOWNLOADS = 8

# Inode, modification time and size of the copies that this process has verified.
_verified: dict[Path, tuple[int, int, int]] = {}


def staging(remote: Remote) -> Path:
    """The directory in which runs that write to `remote` work, the same for each spelling of its
    URI."""
    parts = urlsplit(remote.uri)
    key = unquote(parts.netloc.rpartition("@")[2] + parts.path).rstrip("/")
    endpoint = parse_qs(parts.query).get("endpoint_override", [""])[0]
    uri = f"{parts.scheme}://{key}" + (f"?endpoint_override={endpoint}" if endpoint else "")
    return cache_directory() / "staging" / hashlib.sha256(uri.encode()).hexdigest()[:16]


def fetch(
    remote: Remote, entries: Sequence[FileEntry], *, rows_are_checked: bool = False
) -> list[Path]:
    """Paths of verified local copies. Those that are missing or damaged are downloaded.

    `rows_are_checked`: the reader compares checksums of rows, so files with rows are verified by
    size alone. Raises ArtifactError where a download is not what the manifest says,
    InputOutputError where the store cannot be read or the disk is full.
    """
    with ThreadPoolExecutor(_CONCURRENT_DOWNLOADS) as pool:
        return list(pool.map(lambda entry: _fetch(remote, entry, rows_are_checked), entries))


def verify(remote: Remote, entry: FileEntry) -> None:
    """Reads a file of `remote`, and then its copy, which is removed if it is damaged. Raises
    ArtifactError where the file of `remote` is missing or not what the manifest says."""
    _check(remote, entry)
    path = _path(entry)
    if path.exists():
        with _locked(path):
            if not _is_verified(path, entry):
                path.unlink(missing_ok=True)


def _fetch(remote: Remote, entry: FileEntry, rows_are_checked: bool) -> Path:
    path = _path(entry)
    if rows_are_checked and entry.rows is not None and file_size(path) == entry.bytes:
        return path
    if _is_verified(path, entry):
        return path
    with _locked(path):
        if not _is_verified(path, entry):
            temporary = path.with_name(".part")  # one name, so that leftovers are overwritten
            try:
                with temporary.open("wb") as file:
                    _check(remote, entry, file)
                publish(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
    return path


def _check(remote: Remote, entry: FileEntry, sink: BinaryIO | None = None) -> None:
    """Reads a file of `remote`, and writes it to `sink`."""
    uri = remote.uri_of(entry.name)
    try:
        size, found = copy_hashed(remote.blocks(entry.name), sink)
    except FileNotFoundError:
        raise ArtifactError(f"{uri}: missing, though the manifest names it") from None
    if (size, found) != (entry.bytes, entry.xxh3):
        raise ArtifactError(
            f"{uri}: damaged: {size} bytes, xxh3 is {found}, the manifest says {entry.bytes} and "
            f"{entry.xxh3}"
        )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock on the directory of a copy, which is made if need be."""
    with named_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = DirectoryLock(path.parent, wait=True)
        try:
            yield
        finally:
            lock.release()


def _is_verified(path: Path, entry: FileEntry) -> bool:
    """Whether size and checksum of a copy are right; hashed once per process, and again if the file
    was modified."""
    with contextlib.suppress(OSError, InputOutputError):
        status = path.stat()
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        if status.st_size == entry.bytes and _verified.get(path) != stamp:
            if hash_file(path) != entry.xxh3:
                return False
            _verified[path] = stamp
        return status.st_size == entry.bytes
    return False


def _path(entry: FileEntry) -> Path:
    return cache_directory() / "files" / entry.xxh3 / entry.logical_name


def cache_directory() -> Path:
    text = os.environ.get("SMTKIT_CACHE") or "~/.cache/smtkit"
    if "://" in text:
        raise UsageError(f"SMTKIT_CACHE is {text}, expected a path")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UsageError(f"{text}: there is no such home", "set SMTKIT_CACHE to a path") from None
