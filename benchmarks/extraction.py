"""Labels per second: encoders with one pass per window, compared with one pass per label.

The paper's code encodes every label in a pass over the 256 tokens before it and K registers
(`bidirectional`, here of the same width and depth). It is measured twice: with 256 tokens for every
label, padding included, as that code does; and with only the tokens of the label's prefix, half as
many on average, as smtkit does. A few positions per window stand for all.

Encoder rows time the network alone; `extract-labels` is the whole stage, which also reads tokens,
writes shards and commits the artifact. Each runs at the best of a few batch sizes; all take turns.

    python benchmarks/extraction.py [--sizes 128x4 256x8] [--slots 16] [--window 256]
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from measure import library_tokens, machine, parser, ratio, seconds, spread, table, take_turns
from torch import Tensor

from smtkit.config import EncoderConfig, ExtractLabelsConfig, TrainEncoderConfig
from smtkit.networks.encoders import MemoryEncoder, build_encoder
from smtkit.stages import extract_labels, train_encoder

VOCABULARY = 256
BATCHES = (1, 4, 16)
CAUSAL = {
    "one pass, projection": {"kind": "causal", "memory": "projection"},
    "one pass, registers": {"kind": "causal", "memory": "registers"},
}
WHOLE, PREFIX = "one pass per label, whole context", "one pass per label, its prefix"
STRATA = 4  # equal parts of a window; the middle of each stands for its positions

Speed = Callable[[], float]
"""Measures labels per second."""


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(
        f"K = {options.slots}, D = {options.slot_width}, T = context = {options.window}, float32; "
        f"{machine(options.device, options.threads)}\n"
    )
    with tempfile.TemporaryDirectory() as directory:
        tokens = library_tokens(Path(directory) / "tokens")
        for size in options.sizes:
            compare(size, tokens, options)


def _parser() -> argparse.ArgumentParser:
    found = parser(__doc__)
    found.add_argument("--sizes", nargs="+", default=["128x4", "256x8"], help="WIDTHxLAYERS")
    found.add_argument("--slots", type=int, default=16)
    found.add_argument("--slot-width", type=int, default=64)
    found.add_argument("--window", type=int, default=256)
    found.add_argument("--windows", type=int, default=64, help="windows for one pass per window")
    found.add_argument("--sampled", type=int, default=16, help="windows for one pass per label")
    return found


def compare(size: str, tokens: Path, options: argparse.Namespace) -> None:
    contenders, batches = {}, {}
    for name, encode in encodings(size, options).items():
        tried = {batch: encode(batch)() for batch in BATCHES}
        batches[name] = max(BATCHES, key=lambda batch: tried[batch])
        contenders[name] = encode(batches[name])
    for name in CAUSAL:
        stage = f"`extract-labels`, {name.split(', ')[1]}"
        batches[stage] = batches[name]
        contenders[stage] = stage_speed(
            config_of(size, name, options), tokens, batches[name], options
        )
    found = take_turns(contenders, options.repetitions)
    width, layers = size.split("x")
    print(f"Width {width}, {layers} layers\n")
    table(
        ["encoder", "batch", "labels/s", f"of {WHOLE}", f"of {PREFIX}"],
        [
            (
                name,
                batches[name],
                spread(speeds),
                *(f"{ratio(speeds, found[base]):.2f}" for base in (WHOLE, PREFIX)),
            )
            for name, speeds in found.items()
        ],
    )


def config_of(size: str, name: str, options: argparse.Namespace) -> EncoderConfig:
    width, layers = map(int, size.split("x"))
    return EncoderConfig(
        **CAUSAL.get(name, {"kind": "bidirectional"}),
        width=width,
        layers=layers,
        slots=options.slots,
        slot_width=options.slot_width,
    )


def encodings(size: str, options: argparse.Namespace) -> dict[str, Callable[[int], Speed]]:
    """For each encoder, a function of the batch size (in windows) that returns its `Speed`."""
    device, window = torch.device(options.device), options.window
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(VOCABULARY, (options.windows, window), generator=generator).to(device)
    middles = [(2 * k + 1) * window // (2 * STRATA) for k in range(STRATA)]
    found: dict[str, Callable[[int], Speed]] = {}

    def add(name: str, tokens: Tensor, positions: list[int] | None) -> None:
        torch.manual_seed(0)
        encoder = build_encoder(config_of(size, name, options), VOCABULARY, window)
        encoder = encoder.to(device).eval()
        labels = len(tokens) * len(positions or range(window + 1))

        def at(batch: int) -> Speed:
            def work() -> None:
                for part in tokens.split(batch):
                    encode(encoder, part, positions)

            return lambda: labels / seconds(work, device)

        found[name] = at

    for name in CAUSAL:
        add(name, drawn, None)
    for name, positions in ((WHOLE, [window]), (PREFIX, middles)):
        add(name, drawn[: options.sampled], positions)
    return found


@torch.inference_mode()
def encode(encoder: MemoryEncoder, tokens: Tensor, positions: list[int] | None) -> None:
    """Encodes tokens (B, T): all memories, or those at `positions` from their prefixes alone."""
    if positions is None:
        encoder.encode(tokens)
        return
    for position in positions:
        column = torch.full((len(tokens), 1), position, device=tokens.device)
        encoder.encode_at(tokens[:, :position], column)


def stage_speed(
    config: EncoderConfig, tokens: Path, batch: int, options: argparse.Namespace
) -> Speed:
    """Speed of `extract-labels`, with an encoder after one training step."""
    name = f"{config.width}-{config.memory}"
    encoder, labels = tokens.with_name(f"encoder-{name}"), tokens.with_name(f"labels-{name}")
    one = {"batch_size": 1, "max_steps": 1, "validation_windows": 1}
    train_encoder.run(
        TrainEncoderConfig(
            device=options.device,
            data={"window": options.window},
            encoder=config,
            objective={"uniformity_group": 1},
            training=one,
        ),
        tokens,
        encoder,
    )
    extraction = ExtractLabelsConfig(
        device=options.device,
        max_windows=options.windows,
        max_validation_windows=1,
        batch_size=batch,
    )

    def run() -> None:
        extract_labels.run(extraction, encoder, tokens, labels, overwrite=True)

    count = (options.windows + 1) * (options.window + 1)
    return lambda: count / seconds(run, torch.device(options.device))


if __name__ == "__main__":
    main()
