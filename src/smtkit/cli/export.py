"""`smtkit export`."""

import dataclasses
import json
from typing import Any

from smtkit import config as schemas
from smtkit.cli.command import (
    DEBUG,
    JSON,
    OVERWRITE,
    QUIET,
    REQUIRED,
    SETTINGS,
    Command,
    shown_by,
)
from smtkit.cli.options import ARTIFACTS, argument, option
from smtkit.cli.plain import plain, plain_json


def show_exported(exported: Any, *, as_json: bool) -> None:
    """The files, how well the program agrees with the RNN, and what quantization costs."""
    if as_json:
        print(plain_json(json.dumps(dataclasses.asdict(exported), indent=2)))
        return
    (path, size), *beside = exported.files.items()
    slots, width = exported.memory
    print(plain(f"{path}: {exported.format}, {size:,} bytes"))
    for name, other in beside:
        print(plain(f"{name}: {other:,} bytes"))
    print(f"  memory (B, {slots}, {width}), {exported.vocabulary_size:,} tokens")
    if parity := exported.parity:
        print(
            f"  parity over {parity.steps:,} steps: memory differs by {parity.memory:.2g}, logits "
            f"by {parity.logits:.2g}"
        )
    if cost := exported.quantized:
        change = cost.bits_quantized - cost.bits
        print(
            plain(
                f"  int8: {cost.bits_quantized:.4f} bits per target on {cost.targets:,} of "
                f"{cost.source}; float32 {cost.bits:.4f}: {change:+.4f}"
            )
        )


EXPORT = Command(
    "export",
    schemas.ExportConfig,
    (
        argument("rnn", "RNN", "RNN artifact."),
        option("--out, -o FILE", "File of the program.", str, REQUIRED, ARTIFACTS),
        option("--tokens DIR|URI", "To measure what --quantize costs.", section=ARTIFACTS),
        *SETTINGS,
        OVERWRITE,
        JSON,
        QUIET,
        DEBUG,
    ),
    (
        "smtkit export rnn --out model.onnx",
        "smtkit export rnn --out small.onnx --quantize int8 --tokens tokens",
    ),
    shown_by(show_exported),
)
