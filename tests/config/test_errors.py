"""Unknown keys and wrong values: one line with the origin, the key, and what is allowed."""

from pathlib import Path

import pytest
from config_cases import REQUIRED, keys, message, toml
from pydantic import Field

from smtkit.config import (
    Config,
    TokenizeConfig,
    TrainEncoderConfig,
    TrainRnnConfig,
    resolve,
)


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("training.learning_rat=1", "did you mean training.learning_rate?"),
        ("training.lerning_rate=1", "did you mean training.learning_rate?"),
        ("batch_size=8", "did you mean training.batch_size?"),
        ("data.batch_size=8", "did you mean training.batch_size?"),
        ("encoder.slot=8", "did you mean encoder.slots?"),
        ("sed=8", "did you mean seed?"),
    ],
)
def test_an_unknown_key_comes_with_a_suggestion(override: str, suggestion: str) -> None:
    line = message(TrainEncoderConfig, overrides=[override, "training.max_steps=1"])
    assert f"`overrides` {override}: unknown key {override.partition('=')[0]}" in line
    assert suggestion in line


def test_an_unknown_key_of_a_file_names_the_file(tmp_path: Path) -> None:
    path = toml(tmp_path, "[training]\nmax_steps = 1\nlearning_rat = 0.1\n")
    line = message(TrainEncoderConfig, path)
    assert line.startswith(f"{path}: unknown key training.learning_rat")


def test_an_unknown_key_like_no_other_lists_what_there_is() -> None:
    line = message(TrainEncoderConfig, overrides=["data.zzz=1", "training.max_steps=1"])
    assert "unknown key data.zzz" in line
    assert "data.window" in line


def test_an_unknown_section_is_named_with_its_origin() -> None:
    line = message(TrainEncoderConfig, overrides=["zzz.window=1", "training.max_steps=1"])
    assert line.startswith("`overrides` zzz.window=1: unknown key zzz")


def test_a_misspelled_section_is_named_though_a_required_one_is_then_missing() -> None:
    line = message(TrainEncoderConfig, overrides=["trainin.max_steps=1"])
    assert "unknown key trainin" in line
    assert "training" in line


@pytest.mark.parametrize("schema", REQUIRED, ids=lambda schema: schema.__name__)
def test_every_section_refuses_unknown_keys(schema: type[Config]) -> None:
    config = resolve(schema, flags=REQUIRED[schema])
    sections = {key.rpartition(".")[0] for key, _ in keys(config)}
    for section in sections:
        key = f"{section}.no_such_key".removeprefix(".")
        line = message(schema, overrides=[f"{key}=1"], flags=REQUIRED[schema])
        assert f"unknown key {key}" in line


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", "seven"),
        ("device", "tpu"),
        ("data.window", "0"),
        ("data.window", "-5"),
        ("data.window", "1.5"),
        ("data.window", "[1]"),
        ("encoder.convolution", "-1"),
        ("training.learning_rate", "0"),
        ("training.learning_rate", "nan"),
        ("training.betas", "[0.9]"),
        ("training.betas", "[0.9, 1.0]"),
        ("training.weight_decay", "inf"),
        ("training.weight_decay", "-0.1"),
        ("training.max_steps", "0"),
        ("training.max_seconds", "0"),
        ("training.precision", "float8"),
        ("training.compile", "maybe"),
        ("objective.dynamics_weight", "nan"),
        ("cell.gate_bias", "-3"),
        ("cell.gate_bias", "[-3, inf]"),
        ("encoder.gate_bias", "[-inf, 1]"),
        ("encoder.gate_bias", "[-3, nan]"),
    ],
)
def test_a_wrong_value_is_named_with_key_and_origin(key: str, value: str) -> None:
    override = f"{key}={value}"
    line = message(TrainEncoderConfig, overrides=["training.max_steps=1", override])
    assert line.startswith(f"`overrides` {override}: {key}")


def test_a_wrong_value_comes_with_what_is_allowed() -> None:
    line = message(TokenizeConfig, flags={"inputs": ["a"], "tokenizer": "words"})
    assert line.startswith("`tokenizer`: tokenizer = 'words': ")
    assert "'byte'" in line
    assert "'char'" in line


def test_a_wrong_value_of_a_file_names_the_file(tmp_path: Path) -> None:
    path = toml(tmp_path, '[training]\nmax_steps = "many"\n')
    assert message(TrainEncoderConfig, path).startswith(f"{path}: training.max_steps = 'many'")


def test_a_wrong_flag_is_named_by_its_key() -> None:
    line = message(TrainEncoderConfig, flags={"training.max_steps": -3})
    assert line.startswith("`training.max_steps`: training.max_steps = -3")


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("objective.dynamics_start=soon", ["integer", ", or 'auto'"]),
        ("objective.dynamics_start=1.5", ["integer", ", or 'auto'"]),
        ("objective.future_length=-1", ["greater than or equal to 0", ", or 'rest'"]),
    ],
)
def test_for_a_union_all_types_are_named_as_allowed(override: str, allowed: list[str]) -> None:
    line = message(TrainEncoderConfig, overrides=["training.max_steps=1", override])
    key = override.partition("=")[0]
    assert line.startswith(f"`overrides` {override}: {key} = ")
    for words in allowed:
        assert words in line


def test_an_error_about_several_keys_names_the_origin_of_one() -> None:
    overrides = ["training.max_steps=1", "objective.uniformity_group=7"]
    line = message(TrainEncoderConfig, overrides=overrides)
    override = "`overrides` objective.uniformity_group=7: "
    assert line.startswith(override + "objective.uniformity_group (7)")


def test_the_origin_named_is_that_of_the_value_used(tmp_path: Path) -> None:
    path = toml(tmp_path, "[training]\nmax_steps = 0\n")
    line = message(TrainEncoderConfig, path, ["training.max_steps=-1"])
    assert line.startswith("`overrides` training.max_steps=-1: ")


def test_an_error_does_not_name_a_key_with_the_same_prefix(tmp_path: Path) -> None:
    class Schema(Config):
        window: int
        windows: int = Field(gt=0)

    path = toml(tmp_path, "windows = 0\n")
    line = message(Schema, path, ["window=64"])
    assert line.startswith(f"{path}: windows = 0")


def test_a_number_in_place_of_a_section_is_refused() -> None:
    line = message(TrainEncoderConfig, overrides=["training=3"])
    assert line.startswith("`overrides` training=3: training = 3")


def test_a_section_in_place_of_a_number_is_refused() -> None:
    line = message(TrainEncoderConfig, overrides=["training.max_steps=1", "data.window.x=3"])
    assert line.startswith("`overrides` data.window.x=3: ")
    assert "data.window" in line


def test_a_key_below_a_value_is_refused() -> None:
    line = message(TrainEncoderConfig, overrides=["data.window=1", "data.window.x=3"])
    assert line.startswith("`overrides` data.window.x=3: data.window.x: window is a value")


@pytest.mark.parametrize("schema", [TrainEncoderConfig, TrainRnnConfig])
@pytest.mark.parametrize("overrides", [[], ["training.batch_size=8"]], ids=["nothing", "some"])
def test_a_missing_limit_is_named_with_an_example(
    schema: type[Config], overrides: list[str]
) -> None:
    line = message(schema, overrides=overrides)
    assert "max_steps or" in line
    assert "max_seconds must be set" in line
    assert "`training.max_steps` 1000" in line


def test_either_limit_is_enough() -> None:
    steps = resolve(TrainEncoderConfig, overrides=["training.max_steps=5"]).training
    seconds = resolve(TrainEncoderConfig, overrides=["training.max_seconds=0.5"]).training
    assert (steps.max_steps, steps.max_seconds) == (5, None)
    assert (seconds.max_steps, seconds.max_seconds) == (None, 0.5)


def test_missing_inputs_are_named() -> None:
    assert message(TokenizeConfig).startswith("`inputs`: ")


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["encoder.width=100", "encoder.heads=8"], ["encoder", "width (100)", "2 * heads (16)"]),
        (["decoder.heads=3"], ["decoder", "width (128)", "2 * heads (6)"]),
        (["cell.kind=transformer", "cell.heads=5"], ["cell", "width (192)", "2 * heads (10)"]),
        (["cell.gate=true"], ["gate = true needs normalize = none"]),
        (["cell.gate_bias=[-3, 1]"], ["gate_bias with kind = mlp needs gate = true"]),
        (["cell.gate_bias=[-3, 1]", "cell.kind=transformer"], ["kind = transformer needs gate"]),
        (["training.batch_size=10", "training.accumulation=3"], ["(10)", "accumulation (3)"]),
        (
            ["encoder.memory=gated", "decoder.kind=handoff", "objective.dynamics_weight=0"],
            ["objective.own_memory (0.5)", "objective.dynamics_weight = 0", "untrained"],
        ),
        (
            ["encoder.memory=gated", "decoder.kind=handoff", "objective.future_length=0"],
            ["decoder.kind = handoff", "objective.future_length (0) must be at least 1"],
        ),
        (["training.batch_size=12"], ["objective.uniformity_group (8)", "(12)"]),
        (
            ["training.batch_size=16", "training.accumulation=4"],
            ["objective.uniformity_group (8)", "training.accumulation (4)"],
        ),
    ],
)
def test_values_that_do_not_fit_together_are_named(overrides: list[str], named: list[str]) -> None:
    line = message(TrainEncoderConfig, overrides=["training.max_steps=1", *overrides])
    for words in named:
        assert words in line


def test_heads_only_matter_to_cells_that_attend() -> None:
    overrides = ["training.max_steps=1", "cell.kind=mlp", "cell.width=10"]
    assert resolve(TrainEncoderConfig, overrides=overrides).cell.width == 10


def test_the_train_split_must_not_be_empty() -> None:
    flags = {"inputs": ["a"], "validation_fraction": 0.5, "test_fraction": 0.5}
    assert "validation_fraction + test_fraction must be below 1" in message(
        TokenizeConfig, flags=flags
    )


def test_an_rnn_cannot_read_out_by_a_handoff() -> None:
    readout = ["readout.kind=decoder", "decoder.kind=handoff"]
    overrides = ["training.max_steps=1", "method=bptt", *readout]
    line = message(TrainRnnConfig, overrides=overrides)
    assert "readout.kind = decoder needs decoder.kind = transformer" in line
