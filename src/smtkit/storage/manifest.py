"""The manifest: what an artifact is, what it was made from, and which files belong to it.

`manifest.json` makes a directory, or a URI, a complete artifact. docs/artifacts.md describes every
field.
"""

import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self

import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from smtkit import __version__
from smtkit.errors import ArtifactError

MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint"
"""First part of the names of the files that hold the state of a training run."""

Kind = Literal["tokens", "encoder", "labels", "rnn", "evaluation"]
MADE_BY = {
    "tokens": "smtkit tokenize or smtkit synthesize",
    "encoder": "smtkit train-encoder",
    "labels": "smtkit extract-labels",
    "rnn": "smtkit train-rnn",
}
"""Commands that make the artifacts which other stages read."""

_FORMAT_VERSIONS = {"encoder": 2, "labels": 5, "rnn": 2}  # 1 for other kinds
_PACKAGES = ("numpy", "pyarrow", "safetensors", "sentencepiece", "torch")


class Record(BaseModel):
    """Content of a JSON file of an artifact, or a part of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def text(self) -> str:
        """The content of the file."""
        return self.model_dump_json(indent=2) + "\n"


class SealedRecord(Record):
    """A file of an artifact that no other file holds a checksum of: it has one of its own."""

    checksum: str | None = None
    """xxh3-128 of all other fields, in the file; None: they are not verified."""

    def text(self) -> str:
        """The content of the file, with its checksum."""
        sealed = self.model_copy(update={"checksum": self._own_checksum()})
        return sealed.model_dump_json(indent=2) + "\n"

    def checked(self, path: str | Path, hint: str | None = None) -> Self:
        """The content of the file `path`, without its checksum. Raises ArtifactError if that is not
        the checksum of the other fields."""
        if self.checksum not in (None, self._own_checksum()):
            raise ArtifactError(f"{path}: damaged: checksum is not that of its content", hint)
        return self.model_copy(update={"checksum": None})

    def _own_checksum(self) -> str:
        fields = json.loads(self.model_dump_json(exclude={"checksum"}))  # NaN is null in the file
        return xxhash.xxh3_128_hexdigest(json.dumps(fields, sort_keys=True).encode())


class FileEntry(Record):
    """One file: `name` is relative to the artifact, `<run>/<logical name>`; `xxh3` is 128 bits."""

    name: str = Field(pattern=r"^[^/.\p{Cc}][^/\p{Cc}]*/[^/.\p{Cc}][^/\p{Cc}]*$")
    bytes: int
    rows: int | None
    xxh3: str = Field(pattern=r"^[0-9a-f]{32}$")

    @property
    def logical_name(self) -> str:
        return self.name.partition("/")[2]


class Parent(Record):
    """An artifact that this one was made from, with its own parents: the whole lineage.

    An artifact that occurs several times has its parents only where it is nearest.
    """

    kind: Kind
    path: str
    digest: str
    parents: list["Parent"]


class Manifest(SealedRecord):
    """The content of `manifest.json`."""

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

    @classmethod
    def of(cls, files: Sequence[FileEntry], kind: Kind, **fields: Any) -> "Manifest":
        """The manifest of an artifact that this process has just made of `files`."""
        return cls(
            **fields,
            kind=kind,
            format_version=format_version(kind),
            smtkit_version=__version__,
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            git_revision=_git_revision(),
            packages={name: metadata.version(name) for name in _PACKAGES},
            finished=now(),
            files=list(files),
            digest=_digest(kind, files),
        )

    @classmethod
    def parse(cls, content: bytes, path: str, *, any_format: bool = False) -> "Manifest":
        """Reads and checks the `content` of a manifest; messages name it `path`.

        `any_format`: also accepts format versions that this smtkit does not read. Raises
        ArtifactError.
        """
        try:
            found = from_json(content)  # refuses halves of characters and more than 200 levels
        except ValueError as error:
            raise ArtifactError(f"{path}: not a manifest: {error}") from None
        fields = found if isinstance(found, dict) else {}
        kind, version = str(fields.get("kind")), fields.get("format_version")
        if version != (allowed := format_version(kind)) and not any_format:
            raise ArtifactError(
                f"{path}: format version is {version}, this smtkit reads {allowed}",
                f"make it again with `overwrite`: {MADE_BY[kind]}" if kind in MADE_BY else None,
            )
        try:
            manifest = cls.model_validate(found)
        except ValidationError as error:
            detail = error.errors()[0]
            key = ".".join(map(str, detail["loc"]))
            raise ArtifactError(f"{path}: {key}: {detail['msg']}") from None
        return manifest.checked(path)

    def ancestor(self, kind: Kind) -> Parent | None:
        """The nearest artifact of `kind` in the lineage."""
        lineage = list(self.parents)
        for parent in lineage:
            if parent.kind == kind:
                return parent
            lineage.extend(parent.parents)
        return None


def without_repeats(parents: Sequence[Parent]) -> list[Parent]:
    """The lineage, with the parents of each artifact only where it is nearest: training in rounds
    would double it in each round."""
    nearest: dict[str, Parent] = {}
    level = list(parents)
    for parent in level:
        if parent.digest not in nearest:
            nearest[parent.digest] = parent
            level.extend(parent.parents)

    def copy(parent: Parent) -> Parent:
        kept = parent.parents if nearest[parent.digest] is parent else []
        return parent.model_copy(update={"parents": [copy(each) for each in kept]})

    return [copy(parent) for parent in parents]


def is_of_training(logical_name: str) -> bool:
    """Whether a file is one from which training goes on. These are no part of an artifact's content
    and do not count in its digest."""
    return logical_name == METRICS or logical_name.startswith(CHECKPOINT)


def format_version(kind: str) -> int:
    """The version of artifacts of `kind` that is written, and the only one that is read."""
    return _FORMAT_VERSIONS.get(kind, 1)


def now() -> str:
    """The time in UTC, as manifests record it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _digest(kind: Kind, files: Sequence[FileEntry]) -> str:
    """Digest of an artifact's content, which excludes times, paths and how it was made."""
    content = sorted(
        (entry.logical_name, entry.bytes, entry.xxh3)
        for entry in files
        if not is_of_training(entry.logical_name)
    )
    text = json.dumps([kind, format_version(kind), content])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _git_revision() -> str | None:
    """Revision checked out in the working directory; None outside a repository."""
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None
