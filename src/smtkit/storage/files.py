"""Files of artifacts: opened without following links, verified, and written atomically.

Errors of the operating system name their file.
"""

import contextlib
import errno
import hashlib
import io
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import xxhash

from smtkit.errors import ArtifactError, InputOutputError

RECORD_BYTES = 2**26
"""Largest JSON file of an artifact that is read: a manifest of 300,000 shards is smaller."""
_NOT_REGULAR = (errno.ELOOP, errno.ENXIO, errno.ENODEV)  # links, sockets, devices without a driver


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Raises an OSError of the block as an InputOutputError that names `path`."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        hint = "raise the limit of open files: ulimit -n" if error.errno == errno.EMFILE else None
        raise InputOutputError(f"{path}: {reason}", hint) from None


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path, whose file replaces `path` when the block ends without an error.

    A reader sees the whole old file or the whole new one. Raises InputOutputError.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # of no other process
    try:
        with named_errors(path):
            # The mode is what the umask allows, whatever the writer makes of it.
            mode = os.O_CREAT | os.O_EXCL | os.O_WRONLY
            descriptor = os.open(temporary, mode, 0o666)
            allowed = stat.S_IMODE(os.fstat(descriptor).st_mode)
            os.close(descriptor)
            yield temporary
            temporary.chmod(allowed)
            publish(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_atomically(path: Path, content: str) -> None:
    """Replaces `path` with `content` through `atomic_file`."""
    with atomic_file(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def publish(temporary: Path, path: Path) -> None:
    """Flushes a finished file to the disk and renames it to `path`."""
    _flush(temporary)
    temporary.replace(path)
    _flush(path.parent)


def copy_hashed(blocks: Iterable[bytes], sink: Any = None) -> tuple[int, str]:
    """Writes `blocks` to `sink`, if given; returns their bytes and xxh3-128."""
    size, checksum = 0, xxhash.xxh3_128()
    for block in blocks:
        size += len(block)
        checksum.update(block)
        if sink is not None:
            sink.write(block)
    return size, checksum.hexdigest()


def open_regular(path: Path, within: Path | None = None) -> io.BufferedReader:
    """Opens a file of an artifact for reading.

    Neither the file nor a folder between it and `within` (None: the folder it is in) may be a link,
    and the file must be a regular one: a FIFO would block, and a device never end. Raises
    ArtifactError where it is not, FileNotFoundError, NotADirectoryError, InputOutputError.
    """
    root = within or path.parent
    refusal = ArtifactError(f"{path}: a link or special file, allowed: a regular file")
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        for name in path.relative_to(root).parts:
            parent = descriptor
            try:
                descriptor = os.open(
                    name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent
                )
            finally:
                os.close(parent)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        if error.errno in _NOT_REGULAR:
            raise refusal from None
        with named_errors(path):
            raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise refusal
    return os.fdopen(descriptor, "rb")


def open_sized(
    path: Path, size: int, within: Path | None = None, *, record: str = "the manifest"
) -> io.BufferedReader:
    """Opens a file of which a record says that it has `size` bytes. Raises ArtifactError,
    InputOutputError."""
    try:
        file = open_regular(path, within)
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{path}: missing, though {record} names it") from None
    if (found := os.fstat(file.fileno()).st_size) != size:
        file.close()
        raise ArtifactError(f"{path}: {found} bytes, {record} says {size}")
    return file


def read_verified(
    path: Path,
    size: int,
    xxh3: str,
    within: Path | None = None,
    *,
    record: str = "the manifest",
) -> bytes:
    """The content of a file, of which a record says that it has `size` bytes and the checksum
    `xxh3`. It is read once: what is returned is what was verified. Raises ArtifactError,
    InputOutputError."""
    with open_sized(path, size, within, record=record) as file, named_errors(path):
        content = file.read(size)
    check_xxh3(path, xxhash.xxh3_128_hexdigest(content), xxh3, record=record)
    return content


def check_xxh3(path: Path, found: str, expected: str, *, record: str = "the manifest") -> None:
    """Raises ArtifactError where a checksum is not the one in a record."""
    if found != expected:
        message = f"{path}: damaged: xxh3 is {found}, {record} says {expected}"
        raise ArtifactError(message, "copy it again, or make it again with --overwrite")


def read_record(path: Path) -> bytes:
    """The content of a JSON file of an artifact. Raises as `open_regular`, and ArtifactError where
    it is too large to be one."""
    with open_regular(path) as file, named_errors(path):
        content = file.read(RECORD_BYTES + 1)
    if len(content) > RECORD_BYTES:
        raise ArtifactError(f"{path}: larger than {RECORD_BYTES} bytes")
    return content


def hash_file(path: Path, within: Path | None = None) -> str:
    """xxh3-128 of a file, in hexadecimal. Raises ArtifactError, InputOutputError."""
    with named_errors(path), open_regular(path, within) as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def file_size(path: Path) -> int | None:
    """Bytes of a file; None if there is none."""
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return None


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
