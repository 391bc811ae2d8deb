"""The commit protocol: how an artifact comes to be, and how the old one stays whole until then.

A run writes into a folder of its own in the artifact's directory, under a lock; `commit` replaces
the manifest atomically, and then collects what no manifest names. At a URI it is the same in a
staging folder on this machine, from which finished files are uploaded.
"""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import filterfalse
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import smtkit
from smtkit.config import Config
from smtkit.errors import InputOutputError, LockedError, UsageError
from smtkit.storage.files import write_atomically
from smtkit.storage.folders import RUN_PREFIX, RUN_RECORD, collect, is_of_runs, run_of, runs_of
from smtkit.storage.identity import difference_of, key_of, read_record
from smtkit.storage.locks import DirectoryLock
from smtkit.storage.manifest import (
    MANIFEST,
    Artifact,
    FileEntry,
    Kind,
    Manifest,
    content_digest,
    format_version,
    hash_file,
    read_manifest,
)
from smtkit.storage.provenance import command_line, git_revision, package_versions
from smtkit.storage.remote import Remote, locate
from smtkit.storage.uploads import Uploads


class Run:
    """A stage at work on one artifact. Use as a context manager.

    `finished` is the manifest of an artifact that is complete already (`resume`): there is nothing
    to do. `directory` is where to write; with `resume` an earlier run may have left its work there,
    and `has` tells which files other machines have added.
    When the block raises, the folder is removed unless `keep` was called: nothing half written
    stays, and nothing that a later run could go on from is lost.

    `part`: of several processes that write files of their own to one `directory` at the same time.
    None of them commits; a run with `resume`, when all have ended, takes over the directory.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        kind: Kind,
        config: Config,
        parents: Sequence[Artifact] = (),
        *,
        seed: int | None = None,
        overwrite: bool = False,
        resume: bool = False,
        part: bool = False,
        inputs: Mapping[str, str] | None = None,
    ) -> None:
        self.location = locate(path)
        remote = self.location if isinstance(self.location, Remote) else None
        self._uploads = Uploads(remote) if remote else None
        self.path = self._uploads.staging if self._uploads else Path(str(self.location))
        self.kind = kind
        self.finished: Manifest | None = None
        self._config = config
        self._parents = [parent.as_parent() for parent in parents]
        self._seed = seed
        self._overwrite = overwrite
        self._resume = resume
        self._part = part
        self._identity: dict[str, Any] = {
            **config.identity(),
            **{f"input {parent.kind}": parent.digest for parent in self._parents},
            **(inputs or {}),
        }
        # What a run must share that goes on from another's files.
        self._same = {"kind": kind, "format_version": format_version(kind), **self._identity}
        self._entries: dict[str, FileEntry] = {}
        self._uploaded: dict[str, FileEntry] = {}
        self._kept = part
        self._started = datetime.now(UTC)

    def __enter__(self) -> Self:
        self._created = [p for p in (self.path, *self.path.parents) if not p.exists()]
        self._lock: DirectoryLock | None = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = DirectoryLock(self.path, shared=self._part)
        except BlockingIOError:
            raise LockedError(f"--out {self.location}: another run is writing it") from None
        except (FileExistsError, NotADirectoryError):
            raise UsageError(f"--out {self.path}: not a directory") from None
        except OSError as error:
            if self._nothing_to_do():
                return self
            reason = f"{error.filename or self.path}: {error.strerror}"
            raise InputOutputError(f"--out {reason}") from None
        except InputOutputError:
            self._withdraw()
            raise
        try:
            self._take_place()
            if self._uploads and self.finished is None:
                self._take_uploads(self._uploads.whole(self.directory.name))
                self._uploads.announce()
        except BaseException:
            self._withdraw()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and self.finished is None and not self._kept:
            shutil.rmtree(self.directory, ignore_errors=True)
            if self._uploads:
                self._uploads.discard()
            self._withdraw()
        elif self._lock:
            self._lock.release()

    def _withdraw(self) -> None:
        """Leaves the place as it was found."""
        if self._lock:
            self._lock.release(in_vain=True)
        with contextlib.suppress(OSError):
            for directory in self._created:
                directory.rmdir()

    def keep(self) -> None:
        """From now on the folder holds something to resume from."""
        self._kept = True

    def has(self, logical_name: str) -> bool:
        """Whether a file is finished: it lies in the folder, or was uploaded before."""
        return logical_name in self._uploaded or (self.directory / logical_name).exists()

    def add(self, logical_name: str, rows: int | None = None) -> FileEntry:
        """Takes a finished file of the run's folder into the artifact.

        At a URI it is uploaded, and what has rows, a shard, leaves the folder. Raises
        InputOutputError; the file stays, to be uploaded by a run that resumes.
        """
        path = self.directory / logical_name
        if self._uploads is None:
            entry = FileEntry(
                name=f"{self.directory.name}/{logical_name}",
                bytes=path.stat().st_size,
                rows=rows,
                xxh3=hash_file(path),
            )
        elif logical_name in self._uploaded and not path.exists():
            entry = self._uploaded[logical_name]
        else:
            entry = self._upload(path, rows)
        self._entries[logical_name] = entry
        return entry

    def _take_uploads(self, uploaded: dict[str, FileEntry]) -> None:
        """Goes on from what is at the URI."""
        if self._uploads:
            self._uploaded = uploaded
            self._uploads.begin(self.directory.name, self._record())

    def _upload(self, path: Path, rows: int | None) -> FileEntry:
        assert self._uploads
        try:
            entry = self._uploads.add(path, rows)
        except FileNotFoundError:
            raise LockedError(f"{path}: gone: another process writes the same file") from None
        except InputOutputError:
            self.keep()
            raise
        self._uploaded[path.name] = entry
        if rows is not None:
            path.unlink(missing_ok=True)
        return entry

    def commit(self, statistics: Mapping[str, Any], config: Config | None = None) -> Manifest:
        """Makes the files that were added the artifact, and removes all others.

        `config`: what the manifest says instead of the settings given, where these leave open what
        only the inputs told. A resumed run is still compared with the settings given.
        """
        files = [self._entries[name] for name in sorted(self._entries)]
        manifest = Manifest(
            kind=self.kind,
            format_version=format_version(self.kind),
            smtkit_version=smtkit.__version__,
            command=command_line(),
            config=(config or self._config).model_dump(mode="json"),
            identity=self._identity,
            seed=self._seed,
            git_revision=git_revision(),
            packages=package_versions(),
            started=self._started.isoformat(timespec="seconds"),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            parents=self._parents,
            files=files,
            statistics=dict(statistics),
            digest=content_digest(self.kind, files),
        )
        if self._uploads:
            self.keep()
            self._uploads.commit(manifest)
        else:
            write_atomically(self.path / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
        self.finished = manifest
        self._collect({entry.name for entry in files})
        return manifest

    def _take_place(self) -> None:
        names = self._names()
        committed = self._committed(names)
        runs = self._runs()
        strangers = sorted(filterfalse(is_of_runs, names))
        if strangers and not committed and not runs:
            raise UsageError(
                f"--out {self.location}: holds other files ({strangers[0]})",
                "name a new or empty directory",
            )
        if committed and not (self._resume or self._overwrite):
            raise UsageError(
                f"--out {self.location}: exists", "--overwrite makes it anew, --resume keeps it"
            )
        unfinished = self._unfinished(runs, runs_of(committed))
        goes_on = self._resume or self._part
        if goes_on and any(self._goes_on_from(record) for record in unfinished):
            return
        if self._resume and committed and self._is_complete(committed):
            return
        if goes_on and not committed and unfinished:
            self._refuse_difference(self._difference_from(unfinished[-1]))
        for run in unfinished:
            shutil.rmtree(run.parent)
            if self._uploads:
                self._uploads.remove(run.parent.name)
        self._start()

    def _names(self) -> set[str]:
        """What the directory, or URI, holds."""
        if self._uploads:
            self._uploads.look()
            return self._uploads.names()
        return {entry.name for entry in self.path.iterdir()}

    def _runs(self) -> list[Path]:
        """Records of runs that are at work here, or were and have not ended. At a URI, which others
        may have written since, only of those that still lie there."""
        at_work = self._uploads.take_records() if self._uploads else None
        records = sorted(self.path.glob(f"*/{RUN_RECORD}"))
        if at_work is not None:
            return [record for record in records if record.parent.name in at_work]
        return [record for record in records if run_of(record.parent.name)]

    def _committed(self, names: set[str]) -> Manifest | None:
        """The artifact that is there. Raises UsageError where it is of another kind, also with
        `overwrite`: what was named by mistake is not lost."""
        if MANIFEST not in names:
            return None
        manifest = read_manifest(self.location, any_format=self._overwrite)
        if manifest.kind != self.kind:
            raise UsageError(
                f"--out {self.location}: holds an artifact of kind {manifest.kind}, not "
                f"{self.kind}",
                "name another directory",
            )
        return manifest

    def _nothing_to_do(self) -> bool:
        """Whether a directory that cannot be written holds what is to be made."""
        if not self._resume or self._uploads or not (self.path / MANIFEST).exists():
            return False
        manifest = self._committed({MANIFEST})
        return manifest is not None and self._is_complete(manifest)

    def _is_complete(self, manifest: Manifest) -> bool:
        """Whether there is nothing to do. Raises UsageError where the settings were others."""
        made = {"kind": manifest.kind, "format_version": manifest.format_version}
        difference = difference_of({**made, **manifest.identity}, self._same)
        if difference is None:
            self.finished = manifest
        else:
            self._refuse_difference(difference)
        return difference is None

    def _goes_on_from(self, record: Path) -> bool:
        """Takes over the folder of an unfinished run, if it computes the same."""
        if self._difference_from(record) is not None:
            return False
        self._started = read_record(record)[1]
        self.directory, self._kept = record.parent, True
        if not self._part:
            for temporary in self.directory.glob(".*"):  # of a process that was killed
                temporary.unlink(missing_ok=True)
        return True

    def _difference_from(self, record: Path) -> str | None:
        return difference_of(read_record(record)[0], self._same)

    def _refuse_difference(self, difference: str | None) -> None:
        if difference is not None and not self._overwrite:
            raise UsageError(
                f"--out {self.location}: cannot resume: {difference}",
                "--overwrite makes it anew",
            )

    def _unfinished(self, runs: Sequence[Path], named: set[str | None]) -> list[Path]:
        """Records of runs that hold work and that no manifest names."""
        unfinished = [run for run in runs if run.parent.name not in named]
        holding_work = any(self._holds_work(run.parent) for run in unfinished)
        if holding_work and not (self._resume or self._overwrite or self._part):
            raise UsageError(
                f"--out {self.location}: holds an unfinished run",
                "--resume goes on with it, --overwrite starts anew",
            )
        return unfinished

    def _holds_work(self, run: Path) -> bool:
        uploaded = self._uploads.whole(run.name) if self._uploads else {}
        return bool(uploaded) or len(list(run.iterdir())) > 1

    def _start(self) -> None:
        name = key_of(self._same) if self._part else secrets.token_hex(4)
        self.directory = self.path / f"{RUN_PREFIX}{name}"
        self.directory.mkdir(exist_ok=self._part)  # parts may start at the same moment
        write_atomically(self.directory / RUN_RECORD, json.dumps(self._record(), indent=2) + "\n")

    def _record(self) -> dict[str, Any]:
        """What identifies this run, for one that resumes it."""
        return {"identity": self._same, "started": self._started.isoformat(timespec="seconds")}

    def _collect(self, named: set[str]) -> None:
        """Removes what no manifest names."""
        collect(self.path, None if self._uploads else self.directory, named)
