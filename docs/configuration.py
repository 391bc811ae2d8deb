"""Prints docs/configuration.md: every setting of every command, from the schemas."""

import inspect
import json
from collections.abc import Iterable, Iterator
from itertools import groupby

from smtkit.cli.command import Command
from smtkit.cli.commands import COMMANDS
from smtkit.cli.options import flags_of, with_flags
from smtkit.config import Config, Setting, settings_of

TYPES = {int: "integer", float: "number", str: "string", bool: "boolean"}
HEADER = """# Configuration

Every setting of every command. A value comes from the defaults below, from `--config FILE.toml`,
from `--set section.key=value`, or from a flag, each stronger than the one before; `--print-config`
shows all values of a run and where they were set. An unknown key is an error, and so is a setting
that has no effect beside the others, as `rollout.depth` with `method = "smt"`, even at its default.
This page is printed by `python docs/configuration.py`.
"""


def page() -> str:
    return HEADER + "".join(
        f"\n## smtkit {command.name}\n\n{_prose(command)}\n" + "".join(_tables(command.schema))
        for command in COMMANDS
        if command.schema
    )


def _prose(command: Command) -> str:
    flags = flags_of(command.schema, command.parameters)
    text = with_flags(command.help, {key: f"`{flag}`" for key, flag in flags.items()})
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _tables(schema: type[Config]) -> Iterator[str]:
    settings = settings_of(schema)
    yield _table("Settings that matter most", [setting for setting in settings if setting.main])
    rest = [setting for setting in settings if not setting.main]
    plain = [setting for setting in rest if "." not in setting.key]
    if plain:
        yield _table("More settings", plain)
    sections = [setting for setting in rest if "." in setting.key]
    for name, group in groupby(sections, key=lambda setting: setting.key.partition(".")[0]):
        section = schema.model_fields[name].annotation
        about = " ".join(inspect.cleandoc(section.__doc__ or "").split())
        yield _table(f"`{name}`", group, f"{about}\n\n")


def _table(title: str, settings: Iterable[Setting], about: str = "") -> str:
    head = "| setting | type | default | flag | description |\n| --- | --- | --- | --- | --- |\n"
    return f"\n### {title}\n\n{about}{head}" + "".join(map(_row, settings))


def _row(setting: Setting) -> str:
    types = ", ".join(
        f"`{t}`" if isinstance(t, str) else TYPES.get(t, "array") for t in setting.types
    )
    flag = (
        ""
        if not setting.flag
        else "argument"
        if setting.flag.positional
        else f"`--{setting.flag.name}`"
    )
    needed = " and ".join(
        f"`{key}` " + " or ".join("unset" if a is None else f"`{a}`" for a in allowed)
        for key, allowed in setting.requires.items()
    )
    description = setting.description + (f" Only with {needed}." if needed else "")
    cells = (f"`{setting.key}`", types, _default(setting), flag, description)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _default(setting: Setting) -> str:
    if setting.field.is_required():
        return "required"
    return "unset" if setting.default is None else f"`{json.dumps(setting.default)}`"


if __name__ == "__main__":
    print(page(), end="")
