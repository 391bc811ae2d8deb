"""DAgger memory training (DMT): the one-step loss, on memories of the RNN's own rollout.

The label of a step is the teacher's memory, wherever the rollout has come to, so that the RNN
learns to return to it (Ross et al. 2011). No gradient flows through the rollout: each step starts
from a detached memory.

The rollout of a window is cut into *chains*, which are rolled out side by side:

- `segments`: chains of `depth` steps, each from the label at its first position. The first one
  starts at a random position, each other one where the one before it ends; from the end of the
  window they continue at its beginning, until every token has been read once.
- `sequential`: one chain over the whole window.
- `jacobi`: one chain too, but computed in sweeps: every step at once, from the memories of the
  previous sweep, the first from labels.

At the beginning of a window a chain *restarts* from the empty memory. All chains of a batch are
padded to the same number of steps. The loss is taken at the last of every `loss_every` steps of a
chain, but not at padding, nor where the last chain of a window reads its first tokens again.

With `backprop` = n > 1, only the memories before steps 0, n, 2n, ... of a chain are detached:
gradients flow back through the *block* of up to n steps that a loss is in, but not past a restart.

B: windows, C: chains, L: steps per chain, N: steps with a loss, K: slots, D: slot width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smtkit.config import RolloutConfig, TransitionObjectiveConfig
from smtkit.corpus.seeded import IntArray, random_key, uniform
from smtkit.methods.transitions import LabelBatch, LabelSampler, TransitionMethod
from smtkit.networks.decoder import FutureDecoder
from smtkit.networks.rnn import RecurrentNetwork


@dataclass(frozen=True, kw_only=True)
class RolloutBatch(LabelBatch):
    """C chains of L steps, of which N have a loss: the transitions of the batch.

    tokens (C, L): read by each step. chain_index (C, L): the label before each step. restarts
    (C, L): whether a step starts from the empty memory. loss_steps (N,): steps with a loss, as
    indices into the flat C L.
    """

    tokens: Tensor
    chain_index: Tensor
    restarts: Tensor
    loss_steps: Tensor

    @property
    def start(self) -> Tensor:
        """(C, K, D): the label before the first step of each chain."""
        return self.memory.decode(self.chain_index[:, 0])

    @property
    def after_steps(self) -> Tensor:
        """(C, L, K, D): the label after every step."""
        return self.memory.decode(self.chain_index + 1)


@dataclass
class RolloutSampler(LabelSampler):
    """Batches of the chains that windows are cut into."""

    rollout: RolloutConfig = field(kw_only=True)

    def batch(self, step: int, part: int = 0, parts: int = 1) -> RolloutBatch:
        """Slice `part` of `parts` of the batch of `step`."""
        samples, rows, windows = self._read(step, part, parts)
        window, position, has_loss = self._chains(step, samples, windows.length)
        shape = self.windows.shape
        count = shape.stored(int(windows.length.max()))
        index = window[:, None] * count + shape.before(position)
        chain, _ = has_loss.nonzero()
        # Noise is added to the labels that chains start from; in jacobi sweeps, to all of them.
        noisy = position.shape[1] if self.rollout.kind == "jacobi" else 1
        return RolloutBatch(
            memory=self.windows.memories(rows, range(count)),
            index=torch.from_numpy(index[has_loss]),
            noise=self._noise(samples, np.bincount(window) * noisy),
            **self._loss_fields(samples, windows, window[chain], position[has_loss]),
            tokens=torch.from_numpy(windows.tokens[window[:, None], position]),
            chain_index=torch.from_numpy(index),
            restarts=torch.from_numpy(position == 0),
            loss_steps=torch.from_numpy(np.flatnonzero(has_loss)),
        )

    def depth(self, step: int) -> int:
        """Steps per segment at an update: from 1 to `depth`, growing by a constant factor."""
        depth, ramp = self.rollout.depth, self.rollout.depth_ramp
        return round(depth ** min(1.0, (step + 1) / ramp)) if ramp else depth

    def _chains(
        self, step: int, samples: IntArray, length: IntArray
    ) -> tuple[IntArray, IntArray, NDArray[np.bool_]]:
        """The chains of windows of `length` (B,): the window of each chain (C,); the position
        before each step (C, L), 0 at padding; whether a step has a loss (C, L)."""
        depth, first = length, np.zeros_like(length)  # steps per chain and first position, (B,)
        if self.rollout.kind == "segments":
            phase = uniform(random_key(self.seed, "phase of chains"), samples, 1)[:, 0]
            depth, first = np.minimum(self.depth(step), length), (phase * length).astype(np.int64)
        chains = -(-length // depth)
        window = np.repeat(np.arange(len(length)), chains)
        # The number of each chain in its window.
        number = np.arange(len(window)) - np.repeat(np.cumsum(chains) - chains, chains)
        length, depth, first = (values[window, None] for values in (length, depth, first))
        steps = np.arange(depth.max())
        offset = number[:, None] * depth + steps  # from the first position of the first chain
        inside = steps < depth
        every = self.rollout.loss_every  # a chain that is shorter has a loss at its last step
        is_last = steps % every == np.minimum(every, depth) - 1
        position = np.where(inside, (first + offset) % length, 0)
        return window, position, inside & is_last & (offset < length)


class DaggerMemoryTraining(TransitionMethod):
    """Trains the cell to predict the labels from memories of its own rollout."""

    def __init__(
        self,
        network: RecurrentNetwork,
        config: TransitionObjectiveConfig,
        rollout: RolloutConfig,
        decoder: FutureDecoder | None = None,
    ) -> None:
        super().__init__(network, config, decoder)
        self._rollout = rollout
        self._block = max(1, rollout.backprop)  # steps between two detached memories

    def losses(self, batch: RolloutBatch) -> dict[str, Tensor]:
        """Sum of each term over the steps with a loss."""
        predicted = self._sweep(batch) if self._rollout.kind == "jacobi" else self._roll(batch)
        return self._sums(predicted, batch)

    def _roll(self, batch: RolloutBatch) -> Tensor:
        """Memories (N, K, D) after the steps with a loss: all chains, block by block.

        Steps of a block after its last loss, and blocks without a loss, build no graph.
        """
        steps = batch.tokens.shape[1]
        chain, offset = batch.loss_steps // steps, batch.loss_steps % steps
        kept = offset.unique()  # the steps at which some chain has a loss, ascending
        memory = self._with_noise(batch.start, batch.noise)
        predicted: list[Tensor] = []
        done = 0
        for block, group in groupby(kept.tolist(), lambda i: i // self._block):
            first, with_loss = block * self._block, list(group)
            if done < first:
                with _no_graph():
                    memory = self._advance(batch, memory, done, first)[-1]
            memories = self._advance(batch, memory, first, with_loss[-1] + 1)
            predicted += [memories[i - first] for i in with_loss]
            memory, done = memories[-1].detach(), with_loss[-1] + 1
        return torch.stack(predicted, dim=1)[chain, torch.searchsorted(kept, offset)]

    def _advance(
        self, batch: RolloutBatch, memory: Tensor, first: int, stop: int
    ) -> Sequence[Tensor]:
        """Memories (C, K, D) of all chains after each of the steps `first`..`stop` - 1."""
        tokens, restarts = batch.tokens[:, first:stop], batch.restarts[:, first:stop]
        if self._uses_kernel(memory):
            return self._advance_fused(memory, tokens, restarts).unbind(1)
        memories = []
        for step_tokens, step_restarts in zip(tokens.unbind(1), restarts.unbind(1), strict=True):
            before = torch.where(step_restarts[:, None, None], self.network.empty_memory, memory)
            memory = self.network.step(before, step_tokens)
            memories.append(memory)
        return memories

    def _uses_kernel(self, memory: Tensor) -> bool:
        """Whether a block is one call of the cell's kernel. On a CPU, steps are as fast."""
        return self._block > 1 and memory.is_cuda and self.network.transition.cell.fused

    def _advance_fused(self, memory: Tensor, tokens: Tensor, restarts: Tensor) -> Tensor:
        """Memories (C, n, K, D) after each of n tokens (C, n), in one call.

        The kernel cannot restart a chain within: what follows a restart (C, n) is rolled out as a
        further chain. A chain restarts once at most, apart from its padding.
        """
        rollout, start = self.network.transition.rollout, self.network.start
        memory = torch.where(restarts[:, 0, None, None], self.network.empty_memory, memory)
        (split,) = restarts[:, 1:].any(1).nonzero(as_tuple=True)  # (S,)
        if not len(split):
            return rollout(memory, tokens)
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        restart = 1 + restarts[split, 1:].int().argmax(1, keepdim=True)  # (S, 1)
        following = (restart + steps).clamp(max=len(steps) - 1)  # (S, n); the last step is repeated
        memories = rollout(
            torch.cat((memory, start(len(split)).to(memory.dtype))),
            torch.cat((tokens, tokens[split[:, None], following])),
        )
        whole, further = memories.split((len(tokens), len(split)))
        since = steps - restart  # (S, n)
        row = torch.arange(len(split), device=tokens.device)[:, None]
        joined = torch.where(
            (since < 0)[:, :, None, None], whole[split], further[row, since.clamp(min=0)]
        )
        return whole.index_copy(0, split, joined)

    def _sweep(self, batch: RolloutBatch) -> Tensor:
        """Memories (N, K, D) after the steps with a loss: all steps at once, `sweeps` times.

        After k sweeps a memory is k steps away from a label. The last sweep computes the N steps
        with a loss alone.
        """
        shape, tokens = batch.tokens.shape, batch.tokens.flatten()
        empty = self.network.start(len(batch.tokens))[:, None]

        def before(after: Tensor) -> Tensor:
            """Memories after each step (C, L, K, D) -> before each step (C L, K, D)."""
            return torch.cat((empty, after[:, :-1]), dim=1).flatten(0, 1)

        memory = self._with_noise(batch.after_steps, batch.noise)
        with _no_graph():
            for _ in range(self._rollout.sweeps - 1):
                memory = self.network.step(before(memory), tokens).unflatten(0, shape)
        return self.network.step(before(memory)[batch.loss_steps], tokens[batch.loss_steps])


@contextmanager
def _no_graph() -> Iterator[None]:
    with torch.no_grad():
        yield
    # Autocast caches the weights that it casts. Older versions of torch reuse a cast made without
    # a graph, so that no gradient reaches the weights (pytorch/pytorch#158232).
    torch.clear_autocast_cache()
