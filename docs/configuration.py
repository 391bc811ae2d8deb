"""Prints docs/configuration.md: every key of every stage, from the schemas themselves."""

from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from smtkit import config

STAGES = {
    "tokenize": config.TokenizeConfig,
    "synthesize": config.SynthesizeConfig,
    "train-encoder": config.TrainEncoderConfig,
    "extract-labels": config.ExtractLabelsConfig,
    "train-rnn": config.TrainRnnConfig,
    "eval": config.EvaluateConfig,
    "generate": config.GenerateConfig,
}

HEADER = """# Configuration

Every setting of every stage. A value comes from the defaults below, from `--config FILE.toml`, from
`--set section.key=value`, or from a flag, each stronger than the one before. An unknown key is an
error, and so is one that has no effect beside the others, as `rollout.depth` has none beside
`method = "smt"`, even at its default. This page is printed by `python docs/configuration.py`.
"""


def page() -> str:
    return HEADER + "".join(
        f"\n## smtkit {command}\n\n| key | type | default | |\n| --- | --- | --- | --- |\n"
        + "".join(_rows(schema))
        for command, schema in STAGES.items()
    )


def _rows(schema: type[config.Config], prefix: str = "") -> Iterator[str]:
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, config.Config):
            yield from _rows(field.annotation, f"{prefix}{name}.")
        else:
            description = " ".join((field.description or "").split())
            kind = _kind(schema, name)
            yield f"| `{prefix}{name}` | {kind} | {_default(field)} | {description} |\n"


def _kind(schema: type[config.Config], name: str) -> str:
    return _shown(schema.model_json_schema()["properties"][name])


def _shown(property_: dict[str, Any]) -> str:
    if "anyOf" in property_:  # null stands for what is unset, which the default says
        types = [type_ for type_ in property_["anyOf"] if type_.get("type") != "null"]
        return ", ".join(map(_shown, types))
    if "enum" in property_:
        return ", ".join(f"`{value}`" for value in property_["enum"])
    if "const" in property_:
        return f"`{property_['const']}`"
    return str(property_["type"])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    return "unset" if default is None else f"`{default!r}`".replace("'", '"')


if __name__ == "__main__":
    print(page(), end="")
