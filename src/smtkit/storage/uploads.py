"""What a run that writes to a URI does besides: it works in a staging folder, and uploads from it.

A process uploads into a folder of its own, `RUN-TOKEN`, so that nothing at a URI is ever written
twice but the manifest. Beside it lies `RUN-TOKEN.work`: `run.json`, and a receipt for every file
that was uploaded whole: an object without content, whose name says the file's name, bytes, rows and
xxh3. So one listing says what there is to go on from, on any machine.
"""

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smtkit.errors import InputOutputError, LockedError
from smtkit.storage.cache import staging
from smtkit.storage.files import write_atomically
from smtkit.storage.folders import RUN_RECORD, run_of
from smtkit.storage.manifest import MANIFEST, FileEntry, Manifest
from smtkit.storage.remote import Remote

_WORK = ".work"
_SEPARATOR = "~"


class Uploads:
    """The files at a URI, as the runs of one process find and add to them."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self.staging = staging(remote)
        self._token = secrets.token_hex(4)
        self._folder = ""
        self._record: bytes | None = None
        self._found: dict[str, int] = {}
        self._manifest: bytes | None = None

    def look(self) -> None:
        """Lists what is there. Raises UsageError where there is no such bucket."""
        self.remote.check_writable()
        self._found = self.remote.sizes()
        self._manifest = self._read_manifest()

    def names(self) -> set[str]:
        """What the directory holds."""
        return {name.partition("/")[0] for name in self._found}

    def take_records(self) -> set[str]:
        """Makes the runs that processes have announced here, and that none has committed since,
        known to the staging folder. Returns their names: what lies there of others is of the past.
        """
        at_work = set()
        for name in self._found:
            folder, _, file = name.partition("/")
            run = run_of(folder)
            if file != RUN_RECORD or not folder.endswith(_WORK) or run is None:
                continue
            at_work.add(run)
            record = self.staging / run / RUN_RECORD
            if not record.exists():
                record.parent.mkdir(exist_ok=True)
                write_atomically(record, self.remote.read(name).decode(errors="replace"))
        return at_work

    def whole(self, run: str) -> dict[str, FileEntry]:
        """The files that processes of `run` have uploaded, by their logical names."""
        entries = (self._entry_of(name) for name in sorted(self._found))
        return {
            entry.logical_name: entry
            for entry in entries
            if entry is not None
            and run_of(entry.name.partition("/")[0]) == run
            and self._found.get(entry.name) == entry.bytes
        }

    def begin(self, run: str, record: Mapping[str, Any]) -> None:
        """From now on uploads are of this run, whose record is the first of them."""
        self._folder = f"{run}-{self._token}"
        self._record = json.dumps(record, indent=2).encode()

    def announce(self) -> None:
        """Writes the run's record, once."""
        if self._record is not None:
            self.remote.write(f"{self._folder}{_WORK}/{RUN_RECORD}", self._record)
            self._record = None

    def add(self, path: Path, rows: int | None) -> FileEntry:
        """Uploads a finished file, and then says that it is whole."""
        self.announce()
        name = f"{self._folder}/{path.name}"
        size, checksum = self.remote.upload(path, name)
        fields = (path.name, str(size), "" if rows is None else str(rows), checksum)
        self.remote.write(f"{self._folder}{_WORK}/{_SEPARATOR.join(fields)}", b"")
        return FileEntry(name=name, bytes=size, rows=rows, xxh3=checksum)

    def commit(self, manifest: Manifest) -> None:
        """Replaces the manifest, and removes what it does not name.

        Raises LockedError where it is no longer the manifest that was there when the run began.
        """
        listed = self.remote.sizes()
        if self._read_manifest() != self._manifest:
            raise LockedError(
                f"--out {self.remote}: another run has written it meanwhile",
                "--overwrite makes it anew",
            )
        for entry in manifest.files:
            if listed.get(entry.name) != entry.bytes:
                raise InputOutputError(
                    f"{self.remote.place(entry.name)}: no longer there as it was uploaded",
                    "another run may have written the same artifact; run it again with --overwrite",
                )
        # A stream that fails would publish half a manifest; a copy does not.
        draft = f"{self._folder}{_WORK}/{MANIFEST}"
        self.remote.write(draft, (manifest.model_dump_json(indent=2) + "\n").encode())
        self.remote.replace(draft, MANIFEST)
        named = {entry.name for entry in manifest.files}
        folders = {name.partition("/")[0] for name in named}
        for name in listed.keys() - named:
            if name.partition("/")[0] in folders:
                self.remote.remove(name)
        draft_folder = draft.partition("/")[0]
        for folder in {draft_folder, *(name.partition("/")[0] for name in listed)} - folders:
            if run_of(folder):
                self.remote.remove_directory(folder)

    def remove(self, run: str) -> None:
        """Removes what processes of `run`, which no manifest names, have uploaded."""
        for folder in self.names():
            if run_of(folder) == run:
                self.remote.remove_directory(folder)

    def discard(self) -> None:
        """Removes what this process has uploaded."""
        if self._folder:
            self.remote.remove_directory(self._folder)
            self.remote.remove_directory(self._folder + _WORK)

    def _entry_of(self, name: str) -> FileEntry | None:
        """What a receipt says; None of another file."""
        work, _, receipt = name.partition("/")
        folder = work.removesuffix(_WORK)
        if folder == work or receipt.count(_SEPARATOR) != 3:
            return None
        file, size, rows, checksum = receipt.split(_SEPARATOR)
        try:
            return FileEntry(
                name=f"{folder}/{file}",
                bytes=int(size),
                rows=int(rows) if rows else None,
                xxh3=checksum,
            )
        except ValueError:
            return None

    def _read_manifest(self) -> bytes | None:
        try:
            return self.remote.read(MANIFEST)
        except FileNotFoundError:
            return None
