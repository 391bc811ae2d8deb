"""Settings: which source wins, and what a user is told about a wrong one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

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
"""What a user has to set, for each schema; all else has a default."""


def toml(directory: Path, text: str) -> Path:
    path = directory / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return path


def message(schema: type[Config], *arguments: Any, **options: Any) -> str:
    """What the user is told: the line and the hint."""
    with pytest.raises(UsageError) as caught:
        resolve(schema, *arguments, **options)
    assert "\n" not in str(caught.value)
    return f"{caught.value} ({caught.value.hint})"


def refusal(schema: type[Config], overrides: list[str], flags: dict[str, Any]) -> str:
    """The line that the user is told, or nothing."""
    try:
        resolve(schema, overrides=overrides, flags=flags)
    except UsageError as error:
        return str(error)
    return ""


def keys(config: Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of all settings."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


# Which source wins


@pytest.mark.parametrize(
    ("file", "overrides", "flags", "expected"),
    [
        (None, [], {}, 1000),
        ("max_steps = 2", [], {}, 2),
        ("max_steps = 2", ["training.max_steps=3"], {}, 3),
        ("max_steps = 2", ["training.max_steps=3"], {"training.max_steps": 4}, 4),
        ("max_steps = 2", [], {"training.max_steps": 4}, 4),
        ("max_steps = 2", [], {"training.max_steps": None}, 2),
        (None, ["training.max_steps=3", "training.max_steps=5"], {}, 5),
    ],
)
def test_the_nearer_source_wins(
    tmp_path: Path,
    file: str | None,
    overrides: list[str],
    flags: dict[str, Any],
    expected: int,
) -> None:
    path = toml(tmp_path, f"[training]\n{file}") if file else None
    if path is None and not overrides:
        overrides = ["training.max_steps=1000"]
    config = resolve(TrainEncoderConfig, path, overrides, flags)
    assert config.training.max_steps == expected


def test_a_setting_leaves_the_others_of_its_section_alone(tmp_path: Path) -> None:
    path = toml(tmp_path, "seed = 7\n[training]\nmax_steps = 5\nbatch_size = 64\n")
    config = resolve(TrainEncoderConfig, path, ["training.learning_rate=0.5"], {})
    assert config.seed == 7
    assert config.training.max_steps == 5
    assert config.training.batch_size == 64
    assert config.training.learning_rate == 0.5
    assert config.data == resolve(TrainEncoderConfig, overrides=["training.max_steps=1"]).data


def test_dotted_keys_and_tables_of_a_file_mean_the_same(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    dotted = toml(tmp_path / "a", "data.window = 9\ntraining.max_steps = 1\n")
    tables = toml(tmp_path / "b", "[data]\nwindow = 9\n[training]\nmax_steps = 1\n")
    assert resolve(TrainEncoderConfig, dotted) == resolve(TrainEncoderConfig, tables)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tokenizer=char", "char"),
        ('tokenizer="char"', "char"),
        (" tokenizer = char ", "char"),
    ],
)
def test_the_value_of_an_override_is_toml_or_plain_text(text: str, expected: str) -> None:
    config = resolve(TokenizeConfig, overrides=[text], flags={"inputs": ["a"]})
    assert config.tokenizer == expected


def test_an_override_can_be_a_list_and_can_hold_equals_signs() -> None:
    config = resolve(
        TokenizeConfig, overrides=['inputs=["a=b", "c"]', "include=['*.txt']", "errors=replace"]
    )
    assert config.inputs == ["a=b", "c"]
    assert config.include == ["*.txt"]
    assert config.errors == "replace"


SITUATIONS: dict[type[Config], list[dict[str, Any]]] = {
    TokenizeConfig: [{"tokenizer": "sentencepiece"}, {"tokenizer": "pixel"}, {}],
    TrainEncoderConfig: [
        {"cell.kind": "transformer", "objective.dynamics_start": "auto"},
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
"""Settings beside which others have an effect: every key has one beside some of these."""


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
            if told := refusal(schema, [override], flags):
                line = f"`overrides` {override}: {key} = {value!r} is only used with "
                assert told.startswith(line)
            else:
                assert resolve(schema, overrides=[override], flags=flags) == plain
                accepted.add(key)
    assert accepted == {key for key, value in keys(plain) if value is not None}


@pytest.mark.parametrize(
    ("schema", "overrides", "named", "told"),
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
            ["tokenizer=pixel", "errors=skip"],
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
    schema: type[Config], overrides: list[str], named: int, told: str
) -> None:
    """Also where it is given at its default."""
    line = message(schema, overrides=overrides, flags=REQUIRED[schema])
    assert line.startswith(f"`overrides` {overrides[named]}: ")
    assert f" is only used with {told}" in line


def test_a_key_without_effect_that_a_flag_gave_is_named_in_backticks() -> None:
    flags = {**REQUIRED[TokenizeConfig], "vocabulary_size": "400"}
    line = message(TokenizeConfig, flags=flags)
    assert line.startswith("`vocabulary_size`: vocabulary_size = 400 is")


def test_a_key_without_effect_that_was_changed_is_refused_in_python_too() -> None:
    line = r"rollout\.depth = 8 is only used with method dmt; found method smt"
    with pytest.raises(ValueError, match=line):
        TrainRnnConfig(rollout={"depth": 8}, training={"max_steps": 1})


@pytest.mark.parametrize("schema", REQUIRED, ids=lambda schema: schema.__name__)
def test_what_was_resolved_can_be_read_again(schema: type[Config]) -> None:
    """As from a manifest, which holds every setting, those without effect too."""
    for situation in SITUATIONS.get(schema, [{}]):
        config = resolve(schema, flags={**REQUIRED[schema], **situation})
        assert schema(**json.loads(config.model_dump_json())) == config


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


@given(
    rate=st.floats(0, 1e6, exclude_min=True),
    steps=st.integers(1, 2**62),
    seed=st.integers(-(2**62), 2**62),
)
def test_numbers_of_an_override_arrive_exactly(rate: float, steps: int, seed: int) -> None:
    overrides = [f"training.learning_rate={rate!r}", f"training.max_steps={steps}", f"seed={seed}"]
    config = resolve(TrainRnnConfig, overrides=overrides)
    assert config.training.learning_rate == rate
    assert config.training.max_steps == steps
    assert config.seed == seed


def test_a_resolved_configuration_does_not_change() -> None:
    config = resolve(GenerateConfig)
    with pytest.raises(ValueError, match="frozen"):
        config.prompt = "other"  # type: ignore[misc]


def test_identity_leaves_out_what_changes_no_result() -> None:
    first = {"training.max_steps": 1, "device": "cpu", "training.log_every": 1}
    second = {"training.max_steps": 1, "device": "cuda", "training.checkpoint_every": 7}
    other = {"training.max_steps": 2}
    identity = resolve(TrainRnnConfig, flags=first).identity()
    assert identity == resolve(TrainRnnConfig, flags=second).identity()
    assert identity != resolve(TrainRnnConfig, flags=other).identity()
    assert identity["training.max_steps"] == 1


# Keys that do not exist


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
    told = message(TrainEncoderConfig, overrides=[override, "training.max_steps=1"])
    assert f"`overrides` {override}: unknown key {override.partition('=')[0]}" in told
    assert suggestion in told


def test_an_unknown_key_of_a_file_names_the_file(tmp_path: Path) -> None:
    path = toml(tmp_path, "[training]\nmax_steps = 1\nlearning_rat = 0.1\n")
    told = message(TrainEncoderConfig, path)
    assert told.startswith(f"{path}: unknown key training.learning_rat")


def test_an_unknown_key_like_no_other_lists_what_there_is() -> None:
    told = message(TrainEncoderConfig, overrides=["data.zzz=1", "training.max_steps=1"])
    assert "unknown key data.zzz" in told
    assert "data.window" in told


def test_an_unknown_section_is_named_with_its_source() -> None:
    told = message(TrainEncoderConfig, overrides=["zzz.window=1", "training.max_steps=1"])
    assert told.startswith("`overrides` zzz.window=1: unknown key zzz")


def test_a_misspelled_section_is_named_though_a_required_one_is_then_missing() -> None:
    told = message(TrainEncoderConfig, overrides=["trainin.max_steps=1"])
    assert "unknown key trainin" in told
    assert "training" in told


@pytest.mark.parametrize("schema", REQUIRED, ids=lambda schema: schema.__name__)
def test_every_section_refuses_unknown_keys(schema: type[Config]) -> None:
    config = resolve(schema, flags=REQUIRED[schema])
    sections = {key.rpartition(".")[0] for key, _ in keys(config)}
    for section in sections:
        key = f"{section}.no_such_key".removeprefix(".")
        told = message(schema, overrides=[f"{key}=1"], flags=REQUIRED[schema])
        assert f"unknown key {key}" in told


# Values that are wrong


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
    ],
)
def test_a_wrong_value_is_named_with_key_and_source(key: str, value: str) -> None:
    override = f"{key}={value}"
    told = message(TrainEncoderConfig, overrides=["training.max_steps=1", override])
    assert told.startswith(f"`overrides` {override}: {key}")


def test_a_wrong_value_comes_with_what_is_allowed() -> None:
    told = message(TokenizeConfig, flags={"inputs": ["a"], "tokenizer": "words"})
    assert told.startswith("`tokenizer`: tokenizer = 'words': ")
    assert "'byte'" in told
    assert "'char'" in told


def test_a_wrong_value_of_a_file_names_the_file(tmp_path: Path) -> None:
    path = toml(tmp_path, '[training]\nmax_steps = "many"\n')
    assert message(TrainEncoderConfig, path).startswith(f"{path}: training.max_steps = 'many'")


def test_a_wrong_flag_is_named_as_the_user_wrote_it() -> None:
    told = message(TrainEncoderConfig, flags={"training.max_steps": -3})
    assert told.startswith("`training.max_steps`: training.max_steps = -3")


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("objective.dynamics_start=soon", ["integer", ", or 'auto'"]),
        ("objective.dynamics_start=1.5", ["integer", ", or 'auto'"]),
        ("objective.future_length=-1", ["greater than or equal to 0", ", or 'rest'"]),
    ],
)
def test_of_several_types_all_are_told_as_allowed(override: str, allowed: list[str]) -> None:
    told = message(TrainEncoderConfig, overrides=["training.max_steps=1", override])
    key = override.partition("=")[0]
    assert told.startswith(f"`overrides` {override}: {key} = ")
    for words in allowed:
        assert words in told


def test_what_concerns_several_keys_comes_with_the_source_of_the_one_it_names() -> None:
    overrides = ["training.max_steps=1", "objective.uniformity_group=7"]
    told = message(TrainEncoderConfig, overrides=overrides)
    override = "`overrides` objective.uniformity_group=7: "
    assert told.startswith(override + "objective.uniformity_group (7)")


def test_the_source_named_is_the_one_that_won(tmp_path: Path) -> None:
    path = toml(tmp_path, "[training]\nmax_steps = 0\n")
    told = message(TrainEncoderConfig, path, ["training.max_steps=-1"])
    assert told.startswith("`overrides` training.max_steps=-1: ")


def test_a_key_that_begins_like_another_is_not_blamed_for_it(tmp_path: Path) -> None:
    class Schema(Config):
        window: int
        windows: int = Field(gt=0)

    path = toml(tmp_path, "windows = 0\n")
    told = message(Schema, path, ["window=64"])
    assert told.startswith(f"{path}: windows = 0")


def test_a_number_in_place_of_a_section_is_refused() -> None:
    told = message(TrainEncoderConfig, overrides=["training=3"])
    assert told.startswith("`overrides` training=3: training = 3")


def test_a_section_in_place_of_a_number_is_refused() -> None:
    told = message(TrainEncoderConfig, overrides=["training.max_steps=1", "data.window.x=3"])
    assert told.startswith("`overrides` data.window.x=3: ")
    assert "data.window" in told


def test_a_key_below_a_value_is_refused() -> None:
    told = message(TrainEncoderConfig, overrides=["data.window=1", "data.window.x=3"])
    assert told.startswith("`overrides` data.window.x=3: data.window.x: window is a value")


@pytest.mark.parametrize("override", ["training.max_steps", "=3", "", " =3"])
def test_an_override_without_key_and_value_is_refused(override: str) -> None:
    told = message(TrainEncoderConfig, overrides=[override])
    assert "expected section.key=value" in told


# Files that are wrong


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing.toml"
    assert message(TrainEncoderConfig, path).startswith(f"{path}: no such file")


@pytest.mark.parametrize(
    "content",
    [b"[training\n", b"max_steps 3\n", b"a = 1\na = 2\n", b"\xff\xfe"],
    ids=["bracket", "no equals sign", "twice", "not UTF-8"],
)
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(content)
    assert message(TrainEncoderConfig, path).startswith(f"{path}: not a readable TOML file")


def test_a_syntax_error_of_a_file_names_the_line(tmp_path: Path) -> None:
    path = toml(tmp_path, "seed = 1\n[training]\nmax_steps\n")
    assert "line 3" in message(TrainEncoderConfig, path)


def test_a_directory_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    assert message(TrainEncoderConfig, tmp_path).startswith(f"{tmp_path}: ")


# What must be set, and what must fit together


@pytest.mark.parametrize("schema", [TrainEncoderConfig, TrainRnnConfig])
@pytest.mark.parametrize("overrides", [[], ["training.batch_size=8"]], ids=["nothing", "some"])
def test_a_missing_limit_is_named_with_an_example(
    schema: type[Config], overrides: list[str]
) -> None:
    told = message(schema, overrides=overrides)
    assert "max_steps or" in told
    assert "max_seconds must be set" in told
    assert "`training.max_steps` 1000" in told


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
        (["training.batch_size=10", "training.accumulation=3"], ["(10)", "accumulation (3)"]),
        (["training.batch_size=12"], ["objective.uniformity_group (8)", "(12)"]),
        (
            ["training.batch_size=16", "training.accumulation=4"],
            ["objective.uniformity_group (8)", "training.accumulation (4)"],
        ),
    ],
)
def test_values_that_do_not_fit_together_are_named(overrides: list[str], named: list[str]) -> None:
    told = message(TrainEncoderConfig, overrides=["training.max_steps=1", *overrides])
    for words in named:
        assert words in told


def test_heads_only_matter_to_cells_that_attend() -> None:
    overrides = ["training.max_steps=1", "cell.kind=mlp", "cell.width=10"]
    assert resolve(TrainEncoderConfig, overrides=overrides).cell.width == 10


def test_something_must_be_left_for_training() -> None:
    flags = {"inputs": ["a"], "validation_fraction": 0.5, "test_fraction": 0.5}
    assert "validation_fraction + test_fraction must be below 1" in message(
        TokenizeConfig, flags=flags
    )
