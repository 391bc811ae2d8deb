"""The settings of a schema as a table: what the command line, the documentation and the errors
about settings without effect are made from."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from operator import attrgetter
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from smtkit.config.base import Config, Flag

_METAVARS = {int: "N", float: "X"}


@dataclass(frozen=True)
class Setting:
    """One field of a schema or of its sections."""

    key: str
    """Dotted: `training.max_steps`."""
    field: FieldInfo
    requires: dict[str, tuple[Any, ...]]
    """Other key to allowed values: the setting has an effect only if all of them hold."""
    main: bool
    """One of the five settings of the schema that matter most."""

    @property
    def flag(self) -> Flag | None:
        """With name and metavar filled in."""
        for mark in self.field.metadata:
            if isinstance(mark, Flag):
                name = mark.name or self.key.rpartition(".")[2].replace("_", "-")
                metavar = "|".join(self.choices) or _METAVARS.get(self.types[0], "TEXT")
                return replace(mark, name=name, metavar=mark.metavar or metavar)
        return None

    @property
    def types(self) -> list[Any]:
        """Members of the field's type without None; for a Literal, its values."""
        return list(_members(self.field.annotation))

    @property
    def choices(self) -> list[str]:
        return [member for member in self.types if isinstance(member, str)]

    @property
    def description(self) -> str:
        return " ".join((self.field.description or "").split())

    @property
    def default(self) -> Any:
        return self.field.get_default(call_default_factory=True)


@cache
def settings_of(schema: type[Config]) -> tuple[Setting, ...]:
    """All settings of a schema and its sections: first those that matter most, in the order of
    `main`, then the others as they are defined."""
    settings = {setting.key: setting for setting in _walk(schema, "", schema.main, ())}
    return *(settings.pop(key) for key in schema.main), *settings.values()


def _walk(
    schema: type[Config],
    prefix: str,
    main: tuple[str, ...],
    requirements: tuple[tuple[str, str, tuple[Any, ...]], ...],
) -> Iterator[Setting]:
    """`requirements`: (setting or section, other key, allowed values) of the sections above."""
    for key, others in schema.requires.items():
        requirements += tuple((prefix + key, prefix + of, others[of]) for of in others)
    for name, field in schema.model_fields.items():
        key = prefix + name
        if is_section(field.annotation):
            yield from _walk(field.annotation, f"{key}.", main, requirements)
        else:
            own = {other: allowed for of, other, allowed in requirements if is_within(key, of)}
            yield Setting(key, field, own, key in main)


def is_section(annotation: Any) -> TypeGuard[type[Config]]:
    return isinstance(annotation, type) and issubclass(annotation, Config)


def is_within(key: str, section: str) -> bool:
    """Whether a dotted key is `section`, or lies in it."""
    return f"{key}.".startswith(f"{section}.")


def without_effect(config: Config) -> dict[str, str]:
    """Settings that have no effect beside the others: key to the reason."""
    reasons: dict[str, str] = {}
    for setting in settings_of(type(config)):
        for other, allowed in setting.requires.items():
            found = attrgetter(other)(config)
            if found not in allowed:
                wanted = " or ".join(map(as_text, allowed))
                reason = f"only used with {other} {wanted}; found {other} {as_text(found)}"
                reasons.setdefault(setting.key, reason)
    return reasons


def unused(config: Config, keys: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(key, error message) for each of `keys` that has no effect beside the other settings."""
    reasons = without_effect(config)
    for key in keys:
        if key in reasons:
            yield key, f"{key} = {attrgetter(key)(config)!r} is {reasons[key]}"


def as_text(value: Any) -> str:
    """A value as in a sentence."""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return {None: "unset", "": "empty"}.get(value, str(value))


def _members(annotation: Any) -> Iterator[Any]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _members(arguments[0])
    elif origin in (Union, UnionType):
        for argument in arguments:
            yield from _members(argument)
    elif origin is Literal:
        yield from arguments
    elif annotation is not NoneType:
        yield annotation
