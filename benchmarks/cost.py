"""Total training time of an RNN by SMT, with its teacher and labels, compared with BPTT.

Every stage reads the same number of tokens (bytes of the standard library) through its function in
`smtkit.stages`, and is timed from call to return, with reading, validation and writing. Networks
and batches are those of the text task in pipelines/results/core.toml. The comparison is of one pass
over the text, not of results. Teacher and labels are needed once, for any number of RNNs. "fused"
is torch's kernel over all steps; slots are not normalised for it.

    python benchmarks/cost.py [--tokens 262144] [--cells mlp gru]
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from measure import library_tokens, machine, parser, ratio, seconds, spread, table, take_turns

from smtkit.config import ExtractLabelsConfig, TrainEncoderConfig, TrainRnnConfig
from smtkit.stages import extract_labels, train_encoder, train_rnn

CELLS = ("mlp", "gru", "lstm", "transformer")
FUSED = ("gru", "lstm")
BATCH = 32  # windows, for the teacher and for bptt
SMT_BATCH, POSITIONS = 16, 32
MEMORY = {"slots": 4, "slot_width": 64}
NEVER = 10**9


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(
        f"{options.tokens} tokens per stage, T = {options.window}; "
        f"{machine(options.device, options.threads)}\n"
    )
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        library_tokens(directory / "tokens")
        device = torch.device(options.device)
        turns = {
            stage: partial(seconds, run, device)
            for stage, run in stages(directory, options).items()
        }
        found = take_turns(turns, options.repetitions)
    table(
        ["stage", "seconds", "microseconds per token"],
        [
            (stage, spread(times), f"{1e6 * statistics.median(times) / options.tokens:.1f}")
            for stage, times in found.items()
        ],
    )
    table(
        ["cell", "teacher", "labels", "RNN", "total, s", "of bptt", "of bptt, fused"],
        [total_cost(cell, found) for cell in options.cells],
    )


def _parser() -> argparse.ArgumentParser:
    found = parser(__doc__)
    found.add_argument("--cells", nargs="+", default=["mlp", "gru"], choices=CELLS)
    found.add_argument("--tokens", type=int, default=2**18)
    found.add_argument("--window", type=int, default=256)
    found.add_argument("--width", type=int, default=192, help="width of the cell")
    found.add_argument("--teacher-width", type=int, default=128)
    return found


def stages(directory: Path, options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """All runs by name, in order: each writes the artifacts that the next ones read."""
    tokens, encoder, labels = (directory / name for name in ("tokens", "encoder", "labels"))
    found: dict[str, Callable[[], object]] = {
        "teacher": partial(
            train_encoder.run, teacher_config(options), tokens, encoder, overwrite=True
        ),
        "labels": partial(
            extract_labels.run, labels_config(options), encoder, tokens, labels, overwrite=True
        ),
    }
    for cell in options.cells:
        for method in ("smt", "bptt", "bptt, fused"):
            if method != "bptt, fused" or cell in FUSED:
                config = rnn_config(cell, method, options)
                source = labels if method == "smt" else tokens
                found[f"{cell}: {method}"] = partial(
                    train_rnn.run, config, source, directory / "rnn", overwrite=True
                )
    return found


def teacher_config(options: argparse.Namespace) -> TrainEncoderConfig:
    width = options.teacher_width
    return TrainEncoderConfig(
        device=options.device,
        data={"window": options.window},
        encoder={**MEMORY, "width": width},
        decoder={"width": width},
        cell={"width": options.width},
        objective={"dynamics_start": 10, "dynamics_ramp": 30},
        training=training(options, BATCH, options.window),
    )


def labels_config(options: argparse.Namespace) -> ExtractLabelsConfig:
    return ExtractLabelsConfig(
        device=options.device,
        max_windows=max(1, options.tokens // options.window),
        max_validation_windows=BATCH,
    )


def rnn_config(cell: str, method: str, options: argparse.Namespace) -> TrainRnnConfig:
    fused = {"normalize": "none"} if method == "bptt, fused" else {}
    positions = min(POSITIONS, options.window)
    by_method = (
        {"data": {"positions": positions}, "training": training(options, SMT_BATCH, positions)}
        if method == "smt"
        else {
            "data": {"window": options.window},
            "memory": MEMORY,
            "training": training(options, BATCH, options.window),
        }
    )
    return TrainRnnConfig(
        device=options.device,
        method=method.split(",")[0],
        cell={"kind": cell, "width": options.width, **fused},
        **by_method,
    )


def training(options: argparse.Namespace, batch: int, read: int) -> dict[str, int]:
    """Settings for `options.tokens` tokens, `read` of each window per update."""
    return {
        "batch_size": batch,
        "max_steps": max(1, options.tokens // (batch * read)),
        "validate_every": NEVER,
        "validation_windows": BATCH,
        "checkpoint_every": NEVER,
    }


def total_cost(cell: str, found: dict[str, list[float]]) -> tuple[object, ...]:
    """A row: shares of the total, the total, and its ratios to BPTT."""
    parts = [found[stage] for stage in ("teacher", "labels", f"{cell}: smt")]
    whole = [sum(times) for times in zip(*parts, strict=True)]
    shares = [f"{ratio(times, whole):.0%}" for times in parts]
    ratios = [
        f"{ratio(whole, found[rival]):.2f}" if rival in found else ""
        for rival in (f"{cell}: bptt", f"{cell}: bptt, fused")
    ]
    return (cell, *shares, spread(whole), *ratios)


if __name__ == "__main__":
    main()
