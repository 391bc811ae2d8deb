"""Sums and counts of loss terms, and the file of their means."""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from smtkit.storage.files import hash_file, named_errors, open_regular, write_atomically
from smtkit.training.distributed import Ranks

if TYPE_CHECKING:
    from smtkit.training.listeners import Listener

Record = Mapping[str, Any]
"""A line of the metrics log: `step`, `split`, and metrics by name, or a `text` of split SAMPLE."""
SAMPLE = "sample"


class MetricsFile:
    """`metrics.jsonl`: one JSON object per line and record; `listeners` receive them too."""

    def __init__(self, path: Path, listeners: "Sequence[Listener]" = ()) -> None:
        self._path = path
        self._listeners = listeners

    def append(self, record: Record) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
        with named_errors(self._path):
            descriptor = os.open(self._path, flags, 0o666)
            with os.fdopen(descriptor, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        for listener in self._listeners:
            listener.record(record)

    def show_weights(self, step: int, network: nn.Module) -> None:
        """Gives the listeners all numbers of each weight, but of sharded ones, which no rank has
        whole."""
        if self._listeners:
            found = network.named_parameters()
            whole = {name: p for name, p in found if not hasattr(p, "full_tensor")}
            values = {name: p.detach().float().cpu().numpy() for name, p in whole.items()}
            for listener in self._listeners:
                listener.histograms(step, values)

    def records(self, split: str) -> list[Record]:
        """The records of `split`."""
        return [record for _, record in self._whole() if record["split"] == split]

    def resume(self, step: int, checksum: str | None) -> str | None:
        """Drops records after `step`, which a run wrote that was killed before its next save, and
        lines that are no records; starts the listeners.

        checksum: of the file when the state of `step` was saved. Returns a warning where the file
        is damaged. Raises ArtifactError where it is a link or special.
        """
        for listener in self._listeners:
            listener.start(step)
        lines, whole = self._lines(), list(self._whole())
        if lines is not None:
            kept = [line for line, record in whole if record["step"] <= step]
            write_atomically(self._path, "".join(kept))
        if step == 0 or self.checksum() == checksum:
            return None
        lost = len(lines or ()) - len(whole)
        return (
            f"{self._path.name}: damaged: {lost} lines are left out, others may be lost or changed"
        )

    def checksum(self) -> str | None:
        """xxh3-128 of the file, in hexadecimal; None if there is none."""
        return hash_file(self._path) if self._path.exists() else None

    def _whole(self) -> Iterator[tuple[str, Record]]:
        """Lines that hold a record, and their records."""
        for line in self._lines() or ():
            for record in parse_records(line):
                yield line.decode("utf-8"), record

    def _lines(self) -> list[bytes] | None:
        """Whole lines; a run that was killed may have left a part of one. None without a file."""
        try:
            with open_regular(self._path) as file, named_errors(self._path):
                lines = file.read().splitlines(keepends=True)
        except FileNotFoundError:
            return None
        return [line for line in lines if line.endswith(b"\n")]


def last_of(records: Sequence[Record]) -> Record:
    """The last of some records; an empty one if there is none."""
    return records[-1] if records else {}


def parse_records(content: bytes) -> Iterator[Record]:
    """The records in the lines of a metrics log; other lines are left out."""
    for line in content.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and _is_record(record):
                yield record


def _is_record(record: Mapping[str, Any]) -> bool:
    """Whether the fields of a line are those of a record: step, split, and numbers."""
    step, split = record.get("step"), record.get("split")
    if type(step) is not int or step < 0 or split not in ("train", "validation", SAMPLE):
        return False
    if split == SAMPLE:
        return isinstance(record.get("text"), str)
    return all(isinstance(record[name], int | float) for name in record if name != "split")


@dataclass
class Tally:
    """Running sums and counts of named terms."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> None:
        for name, total in sums.items():
            self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.counts.update(counts)

    def summed(self, ranks: Ranks) -> "Tally":
        """Sums and counts over all ranks."""
        sums = ranks.sum_tensors(list(self.sums.values()))
        counts = Counter(ranks.sum_counts(self.counts))
        return Tally(dict(zip(self.sums, sums, strict=True)), counts)

    def means(self) -> dict[str, Tensor]:
        """Mean of each term, sum / max(count, 1), on the device of the sums."""
        return {name: total / max(self.counts[name], 1) for name, total in self.sums.items()}
