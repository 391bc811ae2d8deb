"""The commit protocol: a run replaces an artifact as a whole, and the old one stays until then.

A run writes into a folder of its own in the artifact's directory, under a lock. `commit` replaces
the manifest atomically, and then removes the files that it does not name. A run that writes to a
URI does the same in a staging directory on this machine, from which finished files are uploaded.
"""

import contextlib
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypedDict

from smtkit.config import Config
from smtkit.errors import InputOutputError, LockedError, UsageError
from smtkit.storage.artifact import Artifact, read_manifest
from smtkit.storage.files import named_errors, write_atomically
from smtkit.storage.location import PathOrURI, locate
from smtkit.storage.locks import DirectoryLock
from smtkit.storage.manifest import (
    CHECKPOINT,
    MANIFEST,
    FileEntry,
    Kind,
    Manifest,
    format_version,
    is_of_training,
    now,
    without_repeats,
)
from smtkit.storage.store import RUN_RECORD, RunRecord, is_of_runs, open_store, run_of


class Existing(TypedDict, total=False):
    """What may happen to an artifact or an unfinished run that exists where a run is to write."""

    overwrite: bool
    """It may be replaced."""
    resume: bool
    """It is kept if it is finished, and continued if it is not. With both, one of other settings or
    inputs is replaced, and one that is kept is marked as up to date: its manifest gets the time of
    now."""


class Run:
    """One stage's work on one artifact. Use as a context manager.

    On entry a run finds the finished artifact (`resume`), takes over an unfinished run (`resume`,
    `part`), or starts. If `finished`, a manifest, is set, there is nothing to do. Otherwise write
    files to `directory` and `add` them; `has` shows which ones are finished already. When the block
    raises, the folder is removed, unless `keep` was called.

    `part`: one of several processes that write files of their own to one `directory` at the same
    time. They do not commit; when all have ended, a run with `resume` takes over and commits.

    Entering raises UsageError where the options do not allow for what `path` holds, LockedError
    where another run is writing it, InputOutputError where it cannot be written.
    """

    def __init__(
        self,
        path: PathOrURI,
        kind: Kind,
        config: Config,
        parents: Sequence[Artifact] = (),
        *,
        overwrite: bool = False,
        resume: bool = False,
        part: bool = False,
        inputs: Mapping[str, str] | None = None,
    ) -> None:
        self.location = locate(path)
        self._store = open_store(self.location)
        self.directory: Path
        self.finished: Manifest | None = None
        self._kind = kind
        self._config = config
        self._parents = without_repeats([parent.as_parent() for parent in parents])
        self._seed = getattr(config, "seed", None)
        self._overwrite = overwrite
        self._resume = resume
        self._part = part
        self._identity: dict[str, Any] = {
            **config.identity(),
            **{f"input {parent.kind}": parent.digest for parent in self._parents},
            **(inputs or {}),
        }
        made = {"kind": kind, "format_version": format_version(kind)}
        self._record = RunRecord(identity={**made, **self._identity}, started=now())
        self._entries: dict[str, FileEntry] = {}
        self._kept = part
        self._lock: DirectoryLock | None = None
        self._created: list[Path] = []

    def __enter__(self) -> Self:
        try:
            self._acquire_lock()
            if self.finished is None:
                self._resume_or_start()
        except BaseException:
            self._undo_lock()
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None and self.finished is None and not self._kept:
            self._discard()
        elif self._lock:
            self._lock.release()

    def join(self, folder: str) -> None:
        """Takes part in a run that another process has entered, and that has this `folder`. Used in
        place of entering it."""
        self.directory = self._store.directory / folder
        self._store.names()
        self._store.begin(self.directory, self._record)

    def keep(self) -> None:
        """Marks the folder as worth resuming from: it stays if the run fails."""
        self._kept = True

    def has(self, logical_name: str) -> bool:
        """Whether a file is finished: it is in the folder, or was uploaded."""
        return logical_name in self._store.uploaded or (self.directory / logical_name).exists()

    def damage(self, logical_name: str) -> str | None:
        """Reads a file that was uploaded: what is wrong with it, after which it is not finished;
        None if it is whole, or was not uploaded."""
        return self._store.damage(logical_name)

    def add(self, logical_name: str, rows: int | None = None) -> FileEntry:
        """Adds a finished file in the run's folder to the artifact.

        At a URI it is uploaded, and a file with `rows`, a shard, leaves the folder. Raises
        InputOutputError; the folder is kept, so that a run with `resume` adds the file again.
        """
        try:
            entry = self._store.add(self.directory / logical_name, rows)
        except InputOutputError:
            self.keep()
            raise
        self._entries[logical_name] = entry
        return entry

    def commit(self, statistics: Mapping[str, Any], config: Config | None = None) -> Manifest:
        """Makes the added files the artifact, and removes all others.

        `config`: recorded in the manifest in place of the given settings, where some of these were
        resolved from the inputs. `resume` compares the given settings.
        """
        manifest = Manifest.of(
            [self._entries[name] for name in sorted(self._entries)],
            kind=self._kind,
            config=(config or self._config).model_dump(mode="json"),
            identity=self._identity,
            seed=self._seed,
            started=self._record.started,
            parents=self._parents,
            statistics=dict(statistics),
        )
        self.keep()
        self._store.commit(manifest)
        self.finished = manifest
        self._store.collect({entry.name for entry in manifest.files})
        return manifest

    def _acquire_lock(self) -> None:
        """Makes the directory if need be, and locks it; or sets `finished`, where it is read-only
        and holds the finished artifact."""
        directory = self._store.directory
        self._created = [path for path in (directory, *directory.parents) if not path.exists()]
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = DirectoryLock(directory, shared=self._part)
        except BlockingIOError:
            raise LockedError(f"`out` {self.location}: another run is writing it") from None
        except (FileExistsError, NotADirectoryError):
            raise self._refusal("not a directory") from None
        except OSError as error:
            committed = self._committed(self._store.names()) if self._resume else None
            if not self._is_finished(committed):
                reason = f"{error.filename or directory}: {error.strerror}"
                raise InputOutputError(f"`out` {reason}") from None

    def _discard(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        self._store.discard_uploads()
        self._undo_lock()

    def _undo_lock(self) -> None:
        """Releases the lock and removes the directories that `_acquire_lock` made."""
        if self._lock:
            self._lock.release(remove=True)
        with contextlib.suppress(OSError):
            for directory in self._created:
                directory.rmdir()

    def _resume_or_start(self) -> None:
        """Sets `finished`, or else `directory`: the folder of an unfinished run, or a new one."""
        committed, unfinished = self._inspect()
        if self._resume or self._part:
            for run in unfinished:
                if self._difference_from(run) is None:
                    self._take_over(run)
                    return
            if self._resume and self._is_finished(committed):
                return
            if unfinished and not committed:
                self._refuse(self._difference_from(unfinished[-1]))
        state = self._training_state(committed) if committed and not self._overwrite else []
        for run in unfinished:
            self._store.remove(run)
        self._start()
        for path, name in state:
            with named_errors(self.directory):
                shutil.copyfile(path, self.directory / name)

    def _inspect(self) -> tuple[Manifest | None, list[Path]]:
        """The committed artifact and the folders of unfinished runs. Raises UsageError where the
        options do not allow for what is there."""
        names = self._store.names()
        committed = self._committed(names)
        runs = self._store.runs()
        others = sorted(name for name in names if not is_of_runs(name))
        if others and not committed and not runs:
            raise self._refusal(f"holds other files ({others[0]})", "name a new or empty directory")
        done = {run_of(entry.name) for entry in committed.files} if committed else set()
        unfinished = [run for run in runs if run.name not in done]
        if committed and not self._part:
            self._store.tidy({entry.name for entry in committed.files}, unfinished)
        if committed and not (self._resume or self._overwrite):
            raise self._refusal("exists", "`overwrite` replaces it, `resume` keeps it")
        allowed = self._resume or self._overwrite or self._part
        if not allowed and any(self._store.holds_work(run) for run in unfinished):
            hint = "`resume` continues it, `overwrite` starts anew"
            raise self._refusal("holds an unfinished run", hint)
        return committed, unfinished

    def _committed(self, names: set[str]) -> Manifest | None:
        """The manifest that is there. Raises UsageError where its kind is another, even with
        `overwrite`: `out` is probably a mistake."""
        if MANIFEST not in names:
            return None
        manifest = read_manifest(self.location, any_format=self._overwrite)
        if manifest.kind != self._kind:
            reason = f"holds an artifact of kind {manifest.kind}, not {self._kind}"
            raise self._refusal(reason, "name another directory")
        return manifest

    def _is_finished(self, committed: Manifest | None) -> bool:
        """Sets `finished` if this run would make the committed artifact again.

        Raises UsageError where it would make another, unless that is the same run, but longer.
        """
        if committed is None:
            return False
        made = {"kind": committed.kind, "format_version": committed.format_version}
        identity = {**made, **committed.identity}
        self._refuse(self._record.difference_from(identity, may_end_later=True))
        self.finished = None if self._record.difference_from(identity) else committed
        if self.finished and self._overwrite:
            self._store.mark()
        return self.finished is not None

    def _training_state(self, committed: Manifest) -> list[tuple[Path, str]]:
        """Path and name of the files from which a finished run goes on."""
        artifact = Artifact(self.location, committed)
        names = [entry.logical_name for entry in committed.files]
        if not any(name.startswith(CHECKPOINT) for name in names):
            reason = "cannot go on: it was finished without `training.keep_state`"
            raise self._refusal(reason, "`overwrite` starts anew")
        return [(artifact.verified(name), name) for name in names if is_of_training(name)]

    def _difference_from(self, run: Path) -> str | None:
        """As `RunRecord.difference_from`. With `overwrite`, a longer run is another one."""
        earlier = RunRecord.read(run).identity
        return self._record.difference_from(earlier, may_end_later=not self._overwrite)

    def _refuse(self, difference: str | None) -> None:
        """Raises UsageError for a difference, unless `overwrite` allows it."""
        if difference is not None and not self._overwrite:
            raise self._refusal(f"cannot resume: {difference}", "`overwrite` starts anew")

    def _refusal(self, reason: str, hint: str | None = None) -> UsageError:
        return UsageError(f"`out` {self.location}: {reason}", hint)

    def _take_over(self, run: Path) -> None:
        """Resumes the run in a folder."""
        earlier = RunRecord.read(run)
        self.directory = run
        self._record = self._record.model_copy(update={"started": earlier.started})
        if self._record != earlier:
            write_atomically(run / RUN_RECORD, self._record.text())
        self.keep()
        if not self._part:
            for temporary in run.glob(".*"):  # left by a process that was killed
                with contextlib.suppress(OSError):
                    temporary.unlink()
        self._store.begin(run, self._record)

    def _start(self) -> None:
        """Makes the folder of a new run; parts of one run have the same."""
        name = self._record.key() if self._part else secrets.token_hex(4)
        self.directory = self._store.directory / f"run-{name}"
        if self.directory.is_symlink():
            raise self._refusal(f"{self.directory.name} is a link", "remove it")
        self.directory.mkdir(exist_ok=self._part)
        write_atomically(self.directory / RUN_RECORD, self._record.text())
        self._store.begin(self.directory, self._record)
