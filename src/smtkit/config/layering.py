"""Configuration from defaults < TOML file < --set < flags; a mistake is one line that helps."""

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from smtkit.config import Config, flatten
from smtkit.errors import UsageError

ConfigT = TypeVar("ConfigT", bound=Config)


def resolve(
    schema: type[ConfigT],
    file: Path | None = None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> ConfigT:
    """The configuration from defaults < `file` (TOML) < `overrides` (`section.key=value`) <
    `flags` (dotted key to value; None: not given).

    Raises UsageError: one line that names the source, the key, what was found and what is allowed.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, key, value in _settings(file, overrides, flags or {}):
        _assign(values, key, value, source)
        sources[key] = source
    try:
        config = schema.model_validate(values)
    except ValidationError as error:
        raise _explain(schema, error, sources) from None
    for key, line in config.refused(sources):
        raise UsageError(f"{sources[key]}: {line}", "leave it out")
    return config


def _settings(
    file: Path | None, overrides: Sequence[str], flags: Mapping[str, Any]
) -> Iterator[tuple[str, str, Any]]:
    if file is not None:
        for key, value in flatten(_read_toml(file)):
            yield str(file), key, value
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {override}: expected section.key=value")
        value = _parse_value(text.strip())
        inner = flatten(value, f"{key.strip()}.") if isinstance(value, dict) else None
        for name, found in inner or [(key.strip(), value)]:
            yield f"--set {override}", name, found
    for key, value in flags.items():
        if value is not None:
            name = FLAGS.get(key) or key.rpartition(".")[2]
            yield "--" + name.replace("_", "-"), key, value


FLAGS = {
    "rollout.kind": "rollout",
    "test_inputs": "test-input",
    "vocabulary_size": "vocab-size",
}
"""Flags that are not called as the last part of their key."""


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: not a readable TOML file: {error}") from None


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _assign(values: dict[str, Any], key: str, value: Any, source: str) -> None:
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UsageError(f"{source}: {key}: {section} is a value, not a section")
    values[name] = value


def _explain(
    schema: type[Config], error: ValidationError, sources: Mapping[str, str]
) -> UsageError:
    details = error.errors(include_url=False)
    detail = min(details, key=lambda found: found["type"] != "extra_forbidden")
    key, message = _key(schema, detail["loc"]), _message(detail)
    # What concerns the whole begins with the key.
    subject = key or message.partition(" ")[0]
    named = [source for name, source in sources.items() if _overlap(name, subject)]
    where = f"{named[-1]}: " if named else ""
    if detail["type"] == "extra_forbidden":
        return UsageError(f"{where}unknown key {key}", _suggest(schema, key))
    if detail["type"] == "missing" and key == "training":
        return UsageError("training.max_steps or training.max_seconds must be set", _LIMIT_HINT)
    hint = _LIMIT_HINT if "max_steps or max_seconds" in message else None
    if detail["type"] == "missing":
        return UsageError(f"{where}{key}: must be set", f"--set {key}=VALUE, a flag, or --config")
    if detail["type"] == "value_error":
        return UsageError(f"{where}{key}: {message}" if key else f"{where}{message}", hint)
    # Of a union, every type says what it would have liked.
    likings = [_message(other) for other in details if _key(schema, other["loc"]) == key]
    wanted = [liking.removeprefix("Input should be ") for liking in likings[1:]]
    message = ", or ".join([likings[0], *wanted])
    return UsageError(f"{where}{key} = {detail['input']!r}: {message}")


def _message(detail: ErrorDetails) -> str:
    return str(detail["msg"]).removeprefix("Value error, ")


def _key(schema: type[Config], place: Sequence[int | str]) -> str:
    """The dotted key of an error's place, without the types of a union that pydantic tried."""
    section: Any = schema
    parts: list[str] = []
    for part in place:
        if isinstance(section, type) and issubclass(section, Config):
            field = section.model_fields.get(str(part))
            section = field.annotation if field else None
        elif isinstance(part, str):
            continue
        parts.append(str(part))
    return ".".join(parts)


_LIMIT_HINT = "for example --max-steps 1000, or --max-seconds 600"


def _overlap(one: str, other: str) -> bool:
    """Whether one dotted key is the other, or lies in the other's section."""
    shorter, longer = sorted((one, other), key=len)
    return f"{longer}.".startswith(f"{shorter}.")


def _suggest(schema: type[Config], key: str) -> str:
    known = list(_keys(schema))
    name = key.rpartition(".")[2]
    same_name = [k for k in known if k.rpartition(".")[2] == name]
    close = same_name or difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    section = key.rpartition(".")[0]
    siblings = [k for k in known if k.rpartition(".")[0] == section] or known
    return "known keys: " + ", ".join(siblings)


def _keys(schema: type[Config], prefix: str = "") -> Iterator[str]:
    for name, field in schema.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Config):
            yield from _keys(annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
