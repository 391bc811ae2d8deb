"""Where runs make an artifact: in a local directory, or at a URI through a staging directory.

    manifest.json                   names the files of the artifact
    run-3f9ac1d2/                   the files of one run, and `run.json` until it is committed

At a URI each process uploads to folders of its own, so that no object but the manifest is ever
written twice. A receipt is an empty object, written after a file was uploaded, whose name records
the file's name, bytes, rows and xxh3: one listing shows any machine which files are complete.

    run-3f9ac1d2-5be07a90/          the files that one process of the run uploaded
    run-3f9ac1d2-5be07a90.work/     its `run.json` and receipts, until the commit
"""

import contextlib
import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from smtkit.config import LIMITS
from smtkit.errors import ArtifactError, InputOutputError, LockedError
from smtkit.storage.cache import staging
from smtkit.storage.files import copy_hashed, hash_file, named_errors, read_record, write_atomically
from smtkit.storage.location import Location
from smtkit.storage.locks import LOCK
from smtkit.storage.manifest import MANIFEST, FileEntry, Manifest, SealedRecord
from smtkit.storage.remote import Remote

RUN_RECORD = "run.json"
_DRAFTS = f".{MANIFEST}."
_RUN_FOLDER = re.compile(r"(run-[0-9a-f]{8})(-[0-9a-f]{8}(\.work)?)?")
_RECEIPT = re.compile(r"([^/]+)\.work/(\w[\w.-]*)~(\d+)~(\d*)~([0-9a-f]{32})")


class RunRecord(SealedRecord):
    """`run.json`. Runs of the same identity (kind, format version, settings and inputs) compute the
    same artifact, so that one can resume another."""

    identity: dict[str, Any]
    started: str

    @classmethod
    def read(cls, run: Path) -> "RunRecord":
        """Reads the record in the folder of a run. Raises ArtifactError."""
        path = run / RUN_RECORD
        try:
            record = cls.model_validate_json(read_record(path))
        except (FileNotFoundError, NotADirectoryError):
            raise ArtifactError(f"{path}: missing", "`overwrite` starts anew") from None
        except ValidationError as error:
            message = f"{path}: damaged: {error.errors()[0]['msg']}"
            raise ArtifactError(message, "`overwrite` starts anew") from None
        return record.checked(path, "`overwrite` starts anew")

    def key(self) -> str:
        """Eight hexadecimal digits, the same for all parts of one run."""
        text = json.dumps(self.identity, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def difference_from(
        self, earlier: Mapping[str, Any], *, may_end_later: bool = False
    ) -> str | None:
        """The first key in which this identity differs from an `earlier` one, as a message.

        `may_end_later`: a limit of the run that was raised or removed is no difference.
        """
        for key in sorted(earlier.keys() | self.identity.keys()):
            before, after = earlier.get(key), self.identity.get(key)
            if before == after:
                continue
            if not (may_end_later and key in LIMITS and _ends_later(before, after)):
                return f"{key} was {before!r:.200}, is {after!r:.200}"
        return None


def _ends_later(before: Any, after: Any) -> bool:
    """Whether a limit was raised or removed."""
    return isinstance(before, int | float) and (after is None or after > before)


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
        runs = [record.parent for record in records if run_of(record.parent.name)]
        return [run for run in runs if not run.is_symlink()]

    def holds_work(self, run: Path) -> bool:
        """Whether a run has left more than its record."""
        return len(list(run.iterdir())) > 1

    def begin(self, run: Path, record: RunRecord) -> None:
        """Called once by each process of the run in the folder `run`, after `names`."""

    def add(self, path: Path, rows: int | None) -> FileEntry:
        """Describes a finished file, `path` in the folder of the run, for the manifest."""
        name, checksum = f"{path.parent.name}/{path.name}", hash_file(path)
        return FileEntry(name=name, bytes=path.stat().st_size, rows=rows, xxh3=checksum)

    def commit(self, manifest: Manifest) -> None:
        """Replaces the manifest atomically."""
        write_atomically(self.directory / MANIFEST, manifest.text())

    def mark(self) -> None:
        """Sets the time of the manifest to now, for `make`. A read-only one keeps its time."""
        with contextlib.suppress(OSError):
            (self.directory / MANIFEST).touch()

    def collect(self, names: set[str], unfinished: Iterable[Path] = ()) -> None:
        """Removes all files of runs but `names` and those of `unfinished` runs. What cannot be
        removed is left to the next run on this artifact. Links are removed, not followed."""
        kept = {run.name for run in unfinished}
        for run in filter(lambda path: run_of(path.name), self.directory.iterdir()):
            if run.name in kept:
                continue
            if run.is_symlink() or not run.is_dir():
                with contextlib.suppress(OSError):
                    run.unlink()
                continue
            if not any(name.startswith(f"{run.name}/") for name in names):
                shutil.rmtree(run, ignore_errors=True)
                continue
            for file in run.iterdir():
                if f"{run.name}/{file.name}" not in names:
                    with contextlib.suppress(OSError):
                        file.unlink()
        for draft in self.directory.glob(f"{_DRAFTS}*"):
            with contextlib.suppress(OSError):
                draft.unlink()

    def tidy(self, names: set[str], unfinished: Sequence[Path]) -> None:
        """Removes what a commit that was killed has left: all but `names`, the files of the
        manifest, and `unfinished` runs. Called after `names` and `runs`."""
        self.collect(names, unfinished)

    def remove(self, run: Path) -> None:
        """Removes a run that is not committed."""
        with named_errors(run):
            shutil.rmtree(run)

    def damage(self, name: str) -> str | None:
        """Reads an uploaded file by its logical name: what is wrong with it, after which it counts
        as not finished; None if it is whole, or was not uploaded."""
        return None

    def discard_uploads(self) -> None:
        """Removes what this process has uploaded."""


class RemoteStore(LocalStore):
    """An artifact at a URI. `directory` is the staging directory; `uploaded` are the finished files
    of the run at the URI, by logical name."""

    def __init__(self, remote: Remote) -> None:
        super().__init__(staging(remote))
        self._remote = remote
        self._token = secrets.token_hex(4)
        self._folder = ""
        self._sizes: dict[str, int] = {}
        self._manifest: bytes | None = None

    def names(self) -> set[str]:
        """Lists what is at the URI. Raises UsageError where the bucket does not exist."""
        self._remote.check_bucket()
        self._sizes = self._remote.sizes()
        self._manifest = self._read_manifest()
        return self._folders()

    def runs(self) -> list[Path]:
        """Staging folders of the runs that have a record at the URI, from which it is copied. The
        runs of other staging folders have been committed or removed by another machine."""
        folders = set()
        for name in self._sizes:
            if (run := run_of(name)) and name.endswith(f".work/{RUN_RECORD}"):
                record = self.directory / run / RUN_RECORD
                folders.add(record.parent)
                if not record.exists():
                    record.parent.mkdir(exist_ok=True)
                    write_atomically(record, self._remote.read(name).decode(errors="replace"))
        return sorted(folders)

    def holds_work(self, run: Path) -> bool:
        return bool(self._uploaded_by(run)) or super().holds_work(run)

    def begin(self, run: Path, record: RunRecord) -> None:
        """Finds the run's uploaded files, and uploads its record."""
        run.mkdir(parents=True, exist_ok=True)
        self.uploaded = self._uploaded_by(run)
        self._folder = f"{run.name}-{self._token}"
        self._remote.write(f"{self._folder}.work/{RUN_RECORD}", record.text().encode())

    def add(self, path: Path, rows: int | None) -> FileEntry:
        """Uploads a finished file and its receipt. A file with rows, a shard, then leaves the
        staging folder."""
        if path.name in self.uploaded and not path.exists():
            return self.uploaded[path.name]
        name = f"{self._folder}/{path.name}"
        try:
            size, checksum = self._remote.upload(path, name)
        except FileNotFoundError:
            raise LockedError(f"{path}: gone: another process writes the same file") from None
        shown = "" if rows is None else rows
        self._remote.write(f"{self._folder}.work/{path.name}~{size}~{shown}~{checksum}", b"")
        entry = FileEntry(name=name, bytes=size, rows=rows, xxh3=checksum)
        self.uploaded[path.name] = entry
        if rows is not None:
            path.unlink(missing_ok=True)
        return entry

    def commit(self, manifest: Manifest) -> None:
        """Replaces the manifest, and removes the files of runs that it does not name.

        Raises LockedError where another run has replaced the manifest since this one began,
        InputOutputError where a file is missing.
        """
        self._sizes = self._remote.sizes()
        if self._read_manifest() != self._manifest:
            message = f"`out` {self._remote}: another run has written it meanwhile"
            raise LockedError(message, "`overwrite` replaces it")
        for entry in manifest.files:
            if self._sizes.get(entry.name) != entry.bytes:
                raise InputOutputError(
                    f"{self._remote.uri_of(entry.name)}: no longer there as it was uploaded",
                    "another run may have written the same artifact; run it again with `overwrite`",
                )
        # A stream that fails would publish half a manifest; a copy in the store does not.
        draft = f"{self._folder}.work/{MANIFEST}"
        self._remote.write(draft, manifest.text().encode())
        self._remote.replace(draft, MANIFEST)
        self._remove_all_but({entry.name for entry in manifest.files}, set())
        self._remote.remove_directory(f"{self._folder}.work")

    def mark(self) -> None:
        """Objects at a URI keep their time."""

    def collect(self, names: set[str], unfinished: Iterable[Path] = ()) -> None:
        """Empties the staging directory."""
        super().collect(set(), unfinished)

    def tidy(self, names: set[str], unfinished: Sequence[Path]) -> None:
        """Removes what is left at the URI. A run on another machine has its record there."""
        self.collect(set(), unfinished)
        self._remove_all_but(names, {run.name for run in unfinished})

    def _remove_all_but(self, names: set[str], unfinished: set[str]) -> None:
        kept = {name.partition("/")[0] for name in names}
        for name in self._sizes.keys() - names:
            if name.partition("/")[0] in kept:
                self._remote.remove(name)
        for folder in self._folders() - kept:
            if (run := run_of(folder)) and run not in unfinished:
                self._remote.remove_directory(folder)

    def remove(self, run: Path) -> None:
        super().remove(run)
        for folder in self._folders():
            if run_of(folder) == run.name:
                self._remote.remove_directory(folder)

    def damage(self, name: str) -> str | None:
        if (entry := self.uploaded.get(name)) is None:
            return None
        with contextlib.suppress(FileNotFoundError):
            size, checksum = copy_hashed(self._remote.blocks(entry.name))
            if (size, checksum) == (entry.bytes, entry.xxh3):
                return None
        del self.uploaded[name]
        self._remote.remove(entry.name)
        return f"{self._remote.uri_of(entry.name)}: damaged: not what was uploaded"

    def discard_uploads(self) -> None:
        if self._folder:
            self._remote.remove_directory(self._folder)
            self._remote.remove_directory(f"{self._folder}.work")

    def _folders(self) -> set[str]:
        return {name.partition("/")[0] for name in self._sizes}

    def _read_manifest(self) -> bytes | None:
        return self._remote.read(MANIFEST) if MANIFEST in self._sizes else None

    def _uploaded_by(self, run: Path) -> dict[str, FileEntry]:
        """Complete files of a run at the URI, by logical name, as receipts record them."""
        uploaded = {}
        for receipt in map(_RECEIPT.fullmatch, sorted(self._sizes)):
            if receipt and run_of(receipt[1]) == run.name:
                folder, file, size, rows, checksum = receipt.groups()
                entry = FileEntry(
                    name=f"{folder}/{file}",
                    bytes=int(size),
                    rows=int(rows) if rows else None,
                    xxh3=checksum,
                )
                if self._sizes.get(entry.name) == entry.bytes:
                    uploaded[file] = entry
        return uploaded


def open_store(location: Location) -> LocalStore:
    """The store of an artifact at `location`."""
    return RemoteStore(location) if isinstance(location, Remote) else LocalStore(location)


def run_of(name: str) -> str | None:
    """The run that a folder, or a file in it, belongs to by its name; None if it is not a run's."""
    found = _RUN_FOLDER.fullmatch(name.partition("/")[0])
    return found[1] if found else None


def is_of_runs(name: str) -> bool:
    """Whether a name in an artifact's directory is one that runs use."""
    return name in (MANIFEST, LOCK) or name.startswith(_DRAFTS) or run_of(name) is not None
