"""The teacher's joint objective: memories that predict the future, and that a cell can follow.

Paper equations 2 to 5 (decoding, dynamics, uniformity); the dense term is ours: the readout's
cross-entropy at all positions.
"""

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from smtkit import IGNORE
from smtkit.config import PredictiveStateConfig
from smtkit.corpus.seeded import IntArray, random_key, stratified
from smtkit.corpus.windows import WindowReader
from smtkit.methods import losses
from smtkit.networks.encoders import select
from smtkit.networks.teacher import Teacher
from smtkit.training.order import SampleOrder


@dataclass(frozen=True)
class TeacherBatch:
    """Windows and the positions at which they are used.

    tokens (B, T + F), targets (B, T + F + 1), length (B,) at most T; anchors (B, A) and
    uniformity_positions (B, U) in 0..length; dynamics_positions (B, P) in 0..length - 1;
    dense_positions (B, Q) in 0..length, or, of short rows, past it: there nothing is asked.
    """

    tokens: Tensor
    targets: Tensor
    length: Tensor
    anchors: Tensor
    dynamics_positions: Tensor
    uniformity_positions: Tensor
    dense_positions: Tensor

    @property
    def tokens_read(self) -> int:
        return int(self.length.sum())


class TeacherSampler:
    """Batches for the teacher: a pure function of the seed and the step.

    Where as many positions are asked for dynamics, or for uniformity, as there are anchors, they
    are the anchors (or, where no transition leads on, the position before): an encoder that makes
    one memory a pass then makes one and its successor for each.

    `aligned`: so many windows, one after the other, draw the same uniformity positions, if they are
    equally long. `dense_positions`: how many are drawn; None: all. `rest`: windows look ahead as
    far as they are long. T is cut to the longest window of the batch. `by_length`: a batch takes
    windows of one length; if not, of all that there are, in proportion.
    """

    def __init__(
        self,
        windows: WindowReader,
        *,
        batch_size: int,
        seed: int,
        anchors: int,
        dynamics_positions: int,
        uniformity_positions: int,
        aligned: int = 1,
        dense_positions: int | None = None,
        rest: bool = False,
        by_length: bool = True,
    ) -> None:
        self._windows = windows
        lengths = windows.lengths() if by_length else None
        self._order = SampleOrder(windows.per_epoch, batch_size, seed, lengths)
        self._rest = rest
        self._seed = seed
        self._anchors = anchors
        self._dynamics_positions = dynamics_positions
        self._uniformity_positions = uniformity_positions
        self._aligned = aligned
        self._dense_positions = dense_positions

    def batch(self, step: int, part: int = 0, parts: int = 1) -> TeacherBatch:
        entries = self._order.entries(step, part, parts)
        epochs, rows = self._order.rows(entries)
        windows = self._windows.read(self._windows.starts(epochs, rows, self._seed))
        length = np.minimum(windows.length, self._windows.window)
        positions = length + 1
        longest = int(length.max())
        anchors = self._draw("anchors", entries, self._anchors, positions)
        if self._dynamics_positions == self._anchors:
            dynamics = np.minimum(anchors, length[:, None] - 1)
        else:
            dynamics = self._draw("dynamics", entries, self._dynamics_positions, length)
        if self._uniformity_positions == self._anchors and self._aligned == 1:
            uniformity = anchors
        else:
            groups = entries // self._aligned
            uniformity = self._draw("uniformity", groups, self._uniformity_positions, positions)
        lookahead = longest if self._rest else windows.tokens.shape[1] - self._windows.window
        width = longest + lookahead
        return TeacherBatch(
            *_tensors(
                windows.tokens[:, :width],
                windows.targets[:, : width + 1],
                length,
                anchors,
                dynamics,
                uniformity,
                self._dense(entries, positions, longest),
            )
        )

    def _dense(self, entries: IntArray, sizes: IntArray, longest: int) -> IntArray:
        if self._dense_positions is None:
            return np.tile(np.arange(longest + 1), (len(entries), 1))
        return self._draw("dense", entries, self._dense_positions, sizes)

    def _draw(self, purpose: str, entries: IntArray, draws: int, sizes: IntArray) -> IntArray:
        return stratified(random_key(self._seed, purpose), entries, draws, sizes)


def _tensors(*arrays: NDArray[Any]) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(array) for array in arrays)


_AVERAGED_UPDATES = 10
_COLLAPSE = {
    "memory_uniformity": (operator.gt, -0.1),
    "memory_variance": (operator.lt, 0.01),
    "memory_effective_rank": (operator.lt, 1.5),
}


class PlateauGate(nn.Module):
    """Opens, for good, at the update at which an average of the decoding loss is below `limit`.

    A GPU is waited for as long as it is shut, and no longer.
    """

    average: Tensor
    opened: Tensor

    def __init__(self, plateau: float, limit: float) -> None:
        super().__init__()
        self._limit = limit
        self.register_buffer("average", torch.tensor(plateau))
        self.register_buffer("opened", torch.tensor(torch.inf))
        self._step: int | None = None  # `opened`, once it is known to be a number
        forget = self._forget
        self.register_load_state_dict_post_hook(forget)  # type: ignore[no-untyped-call]

    def observe(self, step: int, decoding: Tensor) -> None:
        self.average.lerp_(decoding, 1 / _AVERAGED_UPDATES)
        opens = (self.average < self._limit) & self.opened.isinf()
        self.opened.masked_fill_(opens, step + 1)

    @property
    def step(self) -> int | None:
        """The first update after it opened."""
        if self._step is None:
            opened = float(self.opened)
            self._step = None if math.isinf(opened) else int(opened)
        return self._step

    def _forget(self, *_: object) -> None:
        self._step = None


class PredictiveState:
    """Encoder, decoder, cell and readout trained together.

    `unigram_nll`: of the targets, in nats; where `dynamics_start` is "auto", decoding has left its
    plateau when it is clearly below.
    """

    def __init__(
        self,
        teacher: Teacher,
        config: PredictiveStateConfig,
        unigram_nll: float | None = None,
    ) -> None:
        self.network = teacher
        self.state = nn.Module()
        self._config = config
        self._gate = None
        if config.dynamics_start == "auto":
            assert unigram_nll is not None
            self._gate = PlateauGate(unigram_nll, config.plateau * unigram_nll)
            self.state = self._gate

    def weights(self, step: int) -> dict[str, float]:
        """Weight of each term. Dynamics are ramped in: at full weight from the start they would
        collapse the memory before it predicts anything."""
        config = self._config
        ramp = self._ramp(step)
        return {
            "decoding": config.decoding_weight,
            "dense": config.dense_weight,
            "dynamics": config.dynamics_weight * ramp,
            "readout": config.readout_weight * ramp,
            "uniformity": config.uniformity_weight,
        }

    def _ramp(self, step: int) -> float:
        start = self._gate.step if self._gate else self._config.dynamics_start
        if not isinstance(start, int) or step < start:
            return 0.0
        return min(1.0, (step - start + 1) / max(1, self._config.dynamics_ramp))

    def counts(self, batch: TeacherBatch) -> dict[str, int]:
        """Number of terms in each sum of `losses`."""
        counts = {
            "decoding": int((self._future_targets(batch) != IGNORE).sum()),
            "dynamics": batch.dynamics_positions.numel(),
            "readout": int((self._transition_targets(batch) != IGNORE).sum()),
            "uniformity": len(batch.tokens) // self._config.uniformity_group,
        }
        if batch.dense_positions.numel():
            counts["dense"] = int((self._dense_targets(batch) != IGNORE).sum())
        return counts

    def losses(self, batch: TeacherBatch) -> dict[str, Tensor]:
        """Sums of each term over the batch."""
        positions = batch.dynamics_positions
        anchored, dense, before, after, compared = self._encode(
            batch,
            batch.anchors,
            batch.dense_positions,
            positions,
            positions + 1,
            batch.uniformity_positions,
        )
        tokens = select(batch.tokens, positions).flatten()
        predicted = self.network.step(before.flatten(0, 1), tokens)  # (B P, K, D)
        sums = {
            "decoding": self._decoding(anchored.flatten(0, 1), batch),
            "dynamics": losses.dynamics(predicted, after.flatten(0, 1)),
            "readout": losses.cross_entropy(
                self.network.read(predicted), self._transition_targets(batch)
            ),
            "uniformity": self._uniformity(compared),
        }
        if dense.numel():
            said = self.network.read(dense.flatten(0, 1))
            sums["dense"] = losses.cross_entropy(said, self._dense_targets(batch))
        return sums

    def observe(self, step: int, means: Mapping[str, Tensor]) -> None:
        """Notes how well decoding goes, where that decides when dynamics begin."""
        if self._gate and "decoding" in means:
            self._gate.observe(step, means["decoding"])

    @torch.no_grad()
    def diagnostics(self, batch: TeacherBatch) -> dict[str, float]:
        """Health of the memories of the batch."""
        (memory,) = self._encode(batch, batch.uniformity_positions)
        health = losses.memory_health(memory.flatten(0, 1))
        return {f"memory_{name}": value for name, value in health.items()}

    def warning(self, metrics: Mapping[str, float]) -> str | None:
        """What the user should know of these diagnostics, if anything."""
        for name, (holds, limit) in _COLLAPSE.items():
            if holds(metrics[name], limit):
                return (
                    f"memory collapses: {name} is {metrics[name]:.3g} (limit {limit:g}); try a "
                    "smaller objective.dynamics_weight, a later objective.dynamics_start, or more "
                    "objective.uniformity_weight"
                )
        return None

    def _future(self, batch: TeacherBatch) -> int:
        """F: tokens that lie ahead of the window, T of the T + F."""
        wanted = self._config.future_length
        return batch.tokens.shape[1] // 2 if wanted == "rest" else wanted

    def _window(self, batch: TeacherBatch) -> int:
        return batch.tokens.shape[1] - self._future(batch)

    def _encode(self, batch: TeacherBatch, *positions: Tensor) -> tuple[Tensor, ...]:
        """Memories (B, P, K, D) at each of the `positions` (B, P)."""
        tokens = batch.tokens[:, : self._window(batch)]
        memory = self.network.encoder.encode_at(tokens, torch.cat(positions, dim=1))
        return memory.split([some.shape[1] for some in positions], dim=1)

    def _decoding(self, anchored: Tensor, batch: TeacherBatch) -> Tensor:
        """From memories at the anchors, (B A, K, D)."""
        offsets = torch.arange(self._future(batch), device=anchored.device)
        future = select(batch.tokens, self._from_anchors(batch, offsets))
        logits = self.network.decoder(anchored, future.reshape(len(anchored), -1))
        return losses.cross_entropy(logits, self._future_targets(batch))

    def _future_targets(self, batch: TeacherBatch) -> Tensor:
        offsets = torch.arange(self._future(batch) + 1, device=batch.targets.device)
        positions = self._from_anchors(batch, offsets)
        targets = select(batch.targets, positions)
        length = batch.length[:, None]
        padding = (positions > length) & (length < self._window(batch))
        return targets.masked_fill(padding, IGNORE)

    @staticmethod
    def _from_anchors(batch: TeacherBatch, offsets: Tensor) -> Tensor:
        """(B, A * len(offsets)) positions."""
        return (batch.anchors[:, :, None] + offsets).flatten(1)

    @staticmethod
    def _dense_targets(batch: TeacherBatch) -> Tensor:
        """Past `length` there is padding, or the decoder's look-ahead."""
        targets = select(batch.targets, batch.dense_positions)
        return targets.masked_fill(batch.dense_positions > batch.length[:, None], IGNORE)

    @staticmethod
    def _transition_targets(batch: TeacherBatch) -> Tensor:
        return select(batch.targets, batch.dynamics_positions + 1)

    def _uniformity(self, compared: Tensor) -> Tensor:
        """Of memories (B, U, K, D), a mean over positions where they are compared one by one."""
        groups = compared.unflatten(0, (-1, self._config.uniformity_group))  # (G, g, U, K, D)
        positions = 1
        if self._config.uniformity_pairs == "aligned":
            positions = compared.shape[1]
            groups = groups.transpose(1, 2).flatten(0, 1)  # (G U, g, K, D)
        else:
            groups = groups.flatten(1, 2)  # (G, g U, K, D)
        if self._config.uniformity == "pooled":
            groups = losses.pool_slots(groups)
        return losses.uniformity(groups).sum() / positions
