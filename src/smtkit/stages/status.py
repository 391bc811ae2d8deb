"""`smtkit status`: which artifacts below a directory are done, stale or unfinished."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from smtkit.config import TokenizeConfig
from smtkit.corpus.files import STDIN, listing_digest
from smtkit.corpus.image_corpus import ImageCorpus
from smtkit.corpus.text_corpus import TextCorpus
from smtkit.errors import ArtifactError, SmtkitError, UsageError
from smtkit.storage.artifact import read_manifest
from smtkit.storage.location import PathOrURI, local_path
from smtkit.storage.manifest import MANIFEST, Kind, Manifest, Parent
from smtkit.storage.store import RUN_RECORD, run_of
from smtkit.storage.unfinished import find_unfinished

State = Literal["done", "stale", "unfinished", "running", "damaged"]
_KINDS = [*get_args(Kind)]


@dataclass(frozen=True)
class Status:
    """The state of the artifact in a directory.

    `done`: complete, and its inputs are those that it was made from. `stale`: an input has changed
    since, or is stale itself. `unfinished`: an interrupted run, which `--resume` continues.
    `running`: a process is writing it. `detail` says why, or how far.
    """

    path: str
    kind: str
    state: State
    detail: str


def run(directory: PathOrURI) -> list[Status]:
    """The state of every artifact in `directory` and below, in the order of the pipeline.

    Reads manifests and records of runs, and not the files themselves. Raises UsageError where
    there is no such directory.
    """
    root = local_path(directory, "directory")
    if not root.is_dir():
        raise UsageError(f"{root}: no such directory")
    reasons: dict[Path, str | None] = {}
    found = [_status(path, reasons) for path in _artifacts(root)]
    return sorted(found, key=lambda status: (_order(status.kind), status.path))


def _order(kind: str) -> int:
    return _KINDS.index(kind) if kind in _KINDS else len(_KINDS)


def _artifacts(root: Path) -> Iterator[Path]:
    """Directories that hold a manifest or a run, without the folders of runs."""
    for parent, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        runs = [name for name in folders if run_of(name)]
        records = (Path(parent, name, RUN_RECORD) for name in runs)
        if MANIFEST in names or any(map(os.path.lexists, records)):
            yield Path(parent)
        folders[:] = [name for name in folders if name not in runs]


def _status(path: Path, reasons: dict[Path, str | None]) -> Status:
    manifest, kind = None, "unknown"
    try:
        if (path / MANIFEST).exists():
            manifest = read_manifest(path, check_files=True)
            kind = manifest.kind
        committed = {entry.name.partition("/")[0] for entry in manifest.files} if manifest else ()
        unfinished = find_unfinished(path, set(committed))
    except SmtkitError as error:
        message = str(error).removeprefix(f"{path}/").removeprefix(f"{path}: ")
        return Status(str(path), kind, "damaged", message)
    if unfinished:
        return Status(
            str(path),
            unfinished.kind,
            "running" if unfinished.is_running else "unfinished",
            unfinished.progress(),
        )
    if manifest is None:
        return Status(str(path), kind, "damaged", "a link in place of the folder of its run")
    reason = _staleness(path, reasons)
    return Status(str(path), kind, "stale" if reason else "done", reason or _size(manifest))


def _size(manifest: Manifest) -> str:
    steps = manifest.statistics.get("steps")
    length = f"{steps:,} steps, " if isinstance(steps, int) else ""
    return f"{length}{sum(entry.bytes for entry in manifest.files) / 1e6:,.3g} MB"


def _staleness(path: Path, reasons: dict[Path, str | None]) -> str | None:
    """Why the complete artifact in `path` is not what its inputs would give now; None if it is.
    `reasons` holds the answers so far."""
    if path not in reasons:
        reasons[path] = _reason(read_manifest(path), path, reasons)
    return reasons[path]


def _reason(manifest: Manifest, path: Path, reasons: dict[Path, str | None]) -> str | None:
    if "input files" in manifest.identity and _files_changed(manifest):
        return "the files it was made from have changed"
    for parent in manifest.parents:
        place = _find(parent, path)
        if place is None:
            continue  # moved or removed: what was made of it is still complete
        try:
            found = read_manifest(place)
        except ArtifactError:
            continue  # shown as damaged by itself
        if found.digest != parent.digest:
            return f"{parent.kind} {parent.path} has changed since"
        if _staleness(place, reasons):
            return f"{parent.kind} {parent.path} is stale"
    return None


def _find(parent: Parent, child: Path) -> Path | None:
    """The directory of a parent, whose path is as it was given to a command: absolute, or relative
    to where that ran, which is above the child or here."""
    for base in (*child.absolute().parents, Path()):
        if (base / parent.path / MANIFEST).exists():
            return base / parent.path
    return None


def _files_changed(manifest: Manifest) -> bool:
    """Whether the files of a tokens artifact are others now. Those that are not found from here,
    and standard input, count as the same."""
    with contextlib.suppress(SmtkitError, ValueError):
        config = TokenizeConfig(**manifest.config)
        corpus = ImageCorpus if config.tokenizer == "pixel" else TextCorpus
        files = corpus(config, lambda *_, **__: None).files()
        if STDIN not in map(str, files):
            return listing_digest(files) != manifest.identity["input files"]
    return False
