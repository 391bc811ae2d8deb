"""The commit protocol: how an artifact comes to be, and how the old one stays whole until then.

A run writes into a folder of its own inside the artifact's directory, under a lock. `commit`
replaces the manifest atomically, and then collects what no manifest names.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import smtkit
from smtkit.artifacts.manifest import (
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
from smtkit.config import Config
from smtkit.errors import ArtifactError, InputOutputError, LockedError, UsageError

RUN_RECORD = "run.json"
_RUN_PREFIX = "run-"
_PACKAGES = ("numpy", "pyarrow", "safetensors", "sentencepiece", "torch")


class Run:
    """A stage at work on one artifact. Use as a context manager.

    `finished` is the manifest of an artifact that is complete already (`resume`): there is nothing
    to do. `directory` is where to write; with `resume` an earlier run may have left its work there.
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
        self.path = Path(path)
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
        self._entries: dict[str, FileEntry] = {}
        self._kept = part
        self._started = datetime.now(UTC)

    def __enter__(self) -> Self:
        self._created = [p for p in (self.path, *self.path.parents) if not p.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path, os.O_RDONLY)
        except (FileExistsError, NotADirectoryError):
            raise UsageError(f"--out {self.path}: not a directory") from None
        except OSError as error:
            raise InputOutputError(f"--out {self.path}: {error.strerror}") from None
        try:
            self._take_lock()
            self._take_place()
        except BaseException:
            os.close(self._lock)
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
            with contextlib.suppress(OSError):
                for directory in self._created:
                    directory.rmdir()
        os.close(self._lock)

    def keep(self) -> None:
        """From now on the folder holds something to resume from."""
        self._kept = True

    def add(self, logical_name: str, rows: int | None = None) -> FileEntry:
        """Takes a finished file of the run's folder into the artifact."""
        path = self.directory / logical_name
        entry = FileEntry(
            name=f"{self.directory.name}/{logical_name}",
            bytes=path.stat().st_size,
            rows=rows,
            xxh3=hash_file(path),
        )
        self._entries[logical_name] = entry
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
            command=_command_line(),
            config=(config or self._config).model_dump(mode="json"),
            identity=self._identity,
            seed=self._seed,
            git_revision=_git_revision(),
            packages={name: metadata.version(name) for name in _PACKAGES},
            started=self._started.isoformat(timespec="seconds"),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            parents=self._parents,
            files=files,
            statistics=dict(statistics),
            digest=content_digest(self.kind, files),
        )
        write_atomically(self.path / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
        self.finished = manifest
        self._collect({entry.name for entry in files})
        return manifest

    def _take_lock(self) -> None:
        try:
            kind = fcntl.LOCK_SH if self._part else fcntl.LOCK_EX
            fcntl.flock(self._lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(f"--out {self.path}: another run is writing it") from None

    def _take_place(self) -> None:
        runs = sorted(self.path.glob(f"{_RUN_PREFIX}*/{RUN_RECORD}"))
        committed = (self.path / MANIFEST).exists()
        if committed:
            self._refuse_another_kind()
        strangers = [
            entry.name
            for entry in self.path.iterdir()
            if not entry.name.startswith((MANIFEST, f".{MANIFEST}.", _RUN_PREFIX))
        ]
        if strangers and not committed and not runs:
            raise UsageError(
                f"--out {self.path}: holds other files ({sorted(strangers)[0]})",
                "name a new or empty directory",
            )
        if committed and not (self._resume or self._overwrite):
            raise UsageError(
                f"--out {self.path}: exists", "--overwrite makes it anew, --resume keeps it"
            )
        unfinished = self._unfinished(runs)
        goes_on = self._resume or self._part
        if goes_on and any(self._goes_on_from(record) for record in unfinished):
            return
        if self._resume and committed and self._is_complete():
            return
        if goes_on and not committed and unfinished:
            self._refuse_difference(self._difference_from(unfinished[-1]))
        for run in unfinished:
            shutil.rmtree(run.parent)
        self._start()

    def _refuse_another_kind(self) -> None:
        """Also with `overwrite`: what was named by mistake is not lost."""
        kind = read_manifest(self.path).kind
        if kind != self.kind:
            raise UsageError(
                f"--out {self.path}: holds an artifact of kind {kind}, not {self.kind}",
                "name another directory",
            )

    def _is_complete(self) -> bool:
        """Whether there is nothing to do. Raises UsageError where the settings were others."""
        manifest = read_manifest(self.path)
        difference = _difference(manifest.identity, self._identity)
        if difference is None:
            self.finished = manifest
        else:
            self._refuse_difference(difference)
        return difference is None

    def _goes_on_from(self, record: Path) -> bool:
        """Takes over the folder of an unfinished run, if it computes the same."""
        if self._difference_from(record) is not None:
            return False
        self._started = self._read_record(record)[1]
        self.directory, self._kept = record.parent, True
        return True

    def _difference_from(self, record: Path) -> str | None:
        return _difference(self._read_record(record)[0], {"kind": self.kind, **self._identity})

    @staticmethod
    def _read_record(record: Path) -> tuple[dict[str, Any], datetime]:
        """What identifies an unfinished run, its kind included, and when it was started."""
        try:
            found = json.loads(record.read_text(encoding="utf-8"))
            started = datetime.fromisoformat(found["started"])
            return {"kind": found["kind"], **found["identity"]}, started
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{record}: damaged: {error}", "--overwrite starts anew") from None

    def _refuse_difference(self, difference: str | None) -> None:
        if difference is not None and not self._overwrite:
            raise UsageError(
                f"--out {self.path}: cannot resume: {difference}",
                "--overwrite makes it anew",
            )

    def _unfinished(self, runs: Sequence[Path]) -> list[Path]:
        """Records of runs that hold work and that no manifest names."""
        named = self._named_by_manifest()
        unfinished = [run for run in runs if run.parent.name not in named]
        holding_work = [run for run in unfinished if len(list(run.parent.iterdir())) > 1]
        if holding_work and not (self._resume or self._overwrite or self._part):
            raise UsageError(
                f"--out {self.path}: holds an unfinished run",
                "--resume goes on with it, --overwrite starts anew",
            )
        return unfinished

    def _named_by_manifest(self) -> set[str]:
        if not (self.path / MANIFEST).exists():
            return set()
        content = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
        return {entry["name"].partition("/")[0] for entry in content["files"]}

    def _start(self) -> None:
        name = _key(self._identity) if self._part else secrets.token_hex(4)
        self.directory = self.path / f"{_RUN_PREFIX}{name}"
        self.directory.mkdir(exist_ok=self._part)  # parts may start at the same moment
        record = {
            "kind": self.kind,
            "identity": self._identity,
            "started": self._started.isoformat(timespec="seconds"),
        }
        write_atomically(self.directory / RUN_RECORD, json.dumps(record, indent=2) + "\n")

    def _collect(self, named: set[str]) -> None:
        """Removes what no manifest names. What cannot be removed now is left to the next commit."""
        for run in self.path.glob(f"{_RUN_PREFIX}*"):
            if run.name != self.directory.name:
                shutil.rmtree(run, ignore_errors=True)
                continue
            for file in run.iterdir():
                if f"{run.name}/{file.name}" not in named:
                    with contextlib.suppress(OSError):
                        file.unlink()
        for leftover in self.path.glob(f".{MANIFEST}.*"):
            leftover.unlink(missing_ok=True)


def write_atomically(path: Path, content: str) -> None:
    """Replaces `path` with `content`: a reader sees the old file or the new one, whole.

    Raises InputOutputError.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputOutputError(f"{path}: {error.strerror}") from None


def publish(temporary: Path, path: Path) -> None:
    """Renames a finished file into place, durably."""
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            return f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
    return None


def _key(identity: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits: the same for all parts of one run."""
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _command_line() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _git_revision() -> str | None:
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None
