"""The table of settings behind the command line and the documentation."""

from typing import Annotated, Literal

import pytest

from smtkit.config import (
    Config,
    EvaluateConfig,
    ExtractLabelsConfig,
    Flag,
    GenerateConfig,
    SynthesizeConfig,
    TokenizeConfig,
    TrainEncoderConfig,
    TrainRnnConfig,
    resolve,
    settings_of,
    without_effect,
)

SCHEMAS = [
    TokenizeConfig,
    SynthesizeConfig,
    TrainEncoderConfig,
    ExtractLabelsConfig,
    TrainRnnConfig,
    EvaluateConfig,
    GenerateConfig,
]
each_schema = pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__name__)


class Inner(Config):
    requires = {"depth": {"kind": ("deep",)}}

    kind: Annotated[Literal["flat", "deep"], Flag("shape")] = "flat"
    """Shape of it."""
    depth: Annotated[int | None, Flag(metavar="K")] = None
    """Depth of it."""


class Outer(Config):
    main = ("inner.kind",)
    requires = {"inner": {"method": ("a", None)}}

    method: Literal["a", "b"] | None = None
    """Method of it. When to
    change it."""
    inner: Inner = Inner()


def test_settings_carry_key_flag_choices_description_and_requirements() -> None:
    kind, method, depth = settings_of(Outer)
    assert [setting.key for setting in settings_of(Outer)] == [
        "inner.kind",
        "method",
        "inner.depth",
    ]
    assert (method.flag, method.choices, method.main) == (None, ["a", "b"], False)
    assert method.description == "Method of it. When to change it."
    assert (kind.flag, kind.main) == (Flag("shape", metavar="flat|deep"), True)
    assert kind.requires == {"method": ("a", None)}
    assert (depth.flag, depth.types) == (Flag("depth", metavar="K"), [int])
    assert depth.requires == {"method": ("a", None), "inner.kind": ("deep",)}


def test_the_reason_names_the_first_requirement_that_does_not_hold() -> None:
    config = Outer(method="b", inner=Inner(kind="deep"))
    reason = "only used with method a or unset; found method b"
    assert without_effect(config) == {"inner.kind": reason, "inner.depth": reason}
    assert without_effect(Outer()) == {
        "inner.depth": "only used with inner.kind deep; found inner.kind flat"
    }


@each_schema
def test_every_setting_has_a_description_in_sentences(schema: type[Config]) -> None:
    for setting in settings_of(schema):
        assert setting.description.endswith("."), setting.key
        first = setting.description.lstrip("`")[0]
        assert first.isupper() or setting.description.startswith("`"), setting.key
        assert not setting.description.startswith("Of "), setting.key


@each_schema
def test_five_settings_matter_most_and_have_flags(schema: type[Config]) -> None:
    main = [setting for setting in settings_of(schema) if setting.main]
    assert tuple(setting.key for setting in settings_of(schema)[:5]) == schema.main
    assert len(main) == 5
    assert all(setting.flag for setting in main)


@each_schema
def test_no_two_settings_of_a_command_share_a_flag(schema: type[Config]) -> None:
    names = [s.flag.name for s in settings_of(schema) if s.flag]
    names += [s.flag.alias for s in settings_of(schema) if s.flag and s.flag.alias]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("text", ["28x14", "28X14", [28, 14]], ids=str)
def test_a_size_is_text_or_two_numbers(text: object) -> None:
    flags = {"inputs": ["a"], "tokenizer": "pixel", "pixel.size": text}
    assert resolve(TokenizeConfig, flags=flags).pixel.size == (28, 14)


def test_lengths_are_separated_by_commas() -> None:
    flags = {"task": "parity", "lengths": "8,12", "sequences": 1}
    assert resolve(SynthesizeConfig, flags=flags).lengths == [8, 12]
