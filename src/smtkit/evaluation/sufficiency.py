"""Sufficiency: how much of what the teacher knows can be predicted from its memory alone.

The nll of a target given a memory d tokens before it and these d tokens, beside its nll given the
teacher's full context. If they are equal at all d, the memory is a predictive state, and an RNN
that follows it loses nothing.

B: windows, L: tokens per window, T: the window of training, O: offsets d, P: pairs of a memory and
a target per window and offset, K: slots, D: slot width, V: vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from smtkit import IGNORE
from smtkit.corpus.seeded import IntArray, random_key, stratified
from smtkit.corpus.windows import Windows
from smtkit.evaluation.figures import svg_axes
from smtkit.methods import losses
from smtkit.methods.base import WindowSampler
from smtkit.networks.encoders import select
from smtkit.networks.teacher import Teacher
from smtkit.training.distributed import Ranks
from smtkit.training.protocols import moved

FIGURE = "sufficiency.svg"
_PAIRS = 1024  # per offset, over all windows
_TOKENS = 4096  # read at once, over all pairs
_LOGITS = 2**24  # held at once
_LINES = {
    "nll": ("from the memory and the d tokens after it", "#d55e00"),
    "full_context_nll": ("with full context", "#0072b2"),
}


def offsets_up_to(future: int | Literal["rest"], window: int) -> list[int]:
    """0, 1, 2, 4, 8, ... up to the `future` tokens that a decoder was trained to read, which is the
    last of them; a memory of at least one token lies before them."""
    longest = window - 1 if future == "rest" else min(future, window - 1)
    chosen = {0, *(2**exponent for exponent in range(longest.bit_length()))}
    return sorted(chosen if future == "rest" else chosen | {longest})


@dataclass(frozen=True)
class PairBatch:
    """Windows, and pairs for each offset: tokens (B, L), length (B,), positions (B, O, P) of the
    targets (B, O, P), which are IGNORE in place of a missing pair."""

    tokens: Tensor
    length: Tensor
    positions: Tensor
    targets: Tensor

    @property
    def tokens_read(self) -> int:
        return int(self.length.sum())

    def pairs(self, offsets: Sequence[int]) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """For each offset d: positions (B, P) of the memories and of the targets, the tokens
        between them (B P, d), and the targets (B P,)."""
        row = torch.arange(len(self.tokens), device=self.tokens.device)[:, None, None]
        for number, offset in enumerate(offsets):
            at = self.positions[:, number]
            before = (at - offset).clamp_min(0)  # of a missing pair
            between = before[..., None] + torch.arange(offset, device=at.device)
            between = between.clamp_max(self.tokens.shape[1] - 1)
            tokens = self.tokens[row, between].flatten(0, 1)
            yield before, at, tokens, self.targets[:, number].flatten()


def draw_pairs(
    windows: Windows, numbers: IntArray, offsets: Sequence[int], count: int, key: int, last: int
) -> PairBatch:
    """`count` pairs per window and offset, fewer in windows that have no more targets.

    Evenly spaced over the targets at positions up to `last` that have a memory of at least one
    token `offset` tokens before them. numbers (B,), one per window, seed the draws.
    """
    longest = min(int(windows.length.max()), last)
    position = np.arange(longest + 1)
    at = np.minimum(windows.length, last)
    present = (windows.targets[:, : longest + 1] != IGNORE) & (position <= at[:, None])
    positions, targets = [], []
    for offset in offsets:
        eligible = present & (position > offset)
        sizes = eligible.sum(1)
        drawn = stratified(random_key(key, offset), numbers, count, np.maximum(sizes, 1))
        missing = np.zeros(drawn.shape, dtype=bool)
        missing[:, 1:] = np.diff(drawn) == 0
        missing |= (sizes == 0)[:, None]
        order = np.argsort(~eligible, axis=1, kind="stable")  # positions of eligible targets first
        positions.append(np.take_along_axis(order, drawn, axis=1))
        here = np.take_along_axis(windows.targets, positions[-1], axis=1)
        targets.append(np.where(missing, IGNORE, here))
    return PairBatch(
        torch.from_numpy(windows.tokens[:, : max(1, longest)]),
        torch.from_numpy(at),
        torch.from_numpy(np.stack(positions, axis=1)),
        torch.from_numpy(np.stack(targets, axis=1)),
    )


def nll_of_pairs(
    teacher: Teacher, before: Tensor, at: Tensor, between: Tensor, targets: Tensor
) -> Tensor:
    """Two sums over N pairs: the nll of targets (N,) from the memories `before` and the tokens
    `between` (N, d), and from the teacher's memories `at` the targets. Both (N, K, D).

    All ranks make the same calls, also for missing pairs, as a sharded network needs.
    """
    vocabulary, slots, _ = teacher.architecture.shape
    tokens_at_once = min(_TOKENS, _LOGITS // vocabulary)
    count = max(1, tokens_at_once // (slots + between.shape[1]))
    sums = torch.zeros(2, device=targets.device)
    for first in range(0, len(targets), count):
        some = slice(first, first + count)
        decoded = teacher.decode(before[some], between[some])[:, -1]
        sums[0] += losses.cross_entropy(decoded, targets[some])
        sums[1] += losses.cross_entropy(teacher.read(at[some]), targets[some])
    return sums


class Sufficiency:
    """Mean nll from memories and with full context, over at most about a thousand pairs per offset.

    Offsets are those that a decoder of `future` tokens was trained on. Pairs lie at positions
    1..`window`. They depend on the windows' indices alone: batches and ranks do not change them.
    """

    def __init__(
        self, teacher: Teacher, future: int | Literal["rest"], window: int, windows: int
    ) -> None:
        self._teacher = teacher
        self._window = window
        self._offsets = offsets_up_to(future, window)
        self._count = -(-_PAIRS // windows)
        self._sums = torch.zeros(2, len(self._offsets), dtype=torch.float64)
        self._targets = torch.zeros(len(self._offsets), dtype=torch.int64)

    def add(self, memory: Tensor, windows: Windows, index: IntArray) -> None:
        """Adds pairs of windows number `index` (B,), whose memories are (B, L + 1, K, D)."""
        key = random_key("sufficiency")
        batch = draw_pairs(windows, index, self._offsets, self._count, key, self._window)
        self._targets += (batch.targets != IGNORE).sum((0, 2))
        batch = moved(batch, memory.device)
        for number, (before, at, between, targets) in enumerate(batch.pairs(self._offsets)):
            memories = select(memory, before).flatten(0, 1), select(memory, at).flatten(0, 1)
            found = nll_of_pairs(self._teacher, *memories, between, targets)
            self._sums[:, number] += found.double().cpu()

    def share(self, ranks: Ranks) -> None:
        """Sums what each rank has added."""
        (self._sums,) = ranks.sum_tensors([self._sums])
        (self._targets,) = ranks.sum_tensors([self._targets])

    def by_offset(self) -> list[dict[str, Any]]:
        """A record per offset that has targets. `gap`: mean nll from memory, `nll`, minus that with
        full context, `full_context_nll`."""
        records = []
        for number, offset in enumerate(self._offsets):
            targets = int(self._targets[number])
            if targets:
                nll, full = (self._sums[:, number] / targets).tolist()
                found = {"nll": nll, "full_context_nll": full, "gap": nll - full}
                records.append({"offset": offset, "targets": targets, **found})
        return records


@dataclass
class PairSampler(WindowSampler):
    """Batches of whole windows, each with one pair per offset."""

    offsets: Sequence[int] = field(kw_only=True)

    def batch(self, step: int, part: int = 0, parts: int = 1) -> PairBatch:
        """Slice `part` of `parts` of the batch of `step`."""
        samples, _, windows = self._read(step, part, parts)
        key = random_key(self.seed, "sufficiency")
        return draw_pairs(windows, samples, self.offsets, 1, key, self.windows.window)


class SufficiencyMeasure:
    """Sufficiency as a validation measure: for each offset d the nll from memory,
    `sufficiency_nll_d`, and its excess over the nll with full context, `sufficiency_gap_d`."""

    def __init__(self, teacher: Teacher, offsets: Sequence[int]) -> None:
        self._teacher = teacher
        self._offsets = offsets

    def counts(self, batch: PairBatch) -> dict[str, int]:
        """Number of targets at each offset."""
        targets = (batch.targets != IGNORE).sum((0, 2)).tolist()
        return {
            f"sufficiency_{name}_{offset}": count
            for name in ("nll", "gap")
            for offset, count in zip(self._offsets, targets, strict=True)
        }

    @torch.no_grad()
    def losses(self, batch: PairBatch) -> dict[str, Tensor]:
        """Sums over the targets at each offset, in nats."""
        pairs = list(batch.pairs(self._offsets))
        positions = torch.cat([torch.cat(each[:2], dim=1) for each in pairs], dim=1)
        memory = self._teacher.encoder.encode_at(batch.tokens, positions)
        memories = [each.flatten(0, 1) for each in memory.split(pairs[0][0].shape[1], dim=1)]
        sums = {}
        for number, (offset, pair) in enumerate(zip(self._offsets, pairs, strict=True)):
            before, at = memories[2 * number : 2 * number + 2]
            nll, full = nll_of_pairs(self._teacher, before, at, *pair[2:])
            sums[f"sufficiency_nll_{offset}"], sums[f"sufficiency_gap_{offset}"] = nll, nll - full
        return sums


def draw(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the two nll of `Sufficiency.by_offset` over the offset.

    Raises ImportError if matplotlib is not installed.
    """
    offsets = [record["offset"] for record in records]
    with svg_axes(path) as axes:
        for name, (label, color) in _LINES.items():
            values = [record[name] for record in records]
            axes.plot(offsets, values, color=color, marker="o", markersize=3.5, label=label)
        axes.fill_between(
            offsets, *([record[name] for record in records] for name in _LINES), alpha=0.12
        )
        axes.set_xscale("symlog", base=2, linthresh=1)
        axes.set_xticks(offsets, [str(offset) for offset in offsets])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("offset d from memory to target, in tokens")
        axes.set_ylabel("nll, in nats per target")
