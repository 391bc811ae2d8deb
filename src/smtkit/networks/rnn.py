"""The recurrent network: a cell, a readout, and the memory it starts from. Needs no teacher.

B: sequences, T: steps, K: slots, D: slot width, V: vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn

from smtkit.config import CellConfig, DecoderConfig, ReadoutConfig
from smtkit.networks.cells import build_cell, normalize_slots
from smtkit.networks.decoder import FutureDecoder
from smtkit.networks.heads import DecoderReadout, MlpReadout


class Sampling(TypedDict, total=False):
    """How tokens are drawn: what `sample_each` may be told beside the logits."""

    temperature: float
    top_k: int | None
    top_p: float | None
    generator: torch.Generator | None


class RecurrentNetwork(nn.Module):
    """`memory = empty_memory`; then, a token at a time, `memory = step(memory, token)`."""

    undecayed = ("empty_memory",)
    """Parameters of two dimensions that are no matrices: they take no weight decay."""

    def __init__(
        self,
        vocabulary_size: int,
        slots: int,
        slot_width: int,
        cell: CellConfig,
        readout: ReadoutConfig,
        decoder: DecoderConfig,
    ) -> None:
        super().__init__()
        self.architecture: dict[str, Any] = {
            "vocabulary_size": vocabulary_size,
            "slots": slots,
            "slot_width": slot_width,
            "cell": cell.model_dump(),
            "readout": readout.model_dump(),
            "decoder": decoder.model_dump(),
        }
        self.empty_memory = nn.Parameter(normalize_slots(torch.randn(slots, slot_width)))
        self.cell = build_cell(cell, vocabulary_size, slots, slot_width)
        self.readout: nn.Module = (
            MlpReadout(vocabulary_size, slots, slot_width, readout.hidden)
            if readout.kind == "mlp"
            else DecoderReadout(FutureDecoder(decoder, vocabulary_size, slots, slot_width))
        )

    @classmethod
    def from_architecture(cls, architecture: dict[str, Any]) -> "RecurrentNetwork":
        """The network, with random weights, that `architecture` of another describes."""
        return cls(
            architecture["vocabulary_size"],
            architecture["slots"],
            architecture["slot_width"],
            CellConfig(**architecture["cell"]),
            ReadoutConfig(**architecture["readout"]),
            DecoderConfig(**architecture["decoder"]),
        )

    def start(self, count: int) -> Tensor:
        """The empty memory of `count` sequences, (count, K, D)."""
        return self.empty_memory.expand(count, -1, -1)

    def step(self, memory: Tensor, token: Tensor) -> Tensor:
        """One transition of every sequence: (B, K, D), (B,) -> (B, K, D)."""
        return self.cell(memory, token)

    def rollout(self, tokens: Tensor, memory: Tensor | None = None) -> Tensor:
        """Memories (B, T + 1, K, D) before and after each token, from `memory` or the empty one."""
        memory = self.start(len(tokens)) if memory is None else memory
        return torch.cat((memory[:, None], self.cell.rollout(memory, tokens)), dim=1)

    @torch.inference_mode()
    def generate(self, prompt: Sequence[int] = (), **sampling: Unpack[Sampling]) -> Iterator[int]:
        """Tokens without end that follow `prompt`; memory and time a token are constant."""
        memory = self.start(1)
        for token in prompt:
            memory = self.step(memory, self._as_input(token))
        while True:
            token = sample(self.readout(memory)[0].float(), **sampling)
            yield token
            memory = self.step(memory, self._as_input(token))

    @torch.inference_mode()
    def complete(self, prompts: Tensor, steps: int, **sampling: Unpack[Sampling]) -> Tensor:
        """What follows each prompt, side by side: (N, P) -> (N, steps)."""
        memory = self.start(len(prompts))
        for token in prompts.unbind(1):
            memory = self.step(memory, token)
        completion = prompts.new_empty(len(prompts), steps)
        for i in range(steps):
            completion[:, i] = sample_each(self.readout(memory).float(), **sampling)
            memory = self.step(memory, completion[:, i])
        return completion

    @torch.inference_mode()
    def answer(self, tokens: Tensor, asked: Tensor, **sampling: Unpack[Sampling]) -> Tensor:
        """What the network says where it is asked: (N, T), (N, T + 1) -> as many as are asked, row
        by row."""
        memory = self.start(len(tokens))
        answers = tokens.new_empty(asked.shape)
        for i in range(asked.shape[1]):
            if asked[:, i].any():
                logits = self.readout(memory[asked[:, i]]).float()
                answers[asked[:, i], i] = sample_each(logits, **sampling)
            if i < tokens.shape[1]:
                memory = self.step(memory, tokens[:, i])
        return answers[asked]

    def _as_input(self, token: int) -> Tensor:
        return torch.tensor([token], device=self.empty_memory.device)


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> int:
    """A token drawn from logits (V,), as `sample_each` draws one from each row."""
    return int(sample_each(logits[None], temperature, top_k, top_p, generator))


def sample_each(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Tokens (N,) drawn from softmax(logits (N, V) / temperature), the likeliest if it is 0.

    `top_k`: among the k likeliest; `top_p`: among the fewest that together have probability p.
    """
    if temperature < torch.finfo(logits.dtype).tiny:  # so small that logits / temperature overflow
        return logits.argmax(-1)
    highest = logits.amax(-1, keepdim=True)
    values, tokens = ((logits - highest) / temperature).sort(descending=True)
    probabilities = values.softmax(-1)
    if top_k is not None:
        probabilities[:, top_k:] = 0
    if top_p is not None:
        before = (probabilities / probabilities.sum(-1, keepdim=True)).cumsum(-1).roll(1, -1)
        before[:, 0] = 0
        probabilities[before >= top_p] = 0
    chosen = torch.multinomial(probabilities.cpu(), 1, generator=generator)
    return tokens.gather(-1, chosen.to(tokens.device))[:, 0]
