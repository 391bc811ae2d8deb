"""The URI at which runs make an artifact: they work in a staging directory, and upload from it.

    manifest.json
    run-3f9ac1d2-5be07a90/          files that one process of the run uploaded
    run-3f9ac1d2-5be07a90.work/     its `run.json` and receipts, until the commit

Each process uploads to folders of its own, so that no object but the manifest is ever written
twice. A receipt is an empty object, written after a file was uploaded, whose name records the
file's name, bytes, rows and xxh3: one listing shows any machine which files are complete.
"""

import secrets
from collections.abc import Mapping
from pathlib import Path

from smtkit.errors import InputOutputError, LockedError
from smtkit.storage.cache import staging
from smtkit.storage.files import write_atomically
from smtkit.storage.local_store import RUN_RECORD, LocalStore, RunRecord, run_of
from smtkit.storage.manifest import MANIFEST, FileEntry, Manifest
from smtkit.storage.remote import Remote

_WORK = ".work"
_SEPARATOR = "~"


class RemoteStore(LocalStore):
    """An artifact at a URI. `directory` is the staging directory on this machine.

    `uploaded`: finished files of the run at the URI, by logical name.
    """

    def __init__(self, remote: Remote) -> None:
        super().__init__(staging(remote))
        self.remote = remote
        self._token = secrets.token_hex(4)
        self._folder = ""
        self._listing: dict[str, int] = {}
        self._manifest: bytes | None = None

    def names(self) -> set[str]:
        """Lists what is at the URI. Raises UsageError where the bucket does not exist."""
        self.remote.check_bucket()
        self._listing = self.remote.sizes()
        self._manifest = self._read_manifest()
        return {name.partition("/")[0] for name in self._listing}

    def runs(self) -> list[Path]:
        """Staging folders of the runs that have a record at the URI, to which it is copied. Other
        staging folders are ignored: their runs were committed or removed by another machine."""
        folders = set()
        for name in self._listing:
            run = run_of(name)
            if run is None or not name.endswith(f"{_WORK}/{RUN_RECORD}"):
                continue
            record = self.directory / run / RUN_RECORD
            folders.add(record.parent)
            if not record.exists():
                record.parent.mkdir(exist_ok=True)
                write_atomically(record, self.remote.read(name).decode(errors="replace"))
        return sorted(folders)

    def holds_work(self, run: Path) -> bool:
        return bool(self._uploaded_by(run.name)) or super().holds_work(run)

    def begin(self, run: Path, record: RunRecord) -> None:
        """Finds the files that processes of the run have uploaded, and uploads its record."""
        self.join(run, self._uploaded_by(run.name))
        self.remote.write(f"{self._folder}{_WORK}/{RUN_RECORD}", record.text().encode())

    def join(self, run: Path, uploaded: Mapping[str, FileEntry]) -> None:
        run.mkdir(parents=True, exist_ok=True)
        self._folder = f"{run.name}-{self._token}"
        self.uploaded = dict(uploaded)

    def add(self, path: Path, rows: int | None) -> FileEntry:
        """Uploads a finished file and its receipt. A file with rows, a shard, then leaves the
        staging folder."""
        if path.name in self.uploaded and not path.exists():
            return self.uploaded[path.name]
        name = f"{self._folder}/{path.name}"
        try:
            size, checksum = self.remote.upload(path, name)
        except FileNotFoundError:
            raise LockedError(f"{path}: gone: another process writes the same file") from None
        fields = (path.name, str(size), "" if rows is None else str(rows), checksum)
        self.remote.write(f"{self._folder}{_WORK}/{_SEPARATOR.join(fields)}", b"")
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
        listing = self.remote.sizes()
        if self._read_manifest() != self._manifest:
            raise LockedError(
                f"`out` {self.remote}: another run has written it meanwhile",
                "`overwrite` replaces it",
            )
        for entry in manifest.files:
            if listing.get(entry.name) != entry.bytes:
                raise InputOutputError(
                    f"{self.remote.uri_of(entry.name)}: no longer there as it was uploaded",
                    "another run may have written the same artifact; run it again with `overwrite`",
                )
        # A stream that fails would publish half a manifest; a copy in the store does not.
        draft = f"{self._folder}{_WORK}/{MANIFEST}"
        self.remote.write(draft, (manifest.model_dump_json(indent=2) + "\n").encode())
        self.remote.replace(draft, MANIFEST)
        named = {entry.name for entry in manifest.files}
        folders = {name.partition("/")[0] for name in named}
        for name in listing.keys() - named:
            if name.partition("/")[0] in folders:
                self.remote.remove(name)
        for folder in {name.partition("/")[0] for name in {draft, *listing}} - folders:
            if run_of(folder):
                self.remote.remove_directory(folder)

    def collect(self, names: set[str]) -> None:
        """Empties the staging directory."""
        super().collect(set())

    def remove(self, run: Path) -> None:
        super().remove(run)
        for folder in {name.partition("/")[0] for name in self._listing}:
            if run_of(folder) == run.name:
                self.remote.remove_directory(folder)

    def discard_uploads(self) -> None:
        if self._folder:
            self.remote.remove_directory(self._folder)
            self.remote.remove_directory(self._folder + _WORK)

    def _uploaded_by(self, run: str) -> dict[str, FileEntry]:
        """Files that processes of a run have uploaded, by logical name."""
        entries = [_entry_of(name) for name in sorted(self._listing) if run_of(name) == run]
        return {
            entry.logical_name: entry
            for entry in entries
            if entry is not None and self._listing.get(entry.name) == entry.bytes
        }

    def _read_manifest(self) -> bytes | None:
        try:
            return self.remote.read(MANIFEST)
        except FileNotFoundError:
            return None


def _entry_of(name: str) -> FileEntry | None:
    """The file that a receipt records; None if `name` is not a receipt."""
    folder, _, receipt = name.partition(f"{_WORK}/")
    fields = receipt.split(_SEPARATOR)
    if len(fields) != 4:
        return None
    file, size, rows, checksum = fields
    try:
        rows_or_none = int(rows) if rows else None
        return FileEntry(name=f"{folder}/{file}", bytes=int(size), rows=rows_or_none, xxh3=checksum)
    except ValueError:
        return None
