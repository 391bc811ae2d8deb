"""Configuration from defaults < TOML file < overrides < flags, with the origin of each value; a
mistake is one line that helps."""

import difflib
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from smtkit.config.base import Config, flatten
from smtkit.config.settings import is_section, is_within, settings_of, unused
from smtkit.errors import UsageError

ConfigT = TypeVar("ConfigT", bound=Config)

_LARGEST_FILE = 2**20
_DEEPEST = 16
"""Dots in a key of a file or an override: more than any schema has."""
_MOST_DOTS = 10**7
"""Largest product of the dots in a text of TOML and those in its longest line: tomllib keeps every
beginning of every dotted key, so that its memory grows by some 8 bytes times this product."""
_LONGEST = 200
"""Characters of a value that messages repeat."""
_LIMIT_HINT = "for example `training.max_steps` 1000, or `training.max_seconds` 600"


def resolve(
    schema: type[ConfigT],
    file: Path | None = None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> ConfigT:
    """The configuration from defaults < `file` (TOML) < `overrides` (`section.key=value`) <
    `flags` (dotted key to value; None: not given).

    Raises UsageError: one line with the origin, the key, what was found and what is allowed.
    """
    return layer(schema, file, overrides, flags)[0]


def layer(
    schema: type[ConfigT],
    file: Path | None = None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> tuple[ConfigT, dict[str, str]]:
    """As `resolve`, with the origin of each key that was set, with which messages about it begin:
    the path of the file, the override as it was written, or the key of the flag in backticks."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, key, value in _given(file, overrides, flags or {}):
        _assign(values, key, value, origin)
        origins[key] = origin
    try:
        config = schema.model_validate(values)
    except ValidationError as error:
        raise _explain(schema, error, origins) from None
    for key, line in unused(config, origins):
        raise UsageError(f"{origins[key]}: {line}", "leave it out")
    return config, origins


def _given(
    file: Path | None, overrides: Sequence[str], flags: Mapping[str, Any]
) -> Iterator[tuple[str, str, Any]]:
    """Origin, dotted key and value of everything that is set, the weakest first."""
    if file is not None:
        for key, value in _flat(str(file), lambda: _read_toml(file)):
            yield str(file), key, value
    for override in overrides:
        origin = f"`overrides` {_short(override)}"
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"{origin}: expected section.key=value")
        value = partial(_parse_value, key.strip(), text.strip())
        for name, leaf in _flat(origin, value):
            yield origin, name, leaf
    for key, value in flags.items():
        if value is not None:
            yield f"`{key}`", key, value


def _flat(origin: str, parse: Callable[[], dict[str, Any]]) -> list[tuple[str, Any]]:
    """Dotted key and value of everything in the table that `parse` returns."""
    try:
        found = list(flatten(parse()))
    except RecursionError:
        raise UsageError(f"{origin}: tables or lists nested too deeply") from None
    for key, _ in found:
        if key.count(".") > _DEEPEST:
            raise UsageError(f"{origin}: unknown key {_short(key)}")
    return found


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            raise UsageError(f"{path}: more than {_LARGEST_FILE:,} bytes: not a file of settings")
        return _loads(content.decode("utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:  # tomllib raises it itself for integers of too many digits
        raise UsageError(f"{path}: not a readable TOML file: {_short(str(error))}") from None


def _loads(text: str) -> dict[str, Any]:
    """The content of TOML. Raises ValueError, or RecursionError where it is nested too deeply."""
    dots = [line.count(".") for line in text.split("\n")]
    if max(dots) * sum(dots) > _MOST_DOTS:
        raise ValueError("keys of too many parts")
    return tomllib.loads(text)


def _parse_value(key: str, text: str) -> dict[str, Any]:
    """`text` as TOML, or else as plain text, by its key."""
    try:
        return {key: _loads(f"value = {text}")["value"]}
    except ValueError:  # tomllib raises it itself for integers of too many digits
        return {key: text}


def _assign(values: dict[str, Any], key: str, value: Any, origin: str) -> None:
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UsageError(f"{origin}: {key}: {section} is a value, not a section")
    values[name] = value


def _explain(
    schema: type[Config], error: ValidationError, origins: Mapping[str, str]
) -> UsageError:
    """The first error as one line; an unknown key only if there is no other error."""
    details = error.errors(include_url=False)
    detail = min(details, key=lambda found: found["type"] != "extra_forbidden")
    key, message = _key(schema, detail["loc"]), _message(detail)
    # The message of a validator of several keys begins with one of them.
    subject = key or message.partition(" ")[0]
    named = [origins[k] for k in origins if is_within(k, subject) or is_within(subject, k)]
    where = f"{named[-1]}: " if named else ""
    if detail["type"] == "extra_forbidden":
        return UsageError(f"{where}unknown key {_short(key)}", _suggest(schema, key))
    if detail["type"] == "missing" and key == "training":
        return UsageError("training.max_steps or training.max_seconds must be set", _LIMIT_HINT)
    if detail["type"] == "missing" and not named:
        return UsageError(f"`{key}`: must be set", f"or with `overrides` {key}=VALUE, or in `file`")
    if detail["type"] == "value_error":
        hint = _LIMIT_HINT if "max_steps or max_seconds" in message else None
        found = "" if isinstance(detail["input"], dict) else f" = {_shown(detail['input'])}"
        return UsageError(f"{where}{key}{found}: {message}" if key else where + message, hint)
    # For a union there is one error per member type.
    first, *others = [_message(other) for other in details if _key(schema, other["loc"]) == key]
    message = ", or ".join([first, *(other.removeprefix("Input should be ") for other in others)])
    hint = _closest(detail)
    return UsageError(f"{where}{key} = {_shown(detail['input'])}: {message}", hint)


def _closest(detail: ErrorDetails) -> str | None:
    """A hint at the allowed value that was probably meant."""
    if detail["type"] != "literal_error":
        return None
    allowed = re.findall(r"'([^']*)'", detail["ctx"]["expected"])
    close = difflib.get_close_matches(str(detail["input"]).lower(), allowed, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else None


def _shown(value: Any) -> str:
    """A value as Python writes it, shortened."""
    try:
        return _short(repr(value))
    except (ValueError, RecursionError):  # an integer of too many digits, or lists within lists
        return f"a large {type(value).__name__}"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]}...{text[-20:]}"


def _message(detail: ErrorDetails) -> str:
    return str(detail["msg"]).removeprefix("Value error, ")


def _key(schema: type[Config], location: Sequence[int | str]) -> str:
    """The dotted key of an error's location, without the member types of unions in it."""
    section: Any = schema
    parts: list[str] = []
    for part in location:
        if is_section(section):
            field = section.model_fields.get(str(part))
            section = field.annotation if field else None
        elif isinstance(part, str):
            continue
        parts.append(str(part))
    return ".".join(parts)


def _initials(name: str) -> str:
    """`lr` of `learning_rate`."""
    return "".join(word[0] for word in name.split("_"))


def _suggest(schema: type[Config], key: str) -> str:
    known = [setting.key for setting in settings_of(schema)]
    section, _, name = key.rpartition(".")
    same_name = [k for k in known if name in (last := k.rpartition(".")[2], _initials(last))]
    if close := same_name or difflib.get_close_matches(key, known, n=1):
        return f"did you mean {close[0]}?"
    siblings = [k for k in known if k.rpartition(".")[0] == section] or known
    return "known keys: " + ", ".join(siblings)
