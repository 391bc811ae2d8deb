"""Settings without effect beside the others are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from config_cases import REQUIRED, SITUATIONS, keys, message

from smtkit.config import (
    Config,
    ExtractLabelsConfig,
    TokenizeConfig,
    TrainEncoderConfig,
    TrainRnnConfig,
    resolve,
)
from smtkit.errors import UsageError


def refusal(schema: type[Config], overrides: list[str], flags: dict[str, Any]) -> str:
    """The error message, or nothing."""
    try:
        resolve(schema, overrides=overrides, flags=flags)
    except UsageError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("schema", REQUIRED, ids=lambda schema: schema.__name__)
def test_every_key_can_be_set_by_an_override(schema: type[Config]) -> None:
    """Set to its default, key by key: nothing changes, or the key is refused as one of others."""
    accepted = set()
    for situation in SITUATIONS.get(schema, [{}]):
        flags = {**REQUIRED[schema], **situation}
        plain = resolve(schema, flags=flags)
        settings = [(key, value) for key, value in keys(plain) if value is not None]
        assert len(settings) >= 4
        for key, value in settings:
            override = f"{key}={json.dumps(value)}"
            if line := refusal(schema, [override], flags):
                start = f"`overrides` {override}: {key} = {value!r} is only used with "
                assert line.startswith(start)
            else:
                assert resolve(schema, overrides=[override], flags=flags) == plain
                accepted.add(key)
    assert accepted == {key for key, value in keys(plain) if value is not None}


@pytest.mark.parametrize(
    ("schema", "overrides", "named", "reason"),
    [
        (TrainRnnConfig, ["method=smt", "rollout.depth=16"], 1, "method dmt; found method smt"),
        (TrainRnnConfig, ["method=smt", "rollout.depth=8"], 1, "method dmt; found method smt"),
        (TrainRnnConfig, ["method=smt", "rollout={depth=8}"], 1, "method dmt; found method smt"),
        (TrainRnnConfig, ["method=dmt", "data.positions=32"], 1, "method smt; found method dmt"),
        (TrainRnnConfig, ["method=dmt", "memory.slots=4"], 1, "method bptt; found method dmt"),
        (
            TrainRnnConfig,
            ["method=dmt", "rollout.sweeps=4"],
            1,
            "rollout.kind jacobi; found rollout.kind segments",
        ),
        (
            TrainRnnConfig,
            ["rollout.depth_ramp=0", "method=dmt", "rollout.kind=sequential"],
            0,
            "rollout.kind segments; found rollout.kind sequential",
        ),
        (
            TrainRnnConfig,
            ["method=dmt", "rollout.kind=jacobi", "rollout.depth=9"],
            2,
            "rollout.kind segments; found rollout.kind jacobi",
        ),
        (
            TrainRnnConfig,
            ["method=bptt", "decoder.width=64"],
            1,
            "readout.kind decoder; found readout.kind mlp",
        ),
        (
            TrainRnnConfig,
            ["cell.kind=lstm", "cell.layers=1"],
            1,
            "cell.kind mlp or transformer; found cell.kind lstm",
        ),
        (
            TrainEncoderConfig,
            ["cell.kind=gru", "cell.heads=4"],
            1,
            "cell.kind transformer; found cell.kind gru",
        ),
        (
            TrainRnnConfig,
            ["cell.kind=gru", "cell.gate=true", "cell.normalize=none"],
            1,
            "cell.kind mlp or transformer; found cell.kind gru",
        ),
        (
            TrainEncoderConfig,
            ["readout.kind=decoder", "readout.hidden=4"],
            1,
            "readout.kind mlp; found readout.kind decoder",
        ),
        (
            TrainEncoderConfig,
            ["objective.plateau=0.8"],
            0,
            "objective.dynamics_start auto; found objective.dynamics_start 100",
        ),
        (
            TokenizeConfig,
            ["tokenizer=byte", "vocabulary_size=4096"],
            1,
            "tokenizer sentencepiece; found tokenizer byte",
        ),
        (TokenizeConfig, ["pixel.levels=4"], 0, "tokenizer pixel; found tokenizer byte"),
        (
            TokenizeConfig,
            ["tokenizer=pixel", "text_field=a"],
            1,
            "tokenizer byte or char or sentencepiece; found tokenizer pixel",
        ),
        (
            TokenizeConfig,
            ["tokenizer=sentencepiece", "tokenizer_model=a.model", "model_type=bpe"],
            2,
            "tokenizer_model unset; found tokenizer_model a.model",
        ),
    ],
)
def test_a_key_without_effect_is_refused(
    schema: type[Config], overrides: list[str], named: int, reason: str
) -> None:
    """Also where it is given at its default."""
    line = message(schema, overrides=overrides, flags=REQUIRED[schema])
    assert line.startswith(f"`overrides` {overrides[named]}: ")
    assert f" is only used with {reason}" in line


def test_a_key_without_effect_that_a_flag_gave_is_named_in_backticks() -> None:
    flags = {**REQUIRED[TokenizeConfig], "vocabulary_size": "400"}
    line = message(TokenizeConfig, flags=flags)
    assert line.startswith("`vocabulary_size`: vocabulary_size = 400 is")


def test_a_key_without_effect_that_was_changed_is_refused_in_python_too() -> None:
    line = r"rollout\.depth = 8 is only used with method dmt; found method smt"
    with pytest.raises(ValueError, match=line):
        TrainRnnConfig(rollout={"depth": 8}, training={"max_steps": 1})


PIPELINES = Path(__file__).parents[2] / "pipelines"


STAGES: dict[str, type[Config]] = {
    "tokenize": TokenizeConfig,
    "encoder": TrainEncoderConfig,
    "labels": ExtractLabelsConfig,
    "rnn": TrainRnnConfig,
    "dmt": TrainRnnConfig,
}


SETTINGS = sorted(file for file in PIPELINES.rglob("*.toml") if file.stem in STAGES)


@pytest.mark.parametrize("file", SETTINGS, ids=lambda file: str(file.relative_to(PIPELINES)))
def test_the_settings_of_the_pipelines_have_an_effect(file: Path) -> None:
    flags = {"tokenize": {"inputs": ["a"]}, "dmt": {"method": "dmt"}}
    config = resolve(STAGES[file.stem], file, flags=flags.get(file.stem))
    assert isinstance(config, STAGES[file.stem])
