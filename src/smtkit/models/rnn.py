"""The recurrent network: a cell, a readout, and the memory it starts from. Needs no teacher.

B: sequences, T: steps, K: slots, D: slot width, V: vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smtkit.config import CellConfig, DecoderConfig, ReadoutConfig
from smtkit.models.cells import MlpReadout, build_cell
from smtkit.models.teacher import DecoderReadout, FutureDecoder


class RecurrentNetwork(nn.Module):
    """`memory = empty_memory`; then, a token at a time, `memory = step(memory, token)`."""

    empty_memory: Tensor

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
        self.register_buffer("empty_memory", torch.zeros(slots, slot_width))
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
        memories = [memory]
        for token in tokens.unbind(1):
            memories.append(self.step(memories[-1], token))
        return torch.stack(memories, dim=1)

    @torch.inference_mode()
    def generate(
        self,
        prompt: Sequence[int] = (),
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[int]:
        """Tokens without end that follow `prompt`; memory and time a token are constant."""
        memory = self.start(1)
        for token in prompt:
            memory = self.step(memory, self._as_input(token))
        while True:
            logits = self.readout(memory)[0].float()
            token = sample(logits, temperature, top_k, top_p, generator)
            yield token
            memory = self.step(memory, self._as_input(token))

    def _as_input(self, token: int) -> Tensor:
        return torch.tensor([token], device=self.empty_memory.device)


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> int:
    """A token drawn from softmax(logits (V,) / temperature), the likeliest if temperature is 0.

    `top_k`: among the k likeliest; `top_p`: among the fewest that together have probability p.
    """
    if temperature == 0:
        return int(logits.argmax())
    values, tokens = ((logits - logits.max()) / temperature).sort(descending=True)
    probabilities = values.softmax(-1)
    if top_k is not None:
        probabilities[top_k:] = 0
    if top_p is not None:
        before = (probabilities / probabilities.sum()).cumsum(-1).roll(1)
        before[0] = 0
        probabilities[before >= top_p] = 0
    chosen = torch.multinomial(probabilities.cpu(), 1, generator=generator)
    return int(tokens[chosen.to(tokens.device)])
