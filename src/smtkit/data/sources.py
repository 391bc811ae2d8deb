"""From what a user names to documents: files, directories and globs, read in blocks."""

import codecs
import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path
from typing import Literal

from smtkit.errors import InputOutputError, UsageError

BLOCK_BYTES = 2**20
_SNIFFED_BYTES = 8192

Errors = Literal["strict", "replace"]


@dataclass(frozen=True)
class Document:
    """One document: a file, read as often as asked, a block at a time."""

    path: Path

    def blocks(self) -> Iterator[bytes]:
        """The bytes of the document in blocks of at most 1 MiB. Raises InputOutputError."""
        try:
            with self.path.open("rb") as file:
                while block := file.read(BLOCK_BYTES):
                    yield block
        except OSError as error:
            raise InputOutputError(f"{self.path}: {error.strerror}") from None


@dataclass(frozen=True)
class Part:
    """The bytes of a document from `start` on, to be read once."""

    document: Document
    start: int
    blocks: Iterator[bytes]


@dataclass(frozen=True)
class Found:
    """Documents in a fixed order, and how many files of directories were passed over as binary."""

    documents: list[Document]
    binary: int


def find_documents(
    inputs: Sequence[str], include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Found:
    """The documents that `inputs` (files, directories, globs) name.

    A directory gives its files, recursively and in order of name, without hidden and binary ones
    (a NUL byte in the first 8 KiB, as git decides it); `include` and `exclude` are globs that the
    path below the directory, or any part of it, matches. A file named by itself is always taken.

    Raises UsageError where a path does not exist or nothing is found.
    """
    documents: dict[Path, Document] = {}
    binary = 0
    for path in _expand(inputs):
        if not path.is_dir():
            documents.setdefault(path, Document(path))
            continue
        for file in _walk(path, include, exclude):
            if file in documents:
                continue
            if _is_binary(file):
                binary += 1
            else:
                documents[file] = Document(file)
    if not documents:
        raise UsageError(
            f"{', '.join(inputs)}: no text files found"
            + (f" ({binary} binary files passed over)" if binary else ""),
            "check --include and --exclude" if include or exclude else None,
        )
    return Found(list(documents.values()), binary)


def decode(part: Part, errors: Errors) -> Iterator[str]:
    """The text of UTF-8 bytes. Raises InputOutputError: file and offset of a wrong one."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    position = part.start
    for block in chain(part.blocks, [b""]):
        pending = len(decoder.getstate()[0])
        try:
            yield decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            offset = position - pending + error.start
            raise InputOutputError(
                f"{part.document.path}: byte {offset}: 0x{error.object[error.start]:02x} is not "
                "UTF-8",
                "--errors replace takes U+FFFD in its place, --tokenizer byte takes any bytes",
            ) from None
        position += len(block)


def _expand(inputs: Sequence[str]) -> Iterator[Path]:
    for name in inputs:
        path = Path(name)
        if path.exists():
            yield path
            continue
        matches = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else []
        if not matches:
            raise UsageError(f"{name}: no such file or directory")
        yield from (Path(match) for match in matches)


def _walk(directory: Path, include: Sequence[str], exclude: Sequence[str]) -> Iterator[Path]:
    for path in sorted(_files_below(directory)):
        relative = path.relative_to(directory)
        if any(part.startswith(".") for part in relative.parts):
            continue
        if include and not _matches(relative, include):
            continue
        if not _matches(relative, exclude):
            yield path


def _files_below(directory: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise InputOutputError(f"{error.filename}: {error.strerror}") from None

    for parent, _, names in os.walk(directory, onerror=fail):
        yield from (path for name in names if (path := Path(parent, name)).is_file())


def _matches(relative: Path, patterns: Sequence[str]) -> bool:
    names = (relative.as_posix(), *relative.parts)
    return any(fnmatch(name, pattern) for pattern in patterns for name in names)


def _is_binary(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return b"\0" in file.read(_SNIFFED_BYTES)
    except OSError as error:
        raise InputOutputError(f"{path}: {error.strerror}") from None
