"""The directory in which runs make an artifact: their folders, records and files.

manifest.json       names the files of the artifact
run-3f9ac1d2/       the files of one run, and `run.json` until it is committed
"""

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from smtkit.errors import ArtifactError
from smtkit.storage.files import hash_file, named_errors, write_atomically
from smtkit.storage.locks import LOCK
from smtkit.storage.manifest import MANIFEST, FileEntry, Manifest

RUN_RECORD = "run.json"
_DRAFTS = f".{MANIFEST}."
_RUN_FOLDER = re.compile(r"(run-[0-9a-f]{8})(-[0-9a-f]{8}(\.work)?)?")


class RunRecord(BaseModel):
    """`run.json`: runs of the same identity compute the same artifact, so one can resume another.

    `identity`: kind, format version, settings and inputs.
    """

    identity: dict[str, Any]
    started: str

    @classmethod
    def read(cls, run: Path) -> "RunRecord":
        """Reads the record in the folder of a run. Raises ArtifactError."""
        try:
            return cls.model_validate_json((run / RUN_RECORD).read_bytes())
        except (OSError, ValidationError) as error:
            reason = error.strerror if isinstance(error, OSError) else error.errors()[0]["msg"]
            raise ArtifactError(
                f"{run / RUN_RECORD}: damaged: {reason}", "`overwrite` starts anew"
            ) from None

    def text(self) -> str:
        """The content of the file."""
        return self.model_dump_json(indent=2) + "\n"

    def key(self) -> str:
        """Eight hexadecimal digits, the same for all parts of one run."""
        text = json.dumps(self.identity, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def difference_from(self, earlier: Mapping[str, Any]) -> str | None:
        """The first key in which this identity differs from an `earlier` one, as a message."""
        for key in sorted(earlier.keys() | self.identity.keys()):
            before, after = earlier.get(key), self.identity.get(key)
            if before != after:
                return f"{key} was {before!r}, is {after!r}"
        return None


class LocalStore:
    """An artifact in a directory of this machine, which runs write to directly."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.uploaded: dict[str, FileEntry] = {}

    def names(self) -> set[str]:
        """Names of the files and folders of the artifact; none where there is no directory."""
        with named_errors(self.directory):
            exists = self.directory.is_dir()
            return {path.name for path in self.directory.iterdir()} if exists else set()

    def runs(self) -> list[Path]:
        """Folders of runs that have not been committed or removed."""
        records = sorted(self.directory.glob(f"*/{RUN_RECORD}"))
        return [record.parent for record in records if run_of(record.parent.name)]

    def holds_work(self, run: Path) -> bool:
        """Whether the folder of a run holds more than its record."""
        return len(list(run.iterdir())) > 1

    def begin(self, run: Path, record: RunRecord) -> None:
        """Called once by the process that starts or resumes the run in folder `run`."""

    def join(self, run: Path, uploaded: Mapping[str, FileEntry]) -> None:
        """Called once by each other process of the run, with the first one's `uploaded`."""

    def add(self, path: Path, rows: int | None) -> FileEntry:
        """Describes a finished file, `path` in the folder of the run, for the manifest."""
        name, checksum = f"{path.parent.name}/{path.name}", hash_file(path)
        return FileEntry(name=name, bytes=path.stat().st_size, rows=rows, xxh3=checksum)

    def commit(self, manifest: Manifest) -> None:
        """Replaces the manifest atomically."""
        write_atomically(self.directory / MANIFEST, manifest.model_dump_json(indent=2) + "\n")

    def collect(self, names: set[str]) -> None:
        """Removes all files of runs but `names`. What cannot be removed is left to the next
        commit."""
        folders = {name.partition("/")[0] for name in names}
        for run in filter(lambda path: run_of(path.name), self.directory.iterdir()):
            if run.name not in folders:
                shutil.rmtree(run, ignore_errors=True)
                continue
            for file in run.iterdir():
                if f"{run.name}/{file.name}" not in names:
                    with contextlib.suppress(OSError):
                        file.unlink()
        for draft in self.directory.glob(f"{_DRAFTS}*"):
            draft.unlink(missing_ok=True)

    def remove(self, run: Path) -> None:
        """Removes a run that is not committed."""
        shutil.rmtree(run)

    def discard_uploads(self) -> None:
        """Removes what this process has uploaded."""


def run_of(name: str) -> str | None:
    """The run that a folder, or a file in it, belongs to by its name; None if it is not a run's."""
    found = _RUN_FOLDER.fullmatch(name.partition("/")[0])
    return found[1] if found else None


def runs_of(manifest: Manifest | None) -> set[str | None]:
    """Runs that wrote the artifact's files."""
    return {run_of(entry.name) for entry in manifest.files} if manifest else set()


def is_written_by_runs(name: str) -> bool:
    """Whether a name in an artifact's directory is one that runs use."""
    return name in (MANIFEST, LOCK) or name.startswith(_DRAFTS) or run_of(name) is not None
