"""Tokens per second and memory after 10^2 to 10^5 tokens: an RNN compared with a transformer.

One sequence; speed is that of the next tokens. The RNN, and the teacher that reads its whole
context again for each token, are timed as by `smtkit eval --cost`: the RNN's memory is its state,
the teacher's its context and the activations of a layer. The third contender is the same teacher
with a cache of the keys and values of all tokens, which is its memory. The cache is filled with
noise, which costs as much as real content. Weights are not counted, and no tokens are sampled.

    python benchmarks/generation.py [--width 128] [--layers 2]
"""

import argparse
from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from measure import machine, parser, ratio, seconds, spread, table, take_turns
from torch import Tensor

from smtkit.config import (
    CellConfig,
    DecoderConfig,
    EncoderConfig,
    MemoryConfig,
    TrainEncoderConfig,
    TrainingConfig,
    TrainRnnConfig,
)
from smtkit.evaluation import inference_cost
from smtkit.evaluation.inference_cost import Record
from smtkit.networks.architecture import Architecture
from smtkit.networks.cells import normalize_slots
from smtkit.networks.encoders import CausalEncoder
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.networks.teacher import Teacher
from smtkit.networks.transformer import Block, rotary, rotate
from smtkit.training.progress import Silent

VOCABULARY, SLOTS, SLOT_WIDTH = 256, 4, 64
CELLS = ("mlp", "gru", "lstm", "transformer")
WINDOW = 256  # no effect on the speed of a causal teacher
STEPS = 20  # of the teacher with a cache, per turn
AGAIN, CACHED = "transformer, no cache", "transformer, keys and values cached"


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(
        f"Width {options.width}, memory {SLOTS} x {SLOT_WIDTH}, transformer of {options.layers} "
        f"layers, float32; {machine(options.device, options.threads)}\n"
    )
    found = take_turns(contenders(options), options.repetitions)
    base = next(iter(found))
    table(
        ["predictor", "after tokens", "tokens/s", f"of {base}", "memory, KiB"],
        [
            row(name, [run[index] for run in runs], [run[index] for run in found[base]])
            for name, runs in found.items()
            for index in range(len(runs[0]))
        ],
    )


def _parser() -> argparse.ArgumentParser:
    found = parser(__doc__)
    found.add_argument("--cells", nargs="+", default=["mlp", "gru"], choices=CELLS)
    found.add_argument("--width", type=int, default=128)
    found.add_argument("--layers", type=int, default=2)
    return found


def row(name: str, runs: list[Record], base: list[Record]) -> tuple[object, ...]:
    """A row of the table, from the runs of a predictor and of the `base` predictor after the same
    number of tokens."""
    tokens, size = runs[0].tokens, f"{runs[0].bytes / 2**10:,.0f}"
    skipped = [run.skipped for run in runs if run.skipped]
    if skipped:
        return name, f"{tokens:,}", f"not measured: {skipped[0]}", "", size
    speeds = [1 / run.seconds_per_token for run in runs]
    others = [1 / run.seconds_per_token for run in base if not run.skipped]
    of_base = f"{ratio(speeds, others):.2f}" if others else ""
    return name, f"{tokens:,}", spread(speeds), of_base, size


def contenders(options: argparse.Namespace) -> dict[str, Callable[[], list[Record]]]:
    """Functions that return a record per number of tokens, as in `inference_cost`."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    encoder = EncoderConfig(
        width=options.width, layers=options.layers, slots=SLOTS, slot_width=SLOT_WIDTH
    )
    decoder, training = DecoderConfig(width=options.width), TrainingConfig(max_steps=1)
    settings = TrainEncoderConfig(encoder=encoder, decoder=decoder, training=training)
    teacher = Teacher(Architecture.of_teacher(settings, VOCABULARY, WINDOW)).to(device).eval()
    found: dict[str, Callable[[], list[Record]]] = {}
    for cell in options.cells:
        config = TrainRnnConfig(
            memory=MemoryConfig(slots=SLOTS, slot_width=SLOT_WIDTH),
            cell=CellConfig(kind=cell, width=options.width),
            training=training,
        )
        rnn = RecurrentNetwork(Architecture.of_rnn(config, VOCABULARY, WINDOW)).to(device).eval()
        found[f"RNN, {cell}"] = partial(records_of, inference_cost.measure_rnn, rnn)
    found[CACHED] = partial(of_cached, teacher, device)
    found[AGAIN] = partial(records_of, inference_cost.measure_teacher, teacher)
    return found


def records_of(measure: Callable[..., Iterable[Record]], *arguments: object) -> list[Record]:
    return list(measure(*arguments, Silent()))


@torch.inference_mode()
def of_cached(teacher: Teacher, device: torch.device) -> list[Record]:
    records = []
    for tokens in inference_cost.TOKENS:
        cached = CachedEncoder(teacher.encoder, tokens + 2 * STEPS)
        size = cached.bytes_of(tokens)
        cached.fill(tokens)
        token = torch.zeros(1, dtype=torch.int64, device=device)

        def step(cached: CachedEncoder = cached, token: Tensor = token) -> Tensor:
            return teacher.read(cached.step(token))

        step()
        taken = seconds(step, device, STEPS)
        records.append(Record(CACHED, tokens, taken, size))
    return records


class CachedEncoder:
    """A causal encoder of one sequence with a cache of keys, values and convolution inputs."""

    def __init__(self, encoder: CausalEncoder, capacity: int) -> None:
        """`capacity`: tokens that it can read."""
        self._encoder, trunk = encoder, encoder.trunk
        weight = encoder.bos
        width, symbols = len(weight), capacity + 1  # with BOS
        heads = trunk.blocks[0].attention.heads
        shape = 2, 1, heads, symbols, trunk.head_width
        self._rotation = rotary(symbols, trunk.head_width, weight.device, weight.dtype)
        self._cache = [torch.zeros(shape, device=weight.device) for _ in trunk.blocks]
        self._recent = [
            torch.zeros(1, len(block.convolution.weight) if block.convolution else 0, width).to(
                weight.device
            )
            for block in trunk.blocks
        ]
        self._read = 0
        self.memory = self._push(weight.view(1, 1, -1))

    def step(self, token: Tensor) -> Tensor:
        """The memory after one more token (1,): (1, K, D)."""
        return self._push(self._encoder.input(token)[:, None])

    def fill(self, tokens: int) -> None:
        """Fills the cache with noise in place of `tokens` tokens."""
        for cache in self._cache:
            cache[:, :, :, : tokens + 1].normal_()
        self._read = tokens + 1

    def bytes_of(self, tokens: int) -> int:
        """Bytes of the cache after `tokens` tokens."""
        cache = [each[:, :, :, : tokens + 1] for each in self._cache]
        return sum(each.numel() * each.element_size() for each in (*cache, *self._recent))

    def _push(self, stream: Tensor) -> Tensor:
        blocks = self._encoder.trunk.blocks
        for block, cache, recent in zip(blocks, self._cache, self._recent, strict=True):
            stream = self._through(block, stream, cache, recent)
        self._read += 1
        memory = self._encoder.projection(self._encoder.trunk.norm(stream))
        return normalize_slots(memory.view(1, self._encoder.slots, self._encoder.slot_width))

    def _through(self, block: Block, stream: Tensor, cache: Tensor, recent: Tensor) -> Tensor:
        at, attention = self._read, block.attention
        if block.convolution is not None:
            recent.copy_(torch.cat((recent[:, 1:], stream), dim=1))
            stream = stream + block.convolution(recent)[:, -1:]
        projected = attention.query_key_value(block.attention_norm(stream))
        query, key, value = projected.view(3, 1, attention.heads, 1, -1)
        rotation = self._rotation[0][at : at + 1], self._rotation[1][at : at + 1]
        cache[:, :, :, at : at + 1] = torch.stack((rotate(key, rotation), value))
        keys, values = cache[:, :, :, : at + 1]
        mixed = F.scaled_dot_product_attention(rotate(query, rotation), keys, values)
        stream = stream + attention.output(mixed.view(1, 1, -1))
        return stream + block.mlp(block.mlp_norm(stream))


if __name__ == "__main__":
    main()
