"""DAgger memory training of the RNN: the one-step objective, from memories of its own rollout.

The label of a step is the teacher's memory, wherever the RNN has come to: so it learns to come back
(Ross et al. 2011). No gradient flows through the rollout: it reaches one step back.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smtkit.config import RolloutConfig, TransitionObjectiveConfig
from smtkit.corpus.seeded import IntArray, random_key, uniform
from smtkit.labels.reader import LabelShards
from smtkit.methods.transitions import LabelBatch, LabelWindows, TransitionMethod, gather, pad_steps
from smtkit.networks.decoder import FutureDecoder
from smtkit.networks.rnn import RecurrentNetwork


@dataclass(frozen=True)
class RolloutBatch(LabelBatch):
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


class RolloutSampler:
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
        self._windows = LabelWindows(labels, objective, batch_size, seed, by_length)
        self._rollout = rollout
        self._key = random_key(seed, "phase of chains")

    def batch(self, step: int, part: int = 0, parts: int = 1) -> RolloutBatch:
        entries, rows, windows = self._windows.read(step, part, parts)
        plan = [self._chains(*given) for given in zip(entries, windows.length, strict=True)]
        steps = max(positions.shape[1] for positions, _ in plan)
        chains = [pad_steps(positions, steps) for positions, _ in plan]
        learned = [pad_steps(wanted, steps) for _, wanted in plan]
        positions = np.concatenate(chains)
        asked = [at[wanted] for at, wanted in zip(chains, learned, strict=True)]
        # Jacobi disturbs every label that it begins from, the others the first of each chain.
        disturbed = [at.size if self._rollout.kind == "jacobi" else len(at) for at in chains]
        return RolloutBatch(
            **self._windows.asked(entries, windows, asked),
            **self._windows.whole(rows, windows, chains),
            noise=self._windows.noise(entries, disturbed),
            tokens=gather(windows.tokens, chains),
            target=gather(windows.targets, [at + 1 for at in chains]),
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


class DaggerMemoryTraining(TransitionMethod):
    """Chains roll side by side from where they start; or, `jacobi`, all their steps at once, again
    and again."""

    def __init__(
        self,
        network: RecurrentNetwork,
        config: TransitionObjectiveConfig,
        rollout: RolloutConfig,
        decoder: FutureDecoder | None = None,
    ) -> None:
        super().__init__(network, config, decoder)
        self._rollout = rollout

    def counts(self, batch: RolloutBatch) -> dict[str, int]:
        """Number of terms in each sum of `losses`."""
        return self._counts(batch.target.flatten()[batch.learned], batch)

    def losses(self, batch: RolloutBatch) -> dict[str, Tensor]:
        """Sums of each term over the steps that are learned from."""
        predicted = self._swept(batch) if self._rollout.kind == "jacobi" else self._rolled(batch)
        return self._sums(
            predicted,
            batch.learned_after,
            batch.target.flatten()[batch.learned],
            batch,
        )

    def _rolled(self, batch: RolloutBatch) -> Tensor:
        """Memories after the N steps that are learned from, (N, K, D), one step after the other.

        The steps between leave neither a graph nor their memories behind.
        """
        steps = batch.tokens.shape[1]
        chains, offsets = batch.learned // steps, batch.learned % steps
        kept = offsets.unique()  # at which any chain learns
        memory = self._disturbed(batch.start, batch.noise)
        predicted: list[Tensor] = []
        done = 0
        for offset in kept.tolist():
            if done < offset:
                with _without_a_graph():
                    for between in range(done, offset):
                        memory = self._stepped(batch, memory, between)
            predicted.append(self._stepped(batch, memory, offset))
            memory, done = predicted[-1].detach(), offset + 1
        return torch.stack(predicted, dim=1)[chains, torch.searchsorted(kept, offsets)]

    def _stepped(self, batch: RolloutBatch, memory: Tensor, offset: int) -> Tensor:
        """(C, K, D) -> (C, K, D): every chain's step at `offset`."""
        begins = batch.restarts[:, offset, None, None]
        before = torch.where(begins, self.network.empty_memory, memory)
        return self.network.step(before, batch.tokens[:, offset])

    def _swept(self, batch: RolloutBatch) -> Tensor:
        """Memories after the N steps that are learned from, (N, K, D): sweep k is k steps away from
        the labels. The last sweep is of those steps alone."""
        shape, tokens = batch.tokens.shape, batch.tokens.flatten()
        first = self.network.start(len(batch.tokens))[:, None]

        def before(memory: Tensor) -> Tensor:
            """Memories before each step, in the flat C * L, from those after them, (C, L, K, D)."""
            return torch.cat((first, memory[:, :-1]), dim=1).flatten(0, 1)

        memory = self._disturbed(batch.after, batch.noise)
        with _without_a_graph():
            for _ in range(self._rollout.sweeps - 1):
                memory = self.network.step(before(memory), tokens).unflatten(0, shape)
        return self.network.step(before(memory)[batch.learned], tokens[batch.learned])


@contextmanager
def _without_a_graph() -> Iterator[None]:
    with torch.no_grad():
        yield
    # Of weights that autocast has cast here, older versions of torch would keep the casts, which no
    # gradient passes (pytorch/pytorch#158232).
    torch.clear_autocast_cache()
