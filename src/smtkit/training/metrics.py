"""What a run measures: sums and counts of terms, and the file of their means."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from smtkit.storage.files import publish
from smtkit.training.distributed import Ranks


class MetricsFile:
    """`metrics.jsonl`: a line of JSON for every record."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, record: Mapping[str, float | str]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def truncate(self, step: int) -> None:
        """Drops what was written after `step`: by a run that was killed before its next save."""
        if not self._path.exists():
            return
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        temporary = self._path.with_name(f".{self._path.name}")
        temporary.write_text("".join(kept), encoding="utf-8")
        publish(temporary, self._path)


class Tally:
    """Sums and counts of terms."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, sums: Mapping[str, Tensor]) -> None:
        for name, total in sums.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(total)) + total

    def count(self, counts: Mapping[str, int]) -> None:
        self._counts = added([self._counts, counts])

    def over(self, ranks: Ranks) -> "Tally":
        """Of all ranks together."""
        whole, names = Tally(), sorted(self._sums)
        summed = ranks.sum_together([self._sums[name] for name in names])
        whole.add(dict(zip(names, summed, strict=True)))
        whole.count(ranks.sum_counts(self._counts))
        return whole

    def merge(self, other: "Tally") -> None:
        self.add(other._sums)
        self.count(other._counts)

    def sums(self) -> dict[str, Tensor]:
        return dict(self._sums)

    def tensors(self) -> dict[str, Tensor]:
        """Means, left where they were computed."""
        return {name: t / max(self._counts[name], 1) for name, t in self._sums.items()}

    def means(self) -> dict[str, float]:
        return {name: float(t) for name, t in self.tensors().items()}


def added(items: Iterable[Mapping[str, int]]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for counts in items:
        for name, count in counts.items():
            totals[name] = totals.get(name, 0) + count
    return totals
