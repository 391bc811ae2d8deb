"""The folders of runs in an artifact's directory: their names, and which of them go."""

import contextlib
import re
import shutil
from pathlib import Path

from smtkit.storage.locks import LOCK
from smtkit.storage.manifest import MANIFEST, Manifest

RUN_RECORD = "run.json"
RUN_PREFIX = "run-"
_FOLDER = re.compile(rf"({RUN_PREFIX}[0-9a-f]{{8}})(-[0-9a-f]{{8}}(\.work)?)?")


def run_of(folder: str) -> str | None:
    """The run whose folder this is, on a disk or at a URI, by its name; None of any other."""
    found = _FOLDER.fullmatch(folder)
    return found[1] if found else None


def runs_of(manifest: Manifest | None) -> set[str | None]:
    """That wrote the files of an artifact."""
    files = manifest.files if manifest else []
    return {run_of(entry.name.partition("/")[0]) for entry in files}


def is_of_runs(name: str) -> bool:
    """Whether runs make what has this name in the directory of an artifact."""
    drafts = f".{MANIFEST}."
    return name in (MANIFEST, LOCK) or name.startswith(drafts) or run_of(name) is not None


def collect(directory: Path, kept: Path | None, named: set[str]) -> None:
    """Removes the folders of runs, and of the one `kept` the files that no manifest has `named`.
    What cannot be removed now is left to the next commit."""
    for run in filter(lambda path: run_of(path.name), directory.iterdir()):
        if run != kept:
            shutil.rmtree(run, ignore_errors=True)
            continue
        for file in run.iterdir():
            if f"{run.name}/{file.name}" not in named:
                with contextlib.suppress(OSError):
                    file.unlink()
    for leftover in directory.glob(f".{MANIFEST}.*"):
        leftover.unlink(missing_ok=True)
