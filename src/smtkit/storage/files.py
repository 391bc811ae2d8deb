"""Atomic writes, checksums, and errors of the operating system that name their file."""

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import xxhash

from smtkit.errors import InputOutputError


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
            yield temporary
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


def hash_file(path: Path) -> str:
    """xxh3-128 of a file, in hexadecimal. Raises InputOutputError."""
    with named_errors(path), path.open("rb") as file:
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
