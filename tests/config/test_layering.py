"""Defaults < file < overrides < flags."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from config_cases import REQUIRED, SITUATIONS, message, toml
from hypothesis import given
from hypothesis import strategies as st

from smtkit.config import (
    Config,
    GenerateConfig,
    TokenizeConfig,
    TrainEncoderConfig,
    TrainRnnConfig,
    layer,
    resolve,
)


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
def test_flags_win_over_overrides_and_overrides_over_the_file(
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


@pytest.mark.parametrize("schema", REQUIRED, ids=lambda schema: schema.__name__)
def test_a_resolved_configuration_can_be_loaded_from_json(schema: type[Config]) -> None:
    """As from a manifest, which holds every setting, those without effect too."""
    for situation in SITUATIONS.get(schema, [{}]):
        config = resolve(schema, flags={**REQUIRED[schema], **situation})
        assert schema(**json.loads(config.model_dump_json())) == config


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


HOSTILE = {
    "lists within lists": "seed = " + "[" * 5000 + "]" * 5000,
    "tables within tables": "seed = " + "{a = " * 3000 + "1" + "}" * 3000,
    "many digits": "seed = " + "1" * 5000,
    "digits that Python still reads": "seed = " + "1" * 4000,
    "many hexadecimal digits": "seed = 0x" + "f" * 50_000,
    "steps of many hexadecimal digits": "training.max_steps = 0x" + "f" * 50_000,
    "a key of many parts": ".".join("a" * 20_000) + " = 1",
    "a key of some parts": "training." + ".".join("a" * 300) + " = 1",
    "a key of as many parts as are read": ".".join("a" * 3000) + " = 1",
    "a table of many parts": "[" + ".".join("a" * 20_000) + "]\nx = 1",
    "a long text": "seed = '" + "x" * 100_000 + "'",
    "a long key": "x" * 100_000 + " = 1",
    "a long file": "# " + "x" * 2**20,
    "many keys of many parts": "\n".join(
        f"a{i}." + ".".join("a" * 999) + " = 1" for i in range(500)
    ),
    "many keys in a table of many parts": f"[{'.'.join('a' * 3000)}]\n"
    + "\n".join(f"a{i}." + ".".join("a" * 99) + " = 1" for i in range(1000)),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_is_one_short_line(tmp_path: Path, content: str) -> None:
    path = toml(tmp_path, content)
    tracemalloc.start()
    line = message(TrainEncoderConfig, path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**27
    assert line.startswith(f"{path}: ")
    assert len(line) < len(str(path)) + 700
    assert "\n" not in line


@pytest.mark.parametrize("name", [name for name in HOSTILE if HOSTILE[name][0] not in "[#"])
def test_a_hostile_override_is_one_short_line(name: str) -> None:
    key, _, value = HOSTILE[name].partition(" = ")
    line = message(TrainEncoderConfig, overrides=[f"{key}={value}"])
    assert line.startswith("`overrides` ")
    assert len(line) < 1000
    assert "\n" not in line


def test_a_syntax_error_of_a_file_names_the_line(tmp_path: Path) -> None:
    path = toml(tmp_path, "seed = 1\n[training]\nmax_steps\n")
    assert "line 3" in message(TrainEncoderConfig, path)


def test_a_directory_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    assert message(TrainEncoderConfig, tmp_path).startswith(f"{tmp_path}: ")


@pytest.mark.parametrize("override", ["training.max_steps", "=3", "", " =3"])
def test_an_override_without_key_and_value_is_refused(override: str) -> None:
    line = message(TrainEncoderConfig, overrides=[override])
    assert "expected section.key=value" in line


def test_the_origin_of_each_value_that_was_set_is_known(tmp_path: Path) -> None:
    path = toml(tmp_path, "seed = 1\n[training]\nmax_steps = 2\nclip = 0.5\n")
    overrides = ["training={max_steps=3, batch_size=8}"]
    config, origins = layer(TrainEncoderConfig, path, overrides, {"seed": "4", "device": None})
    assert origins == {
        "seed": "`seed`",
        "training.max_steps": f"`overrides` {overrides[0]}",
        "training.batch_size": f"`overrides` {overrides[0]}",
        "training.clip": str(path),
    }
    assert (config.seed, config.training.max_steps, config.training.clip) == (4, 3, 0.5)
