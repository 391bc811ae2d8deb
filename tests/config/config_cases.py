"""Schemas with their required settings, and helpers of the tests of settings."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smtkit.config import (
    Config,
    EvaluateConfig,
    ExtractLabelsConfig,
    GenerateConfig,
    TokenizeConfig,
    TrainEncoderConfig,
    TrainRnnConfig,
    resolve,
)
from smtkit.errors import UsageError

REQUIRED: dict[type[Config], dict[str, Any]] = {
    TokenizeConfig: {"inputs": ["a.txt"]},
    TrainEncoderConfig: {"training.max_steps": 1},
    ExtractLabelsConfig: {},
    TrainRnnConfig: {"training.max_steps": 1},
    EvaluateConfig: {},
    GenerateConfig: {},
}
"""Settings of each schema that have no default."""


SITUATIONS: dict[type[Config], list[dict[str, Any]]] = {
    TokenizeConfig: [{"tokenizer": "sentencepiece"}, {"tokenizer": "pixel"}, {}],
    TrainEncoderConfig: [
        {"cell.kind": "transformer", "objective.dynamics_start": "auto"},
        {"encoder.memory": "gated", "decoder.kind": "handoff"},
        {"cell.kind": "gru"},
        {},
    ],
    TrainRnnConfig: [
        {"method": "smt", "cell.kind": "transformer"},
        {"method": "dmt", "rollout.kind": "segments"},
        {"method": "dmt", "rollout.kind": "jacobi"},
        {"method": "dmt", "rollout.kind": "sequential"},
        {"method": "bptt", "cell.kind": "lstm"},
        {"method": "bptt", "readout.kind": "decoder"},
    ],
}
"""For each schema, settings with which every other key has an effect in at least one case."""


def toml(directory: Path, text: str) -> Path:
    path = directory / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return path


def message(schema: type[Config], *arguments: Any, **options: Any) -> str:
    """The error message and its hint."""
    with pytest.raises(UsageError) as caught:
        resolve(schema, *arguments, **options)
    assert "\n" not in str(caught.value)
    return f"{caught.value} ({caught.value.hint})"


def keys(config: Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of all settings."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
