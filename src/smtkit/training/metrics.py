"""Sums and counts of loss terms, and the file of their means."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from smtkit.storage.files import write_atomically
from smtkit.training.distributed import Ranks

Record = Mapping[str, Any]
"""A line of the metrics log: `step`, `split`, and metrics by name."""


class MetricsFile:
    """`metrics.jsonl`: one JSON object per line and record."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, record: Record) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def records(self, split: str) -> list[Record]:
        """The records of `split`, as far as they are whole."""
        found = [json.loads(line) for line in self._lines()]
        return [record for record in found if record["split"] == split]

    def truncate(self, step: int) -> None:
        """Drops records after `step`, which a run wrote that was killed before its next save."""
        if not self._path.exists():
            return
        kept = [line for line in self._lines() if json.loads(line)["step"] <= step]
        write_atomically(self._path, "".join(kept))

    def _lines(self) -> list[str]:
        """Whole lines; a run that was killed may have left a part of one."""
        if not self._path.exists():
            return []
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        return [line for line in lines if line.endswith("\n")]


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
