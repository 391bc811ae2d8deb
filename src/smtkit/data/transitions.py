"""Batches for the RNN: transitions between stored memories, chains of them, and plain sequences.

B: windows, T: window, P: positions drawn in each, M: memories, K: slots, D: slot width, F: future
tokens; C chains of L steps.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smtkit.config import RolloutConfig, TransitionObjectiveConfig
from smtkit.data.label_shards import LabelShards
from smtkit.data.memories import decode
from smtkit.data.order import IntArray, SampleOrder, random_key, stratified, uniform
from smtkit.data.windows import Windows, WindowSource


@dataclass(frozen=True)
class _LabelBatch:
    """Labels, and what the objective asks beside its transitions.

    memory (M, K, D), scale (M, K) or (0,): labels as they are stored, and as they are moved to the
    device. place: which of them each transition reads; the one after it is where it leads.
    first_target (B,): what is to be predicted from the empty memory. compared (C,): numbers of the
    transitions after which the decoder must say the same from label and predicted memory, for
    future (C, F) tokens, of which future_length (C,) are there. noise: unit normal numbers.
    """

    memory: Tensor
    scale: Tensor
    place: Tensor
    first_target: Tensor
    compared: Tensor
    future: Tensor
    future_length: Tensor
    noise: Tensor

    def labels(self, places: Tensor) -> Tensor:
        """places (...,) -> (..., K, D), float32."""
        flat = places.flatten()
        scale = self.scale[flat] if len(self.scale) else self.scale
        return decode(self.memory[flat], scale).unflatten(0, places.shape)


_NOTHING_COMPARED = {
    "compared": torch.empty(0, dtype=torch.int64),
    "future": torch.empty(0, 0, dtype=torch.int64),
    "future_length": torch.empty(0, dtype=torch.int64),
}


@dataclass(frozen=True)
class TransitionBatch(_LabelBatch):
    """A flat set of N = B P transitions: before, after (N, K, D); place, token, target (N,).

    `after` is the label of `(before, token)`, `target` what is to be predicted from it.
    """

    token: Tensor
    target: Tensor

    @property
    def before(self) -> Tensor:
        return self.labels(self.place)

    @property
    def after(self) -> Tensor:
        return self.labels(self.place + 1)

    @property
    def tokens_read(self) -> int:
        return len(self.token)


@dataclass(frozen=True)
class RolloutBatch(_LabelBatch):
    """C chains of L steps: start (C, K, D); place, tokens (C, L); and what each step should lead
    to: after (C, L, K, D), target (C, L).

    restarts (C, L): steps before which the memory is the empty one. learned (N,): numbers in the
    flat C * L of the steps that are learned from; the others lie past the end of a chain, or
    between those that `loss_every` takes.
    """

    tokens: Tensor
    target: Tensor
    restarts: Tensor
    learned: Tensor

    @property
    def start(self) -> Tensor:
        return self.labels(self.place[:, 0])

    @property
    def after(self) -> Tensor:
        return self.labels(self.place + 1)

    @property
    def learned_after(self) -> Tensor:
        """(N, K, D): where the steps that are learned from should lead."""
        return self.labels(self.place.flatten()[self.learned] + 1)

    @property
    def tokens_read(self) -> int:
        return len(self.learned)


@dataclass(frozen=True)
class SequenceBatch:
    """Whole windows: tokens (B, T), targets (B, T + 1), length (B,). T: of the longest."""

    tokens: Tensor
    targets: Tensor
    length: Tensor

    @property
    def tokens_read(self) -> int:
        return int(self.length.sum())


class TransitionSource:
    """Batches of transitions: windows in the shuffled order, `positions` drawn in each.

    Here and below, `by_length`: a batch takes windows of one length; if not, of all that there are,
    in proportion.
    """

    def __init__(
        self,
        labels: LabelShards,
        objective: TransitionObjectiveConfig,
        *,
        batch_size: int,
        seed: int,
        positions: int,
        by_length: bool = True,
    ) -> None:
        self._windows = _LabelWindows(labels, objective, batch_size, seed, by_length)
        self._positions = positions
        self._key = random_key(seed, "transitions")

    def batch(self, step: int, part: int = 0, parts: int = 1) -> TransitionBatch:
        entries, rows, windows = self._windows.read(step, part, parts)
        drawn = stratified(self._key, entries, self._positions, windows.length)
        return TransitionBatch(
            **self._windows.asked(entries, windows, list(drawn)),
            **self._memories(rows, windows, drawn),
            noise=self._windows.noise(entries, [self._positions] * len(rows)),
            token=_gathered(windows.tokens, drawn),
            target=_gathered(windows.targets, drawn + 1),
        )

    def _memories(self, rows: IntArray, windows: Windows, drawn: IntArray) -> dict[str, Tensor]:
        """Those before and after each transition; or, where these are as many, whole windows."""
        if 2 * self._positions > windows.length.max():
            return self._windows.whole(rows, windows, list(drawn))
        pairs = (drawn[:, :, None] + np.arange(2)).reshape(len(rows), -1)
        memory, scale = self._windows.labels.memories(rows, pairs)
        return {"memory": memory, "scale": scale, "place": torch.arange(0, len(memory), 2)}


class RolloutSource:
    """Batches of chains that together read every token of their windows once."""

    def __init__(
        self,
        labels: LabelShards,
        objective: TransitionObjectiveConfig,
        rollout: RolloutConfig,
        *,
        batch_size: int,
        seed: int,
        by_length: bool = True,
    ) -> None:
        self._windows = _LabelWindows(labels, objective, batch_size, seed, by_length)
        self._rollout = rollout
        self._key = random_key(seed, "phase of chains")

    def batch(self, step: int, part: int = 0, parts: int = 1) -> RolloutBatch:
        entries, rows, windows = self._windows.read(step, part, parts)
        plan = [self._chains(*given) for given in zip(entries, windows.length, strict=True)]
        steps = max(positions.shape[1] for positions, _ in plan)
        chains = [_padded(positions, steps) for positions, _ in plan]
        learned = [_padded(wanted, steps) for _, wanted in plan]
        positions = np.concatenate(chains)
        asked = [at[wanted] for at, wanted in zip(chains, learned, strict=True)]
        # Jacobi disturbs every label that it begins from, the others the first of each chain.
        disturbed = [at.size if self._rollout.kind == "jacobi" else len(at) for at in chains]
        return RolloutBatch(
            **self._windows.asked(entries, windows, asked),
            **self._windows.whole(rows, windows, chains),
            noise=self._windows.noise(entries, disturbed),
            tokens=_gathered(windows.tokens, chains),
            target=_gathered(windows.targets, [at + 1 for at in chains]),
            restarts=torch.from_numpy(positions == 0),
            learned=torch.from_numpy(np.flatnonzero(np.concatenate(learned))),
        )

    def depth(self, step: int) -> int:
        """Steps of a segment's chain at an update: from 1 to `depth`, by a constant factor."""
        depth, ramp = self._rollout.depth, self._rollout.depth_ramp
        return round(depth ** min(1.0, (step + 1) / ramp)) if ramp else depth

    def _chains(self, entry: int, length: int) -> tuple[IntArray, NDArray[np.bool_]]:
        """Positions (C, L) before each step of the chains of a window, and which are learned from.

        A segment that comes to the end of the window goes on at its beginning, from the empty
        memory.
        """
        length = int(length)
        if self._rollout.kind == "segments":
            depth = min(self.depth(entry // self._windows.batch_size), length)
            phase = int(uniform(self._key, np.array([entry]), 1)[0, 0] * length)
        else:
            depth, phase = length, 0
        offsets = np.arange(-(-length // depth) * depth).reshape(-1, depth)
        every = self._rollout.loss_every
        learned = (offsets < length) & (np.arange(depth) % every == min(every, depth) - 1)
        return (offsets + phase) % length, learned


class SequenceSource:
    """Batches of whole windows of tokens, in the shuffled order."""

    def __init__(
        self, windows: WindowSource, *, batch_size: int, seed: int, by_length: bool = True
    ) -> None:
        self._windows = windows
        lengths = windows.lengths() if by_length else None
        self._order = SampleOrder(windows.per_epoch, batch_size, seed, lengths)
        self._seed = seed

    def batch(self, step: int, part: int = 0, parts: int = 1) -> SequenceBatch:
        entries = self._order.entries(step, part, parts)
        epochs, rows = self._order.rows(entries)
        return _sequences(self._windows.read(self._windows.starts(epochs, rows, self._seed)))


class LabelSequenceSource:
    """The tokens and targets of labels alone: batches of whole windows."""

    def __init__(
        self, labels: LabelShards, *, batch_size: int, seed: int, by_length: bool = True
    ) -> None:
        nothing = TransitionObjectiveConfig()
        self._windows = _LabelWindows(labels, nothing, batch_size, seed, by_length)

    def batch(self, step: int, part: int = 0, parts: int = 1) -> SequenceBatch:
        _, _, windows = self._windows.read(step, part, parts)
        return _sequences(windows)


class _LabelWindows:
    """Whole windows of labels in the shuffled order, and what is drawn for each."""

    def __init__(
        self,
        labels: LabelShards,
        objective: TransitionObjectiveConfig,
        batch_size: int,
        seed: int,
        by_length: bool,
    ) -> None:
        self.batch_size = batch_size
        self.labels = labels
        self._objective = objective
        lengths = labels.lengths() if by_length else None
        self._order = SampleOrder(len(labels), batch_size, seed, lengths)
        self._seed = seed

    def read(self, step: int, part: int, parts: int) -> tuple[IntArray, IntArray, Windows]:
        """Entries, their rows, and all but the memories of these."""
        entries = self._order.entries(step, part, parts)
        _, rows = self._order.rows(entries)
        return entries, rows, self.labels.windows(rows)

    def whole(
        self, rows: IntArray, windows: Windows, positions: list[IntArray]
    ) -> dict[str, Tensor]:
        """All memories of windows, and the places among them of `positions` (..., L) of each."""
        count = int(windows.length.max()) + 1
        memory, scale = self.labels.memories(rows, range(count))
        place = np.concatenate([row * count + at for row, at in enumerate(positions)])
        return {"memory": memory, "scale": scale, "place": torch.from_numpy(place)}

    def asked(
        self, entries: IntArray, windows: Windows, positions: list[IntArray]
    ) -> dict[str, Tensor]:
        """First targets; and futures after some of the transitions at `positions` of each row."""
        objective = self._objective
        first_target = {"first_target": torch.from_numpy(windows.targets[:, 0].copy())}
        if not objective.kl_weight:
            return {**first_target, **_NOTHING_COMPARED}
        window, length = self.labels.shape.window, windows.length
        wanted = min(objective.kl_future, window)
        counts = np.array([len(at) for at in positions])
        key = random_key(self._seed, "compared")
        chosen = stratified(key, entries, objective.kl_positions, counts)
        after = np.stack([at[some] + 1 for at, some in zip(positions, chosen, strict=True)])
        places = after[:, :, None] + np.arange(wanted)  # (B, M / B, F)
        inside = np.minimum(places, window - 1)
        there = np.clip(length[:, None] - after, 0, wanted).reshape(-1)
        first = np.cumsum(counts) - counts
        return {
            **first_target,
            "compared": torch.from_numpy((first[:, None] + chosen).reshape(-1)),
            "future": _gathered(windows.tokens, inside),
            "future_length": torch.from_numpy(there),
        }

    def noise(self, entries: IntArray, counts: list[int]) -> Tensor:
        """Unit normal numbers for `counts` memories of each window, or none."""
        shape = self.labels.shape
        if not self._objective.noise:
            return torch.empty(0, shape.slots, shape.slot_width)
        drawn = []
        for entry, count in zip(entries, counts, strict=True):
            generator = torch.Generator().manual_seed(random_key(self._seed, "noise", int(entry)))
            drawn.append(torch.randn(count, shape.slots, shape.slot_width, generator=generator))
        return torch.cat(drawn)


def _sequences(windows: Windows) -> SequenceBatch:
    """Without the padding that all have."""
    longest = int(windows.length.max())
    return SequenceBatch(
        torch.from_numpy(windows.tokens[:, :longest]),
        torch.from_numpy(windows.targets[:, : longest + 1]),
        torch.from_numpy(windows.length),
    )


def _gathered(column: IntArray, positions: Any) -> Tensor:
    """A column (B, ...) of each window at its positions, windows after each other."""
    if isinstance(positions, np.ndarray) and positions.ndim == 2:
        flat = positions + np.arange(0, column.size, column.shape[1])[:, None]
        return torch.from_numpy(column.take(flat.reshape(-1)))
    chosen = [row[at] for row, at in zip(column, positions, strict=True)]
    return torch.from_numpy(np.concatenate(chosen))


def _padded(values: NDArray[Any], steps: int) -> NDArray[Any]:
    """(C, l) -> (C, steps), with zeros."""
    return np.pad(values, ((0, 0), (0, steps - values.shape[1])))
