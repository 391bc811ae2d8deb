"""The teacher's objective: memories that predict the future, and that a cell can follow.

Paper equations 2 to 5 (decoding, dynamics, uniformity). The dense term is ours: cross-entropy of
the readout on the memories themselves. Decoding starts at *anchors*: positions from whose memory
alone the future is predicted, by the decoder or, in a *hand-off* (`decoder.kind = handoff`), by the
encoder, which goes on from that memory. A new term needs its positions and targets in
`TeacherBatch` and `TeacherSampler.batch`, and its weight, count and sum in `PredictiveState`.

B: windows, T: longest window of the batch, A: anchors, F: future tokens, Q: dense positions,
P: transitions, H: transitions per anchor after a hand-off, U: compared memories, K: slots,
D: slot width, V: vocabulary.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from smtkit import IGNORE
from smtkit.config import PredictiveStateConfig
from smtkit.config.base import fraction, is_share
from smtkit.corpus.seeded import IntArray, random_key, stratified, uniform
from smtkit.methods import losses
from smtkit.methods.base import WindowSampler
from smtkit.methods.collapse import collapse
from smtkit.methods.plateau import PlateauGate
from smtkit.networks.encoders import select
from smtkit.networks.teacher import Teacher


@dataclass(frozen=True)
class TeacherBatch:
    """Windows; and for each term of the loss the positions of its memories, and their targets.

    tokens (B, T), length (B,). Memories lie at positions 0..length; a transition at i reads token i
    and leads to memory i + 1. Targets past the end of a window are IGNORE.

    decoding: at anchors (B, A) the decoder reads future (B, A, F) to predict future_targets
    (B, A, F + 1). With hand-offs, handoff_positions (B, A, H) are transitions in the future, and
    own (B, A), uniform in [0, 1), chooses between the encoder's memory and the cell's own. dense:
    dense_positions (B, Q), some of which lie past the end of short windows, and dense_targets
    (B, Q). dynamics and readout: dynamics_positions (B, P), the tokens read there (B, P), and the
    targets of the memories after them (B, P). uniformity_positions (B, U).
    """

    tokens: Tensor
    length: Tensor
    anchors: Tensor
    future: Tensor
    future_targets: Tensor
    own: Tensor
    handoff_positions: Tensor
    dense_positions: Tensor
    dense_targets: Tensor
    dynamics_positions: Tensor
    dynamics_tokens: Tensor
    dynamics_targets: Tensor
    uniformity_positions: Tensor

    @property
    def tokens_read(self) -> int:
        return int(self.length.sum())


@dataclass
class TeacherSampler(WindowSampler):
    """Batches for the teacher: positions are drawn in each window, evenly spaced.

    Where dynamics or uniformity use as many positions as there are anchors, they use the anchors
    (or the position before one at the end of a window). An encoder that computes one memory per
    pass (not `parallel`) then needs only two per anchor: that memory and the next one.
    """

    objective: PredictiveStateConfig
    parallel: bool = field(default=True, kw_only=True)
    handoff: bool = field(default=False, kw_only=True)

    def batch(self, step: int, part: int = 0, parts: int = 1) -> TeacherBatch:
        """Slice `part` of `parts` of the batch of `step`."""
        objective = self.objective
        samples, _, windows = self._read(step, part, parts)
        length = np.minimum(windows.length, self.windows.window)  # the rest is look-ahead
        longest = int(length.max())
        targets = _mask_padding(windows.targets, length)

        anchors = self._anchors(step, samples, length)
        ahead = objective.future_length
        if ahead == "rest":
            # Hand-offs cut all rows of a batch at one share of their length: what remains is short.
            ahead = longest - int(anchors.min()) if self.handoff else longest
        future = anchors[:, :, None] + np.arange(ahead + 1)

        dense, count = np.tile(np.arange(longest + 1), (len(samples), 1)), self._dense_positions()
        if count is not None:
            dense = self._draw("dense", samples, count, length + 1)

        dynamics = np.minimum(anchors, length[:, None] - 1)
        if objective.dynamics_positions != objective.anchors:
            dynamics = self._draw("dynamics", samples, objective.dynamics_positions, length)

        # Aligned: windows that are compared with each other draw the same positions.
        aligned = objective.uniformity_pairs == "aligned"
        groups = samples // (objective.uniformity_group if aligned else 1)
        uniformity, count = anchors, objective.uniformity_positions
        if aligned or count != objective.anchors:
            uniformity = self._draw("uniformity", groups, count, length + 1)

        row = np.arange(len(samples))[:, None]
        arrays = {
            "tokens": windows.tokens[:, :longest],
            "length": length,
            "anchors": anchors,
            "future": windows.tokens[row[:, None], future[:, :, :-1]],
            "future_targets": targets[row[:, None], future],
            "own": uniform(random_key(self.seed, "own memory"), samples, objective.anchors),
            "handoff_positions": self._handoff_positions(samples, anchors, length, ahead),
            "dense_positions": dense,
            "dense_targets": targets[row, dense],
            "dynamics_positions": dynamics,
            "dynamics_tokens": windows.tokens[row, dynamics],
            "dynamics_targets": targets[row, dynamics + 1],
            "uniformity_positions": uniformity,
        }
        return TeacherBatch(**{name: torch.from_numpy(array) for name, array in arrays.items()})

    def _anchors(self, step: int, samples: IntArray, length: IntArray) -> IntArray:
        """(B, A). A hand-off reads at least one token; where it reads the rest of a row, all rows
        of a batch are cut at the same share of their length, so that there is little padding."""
        count = self.objective.anchors
        if not self.handoff:
            return self._draw("anchors", samples, count, length + 1)
        if self.objective.future_length != "rest":
            return self._draw("anchors", samples, count, length)
        share = uniform(random_key(self.seed, "anchors"), np.array([step]), 1)
        share = (np.arange(count) + share) / count  # (1, A)
        return (share * length[:, None]).astype(np.int64)

    def _handoff_positions(
        self, samples: IntArray, anchors: IntArray, length: IntArray, ahead: int
    ) -> IntArray:
        """(B, A, H) positions of transitions in the `ahead` tokens after each anchor."""
        batch, count = anchors.shape
        draws = -(-self.objective.dynamics_positions // count) if self.handoff else 0
        if not draws:
            return np.empty((batch, count, 0), dtype=np.int64)
        inside = np.minimum(ahead, length[:, None] - anchors).reshape(-1)
        numbers = (samples[:, None] * count + np.arange(count)).reshape(-1)
        return self._draw("hand-off", numbers, draws, inside).reshape(batch, count, draws)

    def _dense_positions(self) -> int | None:
        """Positions per window; None: all."""
        if not self.objective.dense_weight:
            return 0
        count = self.objective.dense_positions
        return count if self.parallel else count or self.objective.anchors

    def _draw(self, term: str, samples: IntArray, count: int, sizes: IntArray) -> IntArray:
        return stratified(random_key(self.seed, term), samples, count, sizes)


def _mask_padding(targets: IntArray, length: IntArray) -> IntArray:
    """Targets with IGNORE past the end of the windows that are shorter than the longest one.

    What follows the end of the longest windows is look-ahead, with targets of its own.
    """
    padding = np.arange(targets.shape[1]) > length[:, None]
    return np.where(padding & (length < length.max())[:, None], IGNORE, targets)


def _after_handoff(batch: TeacherBatch) -> Tensor:
    """Targets (B, A, H) of the memories after the transitions of hand-offs."""
    return batch.future_targets.gather(2, batch.handoff_positions + 1)


class PredictiveState:
    """Trains encoder, decoder, cell and readout together.

    `unigram_nll`: entropy of the targets' frequencies, in nats. Needed where `dynamics_start` is
    "auto": decoding has left its plateau when it is clearly below.
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
        if teacher.decoder is None:
            self.state.register_buffer("own_memory", torch.zeros(()))  # share, ramped in

    def weights(self, step: int, done: float = 0.0) -> dict[str, float]:
        """Weight of each term. Dynamics are ramped in: at full weight from the start they would
        collapse the memory before it predicts anything."""
        config = self._config
        ramp = self._ramp(step, done)
        return {
            "decoding": config.decoding_weight,
            "dense": config.dense_weight,
            "dynamics": config.dynamics_weight * ramp,
            "readout": config.readout_weight * ramp,
            "uniformity": config.uniformity_weight,
        }

    def _ramp(self, step: int, done: float) -> float:
        """The dynamics' share of their full weight, at `step`, when `done` of the run is over."""
        first, ramp = self._config.dynamics_start, self._config.dynamics_ramp
        if is_share(first) and is_share(ramp):
            since = done - fraction(first)
            return 0.0 if since < 0 else min(1.0, since / max(fraction(ramp), 1e-9))
        start = self._gate.step if self._gate else first
        if not isinstance(start, int) or step < start:
            return 0.0
        assert isinstance(ramp, int)
        return min(1.0, (step - start + 1) / max(1, ramp))

    def counts(self, batch: TeacherBatch) -> dict[str, int]:
        """Number of terms in each sum of `losses`."""
        transitions = batch.dynamics_positions.numel() + batch.handoff_positions.numel()
        targets = (batch.dynamics_targets != IGNORE).sum() + (_after_handoff(batch) != IGNORE).sum()
        counts = {
            "decoding": int((batch.future_targets != IGNORE).sum()),
            "dynamics": transitions,
            "readout": int(targets),
            "uniformity": len(batch.tokens) // self._config.uniformity_group,
        }
        if batch.dense_positions.numel():
            counts["dense"] = int((batch.dense_targets != IGNORE).sum())
        return counts

    def losses(self, batch: TeacherBatch) -> dict[str, Tensor]:
        """Sum of each term over the batch."""
        teacher, positions = self.network, batch.dynamics_positions
        at_anchors, dense, before, after, compared = self._encode(
            batch.tokens,
            batch.anchors,
            batch.dense_positions,
            positions,
            positions + 1,
            batch.uniformity_positions,
        )
        before, after = before.flatten(0, 1), after.flatten(0, 1)  # (N, K, D)
        tokens, targets = batch.dynamics_tokens.flatten(), batch.dynamics_targets.flatten()
        future = batch.future.flatten(0, 1)
        if teacher.decoder is not None:
            logits = teacher.decoder(at_anchors.flatten(0, 1), future)
        else:
            memories = teacher.hand_off(self._handed_over(at_anchors, batch), future)
            logits = teacher.read(memories.flatten(0, 1))
            inside = batch.handoff_positions.flatten(0, 1)  # (B A, H)
            before = torch.cat((before, select(memories, inside).flatten(0, 1)))
            after = torch.cat((after, select(memories, inside + 1).flatten(0, 1)))
            tokens = torch.cat((tokens, future.gather(1, inside).flatten()))
            targets = torch.cat((targets, _after_handoff(batch).flatten()))
        predicted = teacher.step(before, tokens)
        sums = {
            "decoding": losses.cross_entropy(logits, batch.future_targets),
            "dynamics": losses.dynamics(predicted, after),
            "readout": losses.cross_entropy(teacher.read(predicted), targets),
            "uniformity": self._uniformity(compared),
        }
        if batch.dense_positions.numel():
            logits = teacher.read(dense.flatten(0, 1))
            sums["dense"] = losses.cross_entropy(logits, batch.dense_targets)
        return sums

    def observe(self, step: int, means: Mapping[str, Tensor], done: float = 0.0) -> None:
        """Passes the decoding loss of an update to the gate that starts dynamics, and sets the
        share of hand-offs from the cell's own memory."""
        if self._gate and "decoding" in means:
            self._gate.observe(step, means["decoding"])
        if self.network.decoder is None:
            share = self._config.own_memory * self._ramp(step + 1, done)
            self.state.get_buffer("own_memory").fill_(share)

    @torch.no_grad()
    def diagnostics(self, batch: TeacherBatch) -> dict[str, float]:
        """Health of the memories that uniformity compares."""
        (memory,) = self._encode(batch.tokens, batch.uniformity_positions)
        health = losses.memory_health(memory.flatten(0, 1))
        return {f"memory_{name}": value for name, value in health.items()}

    def warning(self, metrics: Mapping[str, float]) -> str | None:
        """A warning for the user where diagnostics show that memories collapse."""
        sign = collapse(metrics, "memory_")
        return None if sign is None else f"memory collapses: {sign}"

    def _handed_over(self, memory: Tensor, batch: TeacherBatch) -> Tensor:
        """The memories (B A, K, D) that hand-offs start from: those of the encoder (B, A, K, D) or,
        in training, for a share of them those of the cell's own rollout.

        The rollout has no gradient. Gradients pass straight through to the encoder's memory, which
        is what the cell learns to produce.
        """
        own = batch.own < self.state.get_buffer("own_memory")  # (B, A)
        rows = own.any(1).nonzero()[:, 0]
        if not self.network.training or not len(rows):
            return memory.flatten(0, 1)
        with torch.no_grad():
            anchors = batch.anchors[rows]
            tokens = batch.tokens[rows, : int(anchors.max())]
            empty = self.network.encoder.empty_memory().expand(len(rows), -1, -1)
            rolled = select(self.network.transition.trajectory(empty, tokens), anchors)
            difference = torch.zeros_like(memory)
            difference[rows] = (rolled - memory[rows]) * own[rows, :, None, None]
        return (memory + difference).flatten(0, 1)

    def _encode(self, tokens: Tensor, *positions: Tensor) -> tuple[Tensor, ...]:
        """Memories (B, P, K, D) at each of the `positions` (B, P), from one call of the encoder."""
        memory = self.network.encoder.encode_at(tokens, torch.cat(positions, dim=1))
        return memory.split([each.shape[1] for each in positions], dim=1)

    def _uniformity(self, memory: Tensor) -> Tensor:
        """Sum over groups of g windows; memory (B, U, K, D).

        "any" compares all g U memories of a group; "aligned" those at one position of its g
        windows, and takes the mean over U positions.
        """
        groups = memory.unflatten(0, (-1, self._config.uniformity_group))  # (G, g, U, K, D)
        positions = 1
        if self._config.uniformity_pairs == "aligned":
            positions = memory.shape[1]
            groups = groups.transpose(1, 2).flatten(0, 1)  # (G U, g, K, D)
        else:
            groups = groups.flatten(1, 2)  # (G, g U, K, D)
        if self._config.uniformity == "pooled":
            groups = groups.flatten(1, 2)[:, :, None]  # each slot as a memory of one slot
        return losses.uniformity(groups).sum() / positions
