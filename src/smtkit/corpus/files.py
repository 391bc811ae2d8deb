"""Files as users have them: found by path, directory or glob; read in blocks, decompressed."""

import glob
import gzip
import io
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import xxhash

from smtkit.errors import InputOutputError, UsageError

BLOCK_BYTES = 2**20
STDIN = "-"
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_MAGIC = {b"\x1f\x8b\x08": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
_SNIFFED_BYTES = 8192
_ALWAYS_ALLOWED_BYTES = 2**26  # of a compressed file, expanded
_METER_BYTES = 2**23


def expand(inputs: Sequence[str]) -> Iterator[Path]:
    """The paths that `inputs` name; globs that the shell left alone are expanded here.

    Raises UsageError where a path does not exist, or can be read only once.
    """
    for name in inputs:
        path = Path(name)
        if name == STDIN or path.is_file() or path.is_dir():
            yield path
            continue
        if path.exists():
            raise UsageError(
                f"{name}: found a pipe or a device, allowed: files and directories",
                f"use -: ... | smtkit tokenize {STDIN}",
            )
        matches = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else []
        if not matches:
            raise UsageError(f"{name}: no such file or directory")
        yield from (Path(match) for match in matches)


def walk(directory: Path, include: Sequence[str], exclude: Sequence[str]) -> Iterator[Path]:
    """Files below a directory in order of path, without hidden ones and those of artifacts.

    `include` and `exclude` are globs that the path below the directory, or any part of it, matches.
    Raises InputOutputError.
    """
    for path in sorted(_files_below(directory)):
        relative = path.relative_to(directory)
        if any(part.startswith(".") for part in relative.parts):
            continue
        if include and not _matches(relative, include):
            continue
        if not _matches(relative, exclude):
            yield path


def suffixes(path: Path) -> tuple[str, str]:
    """The suffix of the format and that of the compression, in lower case."""
    outer = path.suffix.lower()
    if outer in COMPRESSIONS:
        return Path(path.stem).suffix.lower(), outer
    return outer, ""


def spool(stream: BinaryIO, directory: Path) -> Path:
    """Copies a stream that can be read only once to a file, which gets the suffix of the
    compression that its first bytes show."""
    start = stream.read(max(map(len, _MAGIC)))
    suffix = next((end for magic, end in _MAGIC.items() if start.startswith(magic)), "")
    path = directory / f"stdin{suffix}"
    with path.open("xb") as file:
        file.write(start)
        shutil.copyfileobj(stream, file)
    return path


def is_binary(path: Path) -> bool:
    """Whether a NUL byte is in the first 8 KiB, as git decides it. Raises InputOutputError."""
    with _naming(path), path.open("rb") as file:
        return b"\0" in file.read(_SNIFFED_BYTES)


def total_size(paths: Sequence[Path]) -> int:
    """Bytes of all files; standard input counts as none. Raises InputOutputError."""
    return sum(_status(path).st_size for path in paths if str(path) != STDIN)


def listing_digest(paths: Sequence[Path]) -> str:
    """Digest of paths, sizes and times: changes when an input file is added, removed or written.
    Standard input never has the same twice. Raises InputOutputError."""
    checksum = xxhash.xxh3_128()
    for path in paths:
        checksum.update(os.fsencode(path))
        if str(path) == STDIN:
            checksum.update(os.urandom(16))
        else:
            status = _status(path)
            checksum.update(f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return checksum.hexdigest()


@dataclass(frozen=True)
class Reader:
    """Opens files, decompressed by their suffix.

    `max_expansion` bounds what a compressed file may expand to, as a multiple of its size (64 MiB
    are always allowed). `on_read` gets the number of bytes read from disk, from any thread.
    """

    max_expansion: float
    on_read: Callable[[int], None] = lambda count: None

    def open(self, path: Path, name: str = "") -> BinaryIO:
        """The decompressed bytes. Reading raises InputOutputError, which names the file: by its
        path, unless `name` is given."""
        checked = _DecompressedFile(path, name or str(path), self)
        return cast(BinaryIO, io.BufferedReader(checked, BLOCK_BYTES))

    def blocks(self, path: Path, name: str = "") -> Iterator[bytes]:
        """The decompressed bytes in blocks of at most 1 MiB."""
        with self.open(path, name) as file:
            while block := file.read(BLOCK_BYTES):
                yield block


class Meter:
    """Adds up byte counts from many threads, and reports the sum every 8 MiB."""

    def __init__(self, report: Callable[[int], None]) -> None:
        self._report = report
        self._lock = threading.Lock()
        self._total = self._reported = 0

    def __call__(self, count: int) -> None:
        with self._lock:
            self._total += count
            if self._total - self._reported >= _METER_BYTES:
                self._reported = self._total
                self._report(self._total)


class _DecompressedFile(io.RawIOBase):
    """A file, decompressed. Errors are InputOutputErrors that name it."""

    def __init__(self, path: Path, name: str, reader: Reader) -> None:
        self._name = name
        self._reader = reader
        self._read = self._produced = 0
        with _naming(name):
            self._file = path.open("rb")
            size = os.fstat(self._file.fileno()).st_size
        compression = COMPRESSIONS.get(suffixes(path)[1])
        self._limit = max(_ALWAYS_ALLOWED_BYTES, int(reader.max_expansion * size))
        self._bounded = compression is not None
        self._stream: BinaryIO = self._file
        if compression == "gzip":
            self._stream = cast(BinaryIO, gzip.GzipFile(fileobj=self._file))
        elif compression == "zstd":
            source = pa.PythonFile(self._file, mode="r")
            self._stream = cast(BinaryIO, pa.CompressedInputStream(source, "zstd"))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            block = self._stream.read(len(buffer))
            position = self._file.tell()
        except EOFError:
            reason = "truncated: the compressed data end too early"
            raise InputOutputError(f"{self._name}: {reason}") from None
        except (OSError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputOutputError(f"{self._name}: cannot be read: {reason}") from None
        self._reader.on_read(position - self._read)
        self._read = position
        self._produced += len(block)
        if self._bounded and self._produced > self._limit:
            raise InputOutputError(
                f"{self._name}: expands to more than {self._reader.max_expansion:g} times its size",
                "`max_expansion` allows more",
            )
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@contextmanager
def _naming(name: object) -> Iterator[None]:
    """Turns an OSError into an InputOutputError that names the file."""
    try:
        yield
    except OSError as error:
        raise InputOutputError(f"{name}: {error.strerror}") from None


def _status(path: Path) -> os.stat_result:
    with _naming(path):
        return path.stat()


def _files_below(directory: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise InputOutputError(f"{error.filename}: {error.strerror}") from None

    for parent, folders, names in os.walk(directory, onerror=fail):
        folders[:] = [name for name in folders if not _is_artifact(Path(parent, name))]
        yield from (path for name in names if (path := Path(parent, name)).is_file())


def _is_artifact(directory: Path) -> bool:
    """Whether smtkit wrote the directory: an output below the inputs is no input."""
    return any(directory.glob("run-*/run.json")) or (
        (directory / "manifest.json").exists() and any(directory.glob("run-*/tokenizer.json"))
    )


def _matches(relative: Path, patterns: Sequence[str]) -> bool:
    names = (relative.as_posix(), *relative.parts)
    return any(fnmatch(name, pattern) for pattern in patterns for name in names)
