"""The manifest: what an artifact is, what it was made from, and which files belong to it.

An artifact is a directory, or a URI, that is complete if and only if it holds `manifest.json`. Its
files lie in folders named after the runs that wrote them; the manifest is replaced atomically,
last.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from smtkit.errors import ArtifactError, InputOutputError, UsageError
from smtkit.storage import cache
from smtkit.storage.remote import Location, Remote, locate

MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"

Kind = Literal["tokens", "encoder", "labels", "rnn", "evaluation", "report"]
_READINGS = 5  # of a manifest that is replaced again and again
_FORMAT_VERSIONS: dict[str, int] = {"labels": 4}  # of the others: 1

_MADE_BY: dict[str, str] = {  # of those that a stage reads
    "tokens": "smtkit tokenize or smtkit synthesize",
    "encoder": "smtkit train-encoder",
    "labels": "smtkit extract-labels",
    "rnn": "smtkit train-rnn",
}

_Read = TypeVar("_Read")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Record):
    """One file: `name` is relative to the artifact, `<run>/<logical name>`; `xxh3` is 128 bits."""

    name: str = Field(pattern=r"^[^/.\p{Cc}][^/\p{Cc}]*/[^/.\p{Cc}][^/\p{Cc}]*$")
    bytes: int
    rows: int | None
    xxh3: str = Field(pattern=r"^[0-9a-f]{32}$")

    @property
    def logical_name(self) -> str:
        return self.name.partition("/")[2]


class Parent(_Record):
    """An artifact that this one was made from, with its own parents: the whole lineage."""

    kind: Kind
    path: str
    digest: str
    parents: list["Parent"]


class Manifest(_Record):
    """`manifest.json`, field by field as docs/artifacts.md describes it."""

    kind: Kind
    format_version: int
    smtkit_version: str
    command: str
    config: dict[str, Any]
    identity: dict[str, Any]
    seed: int | None
    git_revision: str | None
    packages: dict[str, str]
    started: str
    finished: str
    parents: list[Parent]
    files: list[FileEntry]
    statistics: dict[str, Any]
    digest: str

    def ancestor(self, kind: Kind) -> Parent | None:
        """The nearest artifact of `kind` in the lineage."""
        generation = self.parents
        while generation:
            for parent in generation:
                if parent.kind == kind:
                    return parent
            generation = [grandparent for parent in generation for grandparent in parent.parents]
        return None


class Artifact:
    """A complete artifact, opened for reading. Of one at a URI, the paths are of local copies."""

    def __init__(self, directory: Location, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest
        self._entries = {entry.logical_name: entry for entry in manifest.files}

    @classmethod
    def open(cls, directory: str | os.PathLike[str], *kinds: Kind) -> "Artifact":
        """Opens the artifact in `directory`, path or URI, which must be of one of `kinds` (none:
        any).

        Raises UsageError where it does not exist, ArtifactError where it is not a complete
        artifact of that kind and of this format version, or a file is missing or cut short.
        """
        location = locate(directory)

        def checked(content: bytes) -> "Artifact":
            manifest = _parse(location, content)
            _check_kind(location, manifest.kind, kinds)
            _check_sizes(location, manifest.files)
            return cls(location, manifest)

        return _read_steadily(location, checked)

    def file(self, logical_name: str) -> Path:
        """The path of a file of this artifact. Raises ArtifactError if it has none of the name."""
        return self._paths([self._entry(logical_name)])[0]

    def files(self, prefix: str) -> list[Path]:
        """Paths of the files whose logical name starts with `prefix`, in order of name."""
        names = sorted(name for name in self._entries if name.startswith(prefix))
        return self._paths([self._entries[name] for name in names])

    def rows(self, prefix: str) -> list[int]:
        """Rows of each of `files(prefix)`."""
        names = sorted(name for name in self._entries if name.startswith(prefix))
        return [self._entries[name].rows or 0 for name in names]

    def verified(self, logical_name: str) -> Path:
        """The path of a file whose checksum was found right. Raises ArtifactError otherwise."""
        entry = self._entry(logical_name)
        (path,) = self._paths([entry])
        if isinstance(self.directory, Remote):
            return path  # the cache has checked it
        if (found := hash_file(path)) != entry.xxh3:
            raise ArtifactError(f"{path}: damaged: xxh3 is {found}, the manifest says {entry.xxh3}")
        return path

    def verify(self) -> None:
        """Reads every file and compares checksums; at a URI the files there, and then copies of
        them, which go if they are wrong. Raises ArtifactError at the first difference."""
        for name, entry in self._entries.items():
            if isinstance(self.directory, Remote):
                cache.check(self.directory, entry)
                cache.drop_damaged(entry)
            else:
                self.verified(name)

    def as_parent(self) -> Parent:
        return Parent(
            kind=self.manifest.kind,
            path=str(self.directory),
            digest=self.manifest.digest,
            parents=self.manifest.parents,
        )

    def _paths(self, entries: Sequence[FileEntry]) -> list[Path]:
        if isinstance(self.directory, Remote):
            of_labels = self.manifest.kind == "labels"
            return cache.fetch(self.directory, entries, rows_are_checked=of_labels)
        return [self.directory / entry.name for entry in entries]

    def _entry(self, logical_name: str) -> FileEntry:
        if logical_name not in self._entries:
            raise ArtifactError(
                f"{self.directory}: {self.manifest.kind} artifact without {logical_name}"
            )
        return self._entries[logical_name]


def read_manifest(directory: Location, *, any_format: bool = False) -> Manifest:
    """Reads and checks `directory/manifest.json`. Raises UsageError or ArtifactError.

    `any_format`: also that of an artifact which this smtkit does not read.
    """
    return _read_steadily(directory, lambda content: _parse(directory, content, any_format))


def format_version(kind: str) -> int:
    """The version of artifacts of `kind` that is written, and the only one that is read."""
    return _FORMAT_VERSIONS.get(kind, 1)


def content_digest(kind: Kind, files: Iterable[FileEntry]) -> str:
    """Digest over what the artifact holds; not over times, places, or how it was made."""
    content = sorted(
        (entry.logical_name, entry.bytes, entry.xxh3)
        for entry in files
        if entry.logical_name != METRICS
    )
    text = json.dumps([kind, format_version(kind), content])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def hash_file(path: Path) -> str:
    """xxh3-128 of a file, in hexadecimal. Raises InputOutputError."""
    checksum = xxhash.xxh3_128()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                checksum.update(block)
    except OSError as error:
        raise InputOutputError(f"{path}: {error.strerror}") from None
    return checksum.hexdigest()


def place_in(directory: Location, name: str) -> str:
    """What messages call a file."""
    if isinstance(directory, Remote):
        return directory.place(name)
    return str(directory / name)


def _read_steadily(directory: Location, checked: Callable[[bytes], _Read]) -> _Read:
    """What `checked` makes of the manifest. A run that commits meanwhile may tear it as it is read
    from a store, and removes files of the old one: an error counts if the manifest stays."""
    content = _read(directory)
    for _ in range(_READINGS - 1):
        try:
            return checked(content)
        except ArtifactError:
            before, content = content, _read(directory)
            if content == before:
                raise
    return checked(content)


def _read(directory: Location) -> bytes:
    """The manifest as it lies there."""
    try:
        if isinstance(directory, Remote):
            return directory.read(MANIFEST)
        return (directory / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        exists = directory.sizes() if isinstance(directory, Remote) else directory.exists()
        if not exists:
            raise UsageError(f"{directory}: no such artifact") from None
        raise ArtifactError(
            f"{directory}: not a complete artifact: it holds no {MANIFEST}"
        ) from None
    except OSError as error:
        raise InputOutputError(f"{place_in(directory, MANIFEST)}: {error.strerror}") from None


def _parse(directory: Location, text: bytes, any_format: bool = False) -> Manifest:
    path = place_in(directory, MANIFEST)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not a manifest: {error}") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    kind = str(content.get("kind")) if isinstance(content, dict) else ""
    if version != (allowed := format_version(kind)) and not any_format:
        raise ArtifactError(
            f"{path}: format version is {version}, this smtkit reads {allowed}",
            f"make it again: {_MADE_BY[kind]} ... --overwrite" if kind in _MADE_BY else None,
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        detail = error.errors()[0]
        key = ".".join(map(str, detail["loc"]))
        raise ArtifactError(f"{path}: {key}: {detail['msg']}") from None


def _check_kind(directory: Location, found: Kind, allowed: Sequence[Kind]) -> None:
    if allowed and found not in allowed:
        hint = ", ".join(
            f"{kind}: made by {_MADE_BY[kind]}" for kind in allowed if kind in _MADE_BY
        )
        wanted = " or ".join(allowed)
        raise ArtifactError(f"{directory}: kind is {found}, expected {wanted}", hint or None)


def _check_sizes(directory: Location, files: Sequence[FileEntry]) -> None:
    sizes: Mapping[str, int | None]
    if isinstance(directory, Remote):
        sizes = directory.sizes()
    else:
        sizes = {entry.name: _size(directory / entry.name) for entry in files}
    for entry in files:
        path, size = place_in(directory, entry.name), sizes.get(entry.name)
        if size is None:
            raise ArtifactError(f"{path}: missing, though the manifest names it")
        if size != entry.bytes:
            raise ArtifactError(f"{path}: {size} bytes, the manifest says {entry.bytes}")


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
