"""What `smt` and `dmt` share: the objective of a memory that a cell has predicted.

Paper equation 6, plus the readout's cross-entropy, plus, if asked for, what the teacher's decoder
says of label and predicted memory. N: transitions, K: slots, D: slot width, M: those of the N whose
futures are compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from smtkit import IGNORE
from smtkit.config import TransitionObjectiveConfig
from smtkit.corpus.seeded import IntArray, random_key, stratified
from smtkit.corpus.windows import Windows
from smtkit.labels.codec import decode
from smtkit.labels.reader import LabelShards
from smtkit.methods import losses
from smtkit.methods.base import QuietMethod
from smtkit.methods.bptt import SequenceBatch, as_sequences
from smtkit.networks.decoder import FutureDecoder
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.training.order import SampleOrder


@dataclass(frozen=True)
class LabelBatch:
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


class LabelSequenceSampler:
    """The tokens and targets of labels alone: batches of whole windows."""

    def __init__(
        self, labels: LabelShards, *, batch_size: int, seed: int, by_length: bool = True
    ) -> None:
        nothing = TransitionObjectiveConfig()
        self._windows = LabelWindows(labels, nothing, batch_size, seed, by_length)

    def batch(self, step: int, part: int = 0, parts: int = 1) -> SequenceBatch:
        _, _, windows = self._windows.read(step, part, parts)
        return as_sequences(windows)


class LabelWindows:
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
            "future": gather(windows.tokens, inside),
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


def gather(column: IntArray, positions: Any) -> Tensor:
    """A column (B, ...) of each window at its positions, windows after each other."""
    if isinstance(positions, np.ndarray) and positions.ndim == 2:
        flat = positions + np.arange(0, column.size, column.shape[1])[:, None]
        return torch.from_numpy(column.take(flat.reshape(-1)))
    chosen = [row[at] for row, at in zip(column, positions, strict=True)]
    return torch.from_numpy(np.concatenate(chosen))


def pad_steps(values: NDArray[Any], steps: int) -> NDArray[Any]:
    """(C, l) -> (C, steps), with zeros."""
    return np.pad(values, ((0, 0), (0, steps - values.shape[1])))


class MeasuredError(nn.Module):
    """How far predicted memories were from their labels at the last update: a mean square."""

    squared: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("squared", torch.zeros(()))


class TransitionMethod(QuietMethod):
    """Weights, counts and sums of the terms; a method says which memories it predicts from.

    `decoder` is the teacher's, frozen; it is needed where `kl_weight` is not zero.
    """

    def __init__(
        self,
        network: RecurrentNetwork,
        config: TransitionObjectiveConfig,
        decoder: FutureDecoder | None = None,
    ) -> None:
        self.network = network
        self.state = MeasuredError()
        self._config = config
        self._decoder = decoder.eval().requires_grad_(False) if decoder is not None else None

    def weights(self, step: int) -> dict[str, float]:
        return {
            "dynamics": self._config.dynamics_weight,
            "readout": self._config.readout_weight,
            "divergence": self._config.kl_weight,
        }

    def observe(self, step: int, means: Mapping[str, Tensor]) -> None:
        """Notes how far predicted memories are from their labels: what noise is measured by."""
        if self._config.noise:
            self.state.squared.copy_(means["dynamics"])

    def _counts(self, target: Tensor, batch: LabelBatch) -> dict[str, int]:
        asked = (target != IGNORE).sum() + (batch.first_target != IGNORE).sum()
        counts = {"dynamics": len(target), "readout": int(asked)}
        if len(batch.compared):
            counts["divergence"] = int((batch.future_length + 1).sum())
        return counts

    def _sums(
        self,
        predicted: Tensor,
        after: Tensor,
        target: Tensor,
        batch: LabelBatch,
    ) -> dict[str, Tensor]:
        """Of predicted memories and their labels, (N, K, D); targets (N,)."""
        read = predicted.detach() if self._config.detach_readout else predicted
        empty = self.network.start(len(batch.first_target))
        sums = {
            "dynamics": losses.dynamics(predicted, after),
            "readout": losses.cross_entropy(self.network.readout(read), target)
            + losses.cross_entropy(self.network.readout(empty), batch.first_target),
        }
        if len(batch.compared):
            sums["divergence"] = self._divergence(predicted, after, batch)
        return sums

    def _divergence(self, predicted: Tensor, after: Tensor, batch: LabelBatch) -> Tensor:
        assert self._decoder is not None
        with torch.no_grad():
            label = self._decoder(after[batch.compared].to(predicted.dtype), batch.future)
        said = self._decoder(predicted[batch.compared], batch.future)  # (M, F + 1, V)
        there = torch.arange(said.shape[1], device=said.device) <= batch.future_length[:, None]
        return losses.divergence(label[there], said[there])

    def _disturbed(self, memory: Tensor, noise: Tensor) -> Tensor:
        """In training, memories with Gaussian noise, in multiples of the error of the update
        before: of `smt` that of one step, of `dmt` the drift of its rollout."""
        if not self._config.noise or not self.network.training:
            return memory
        return memory + self._config.noise * self.state.squared.sqrt() * noise.view_as(memory)
