"""Runs that have not been committed: how far they are, read without starting them."""

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smtkit.storage.checkpoint import CHECKPOINT_RECORD, CheckpointRecord
from smtkit.storage.locks import is_locked
from smtkit.storage.manifest import METRICS
from smtkit.storage.store import RUN_RECORD, LocalStore, RunRecord

_NO_RESULTS = (RUN_RECORD, CHECKPOINT_RECORD, METRICS)


@dataclass(frozen=True)
class Unfinished:
    """A run in the directory of an artifact, without a manifest of its own.

    `step` and `seconds` are those of its last checkpoint, None where it has none; `steps` and
    `most_seconds` its limits. `files` counts what else it has written.
    """

    kind: str
    step: int | None
    seconds: float | None
    steps: int | None
    most_seconds: float | None
    files: int
    is_running: bool

    def progress(self) -> str:
        """How far it was when it last saved: `step 240 of 1,000`."""
        if self.step is None:
            return f"{self.files} files written" if self.files else "nothing saved yet"
        of_steps = f" of {self.steps:,}" if self.steps else ""
        of_seconds = ""
        if self.most_seconds:
            of_seconds = f", {self.seconds or 0:,.0f} of {self.most_seconds:,.0f} s"
        return f"step {self.step:,}{of_steps}{of_seconds}"


def find_unfinished(directory: Path, committed: Set[str] = frozenset()) -> Unfinished | None:
    """The run in `directory` that is not committed and has come furthest; None if there is none.

    `committed`: folders of runs whose files a manifest names. Raises ArtifactError where a record
    is damaged.
    """
    runs = [run for run in LocalStore(directory).runs() if run.name not in committed]
    found = [_read(run, is_locked(directory)) for run in runs]
    return max(found, key=lambda run: (run.step or 0, run.files), default=None)


def _read(run: Path, is_running: bool) -> Unfinished:
    identity = RunRecord.read(run).identity
    checkpoint = CheckpointRecord.read(run)
    shown = [path for path in run.iterdir() if not path.name.startswith((".", "checkpoint-"))]
    return Unfinished(
        kind=str(identity.get("kind")),
        step=checkpoint.step if checkpoint else None,
        seconds=checkpoint.seconds if checkpoint else None,
        steps=_number(identity.get("training.max_steps")),
        most_seconds=_number(identity.get("training.max_seconds")),
        files=sum(path.name not in _NO_RESULTS for path in shown),
        is_running=is_running,
    )


def _number(value: Any) -> Any:
    """A limit of a run; None for what is none."""
    return value if isinstance(value, int | float) else None
