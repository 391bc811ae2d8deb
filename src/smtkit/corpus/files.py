"""Files as users have them: found by path, directory or glob; read in blocks, decompressed."""

import glob
import gzip
import io
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import xxhash

from smtkit.corpus.limits import Limits
from smtkit.errors import InputOutputError, UsageError
from smtkit.storage.files import named_errors

BLOCK_BYTES = 2**20
STDIN = "-"
COMPRESSIONS = {".gz": b"\x1f\x8b\x08", ".zst": b"\x28\xb5\x2f\xfd"}
"""Suffixes of compressed files, and the bytes that these begin with."""
_SNIFFED_BYTES = 8192


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


def walk(directory: Path, include: Sequence[str], exclude: Sequence[str]) -> list[Path]:
    """Files below a directory in order of path, without hidden ones and those of artifacts.

    `include` and `exclude` are globs that the path below the directory, or any part of it, matches.
    Raises InputOutputError.
    """

    def fail(error: OSError) -> None:
        raise InputOutputError(f"{error.filename}: {error.strerror}") from None

    def is_wanted(path: Path) -> bool:
        relative = path.relative_to(directory)
        names = (relative.as_posix(), *relative.parts)
        included, excluded = (
            any(fnmatch(name, pattern) for pattern in patterns for name in names)
            for patterns in (include or ["*"], exclude)
        )
        return included and not excluded and path.is_file()

    found: list[Path] = []
    for parent, folders, names in os.walk(directory, onerror=fail):
        shown = [Path(parent, name) for name in folders if not name.startswith(".")]
        folders[:] = [folder.name for folder in shown if not _is_artifact(folder)]
        files = [Path(parent, name) for name in names if not name.startswith(".")]
        found += filter(is_wanted, files)
    return sorted(found)


def suffixes(path: Path) -> tuple[str, str]:
    """The suffix of the format and that of the compression, in lower case."""
    outer = path.suffix.lower()
    if outer in COMPRESSIONS:
        return Path(path.stem).suffix.lower(), outer
    return outer, ""


def spool(stream: BinaryIO, directory: Path) -> Path:
    """Copies a stream that can be read only once to a file, which gets the suffix of the
    compression that its first bytes show."""
    start = stream.read(max(map(len, COMPRESSIONS.values())))
    suffix = next((end for end, magic in COMPRESSIONS.items() if start.startswith(magic)), "")
    path = directory / f"stdin{suffix}"
    with path.open("xb") as file:
        file.write(start)
        shutil.copyfileobj(stream, file)
    return path


def is_binary(path: Path) -> bool:
    """Whether a NUL byte is in the first 8 KiB, as git decides it. Raises InputOutputError."""
    with named_errors(path), path.open("rb") as file:
        return b"\0" in file.read(_SNIFFED_BYTES)


def listing_digest(paths: Sequence[Path]) -> str:
    """Digest of paths, sizes and times: changes when an input file is added, removed or written.
    Standard input never has the same twice. Raises InputOutputError."""
    checksum = xxhash.xxh3_128()
    for path in paths:
        checksum.update(os.fsencode(path))
        if str(path) == STDIN:
            checksum.update(os.urandom(16))
        else:
            with named_errors(path):
                status = path.stat()
            checksum.update(f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return checksum.hexdigest()


@dataclass(frozen=True)
class Reader(Limits):
    """Opens files within the limits, decompressed by their suffix.

    `on_read` gets the number of bytes read from disk, from any thread.
    """

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


class _DecompressedFile(io.RawIOBase):
    """A file, decompressed. Errors are InputOutputErrors that name it."""

    def __init__(self, path: Path, name: str, reader: Reader) -> None:
        self._name, self._reader = name, reader
        self._read = self._produced = 0
        with named_errors(Path(name)):
            self._file = path.open("rb")
            self._size = os.fstat(self._file.fileno()).st_size
        self._stream: Any = self._file
        compression = suffixes(path)[1]
        self._is_compressed = bool(compression)
        if compression == ".gz":
            self._stream = gzip.GzipFile(fileobj=self._file)
        elif compression == ".zst":
            self._stream = pa.CompressedInputStream(pa.PythonFile(self._file, mode="r"), "zstd")

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
        if self._is_compressed:
            self._reader.check_expansion(self._name, self._produced, self._size)
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _is_artifact(directory: Path) -> bool:
    """Whether smtkit wrote the directory: an output below the inputs is no input."""
    return any(directory.glob("run-*/run.json")) or (
        (directory / "manifest.json").exists() and any(directory.glob("run-*/tokenizer.json"))
    )
