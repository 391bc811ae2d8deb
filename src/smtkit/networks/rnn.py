"""The RNN: a transition, a readout, and the memory from which they start. It needs no teacher.

B: sequences, T: steps, K: slots, D: slot width, V: vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Unpack

import torch
from torch import Tensor, nn

from smtkit.networks.architecture import Architecture, Network
from smtkit.networks.cells import normalize_slots
from smtkit.networks.decoder import DecoderReadout, FutureDecoder
from smtkit.networks.heads import MlpReadout
from smtkit.networks.sampling import Sampling, sample_each
from smtkit.networks.transition import Transition


class RecurrentNetwork(Network):
    """`memory = network.start(B)`, then per token `memory = network.step(memory, token)`.

    `network.readout(memory)` gives logits of the next target: (B, K, D) -> (B, V).
    """

    undecayed = ("empty_memory",)
    """Two-dimensional parameters without weight decay, because they are not matrices."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        shape = architecture.shape
        self.empty_memory = nn.Parameter(normalize_slots(torch.randn(shape[1:])))
        self.transition = Transition(architecture.cell, *shape)
        self.readout: nn.Module
        if architecture.readout.kind == "mlp":
            self.readout = MlpReadout(*shape, architecture.readout.hidden)
        else:
            self.readout = DecoderReadout(FutureDecoder(architecture.decoder, *shape))

    def fix_empty_memory(self, memory: Tensor) -> None:
        """Makes `memory` (K, D) the empty memory, and excludes it from training."""
        with torch.no_grad():
            self.empty_memory.copy_(memory)
        self.empty_memory.requires_grad_(False)

    def start(self, count: int) -> Tensor:
        """The empty memory of `count` sequences, (count, K, D)."""
        return self.empty_memory.expand(count, -1, -1)

    def step(self, memory: Tensor, tokens: Tensor) -> Tensor:
        """One transition of every sequence: (B, K, D), (B,) -> (B, K, D)."""
        return self.transition(memory, tokens)

    def rollout(self, tokens: Tensor, memory: Tensor | None = None) -> Tensor:
        """The memory before and after each token: (B, T) -> (B, T + 1, K, D).

        Starts from `memory` (B, K, D), or from the empty memory.
        """
        memory = self.start(len(tokens)) if memory is None else memory
        return self.transition.trajectory(memory, tokens)

    @torch.inference_mode()
    def generate(self, prompt: Sequence[int] = (), **sampling: Unpack[Sampling]) -> Iterator[int]:
        """Yields tokens after `prompt`, without end; memory and time per token are constant."""
        device = self.empty_memory.device
        memory = self.start(1)
        for token in prompt:
            memory = self.step(memory, torch.tensor([token], device=device))
        while True:
            sampled = sample_each(self.readout(memory).float(), **sampling)  # (1,)
            yield int(sampled)
            memory = self.step(memory, sampled)

    @torch.inference_mode()
    def complete(self, prompts: Tensor, steps: int, **sampling: Unpack[Sampling]) -> Tensor:
        """Samples `steps` tokens after each of P prompts, in parallel: (B, P) -> (B, steps)."""
        memory = self.start(len(prompts))
        for tokens in prompts.unbind(1):
            memory = self.step(memory, tokens)
        completion = prompts.new_empty(len(prompts), steps)
        for i in range(steps):
            completion[:, i] = sample_each(self.readout(memory).float(), **sampling)
            memory = self.step(memory, completion[:, i])
        return completion

    @torch.inference_mode()
    def answer(self, tokens: Tensor, has_target: Tensor, **sampling: Unpack[Sampling]) -> Tensor:
        """Samples a target at each position where `has_target` (B, T + 1) while reading `tokens`
        (B, T). Returns the samples row by row, (number of targets,)."""
        memory = self.start(len(tokens))
        answers = tokens.new_empty(has_target.shape)
        for i in range(has_target.shape[1]):
            rows = has_target[:, i]
            if rows.any():
                answers[rows, i] = sample_each(self.readout(memory[rows]).float(), **sampling)
            if i < tokens.shape[1]:
                memory = self.step(memory, tokens[:, i])
        return answers[has_target]
