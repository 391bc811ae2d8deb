"""Options of the commands, generated from the schemas, and the help that shows them."""

import re
from collections.abc import Iterable
from inspect import Parameter, Signature
from typing import Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperOption

from smtkit.config.base import Config, Flag
from smtkit.config.settings import Setting, as_text, settings_of

ARTIFACTS, MAIN, MORE, RUN = "Artifacts", "Settings that matter most", "More settings", "Run"
_SECTIONS = ("Arguments", ARTIFACTS, MAIN, MORE, RUN)
_NAMES_WIDTH = 24

Flags = dict[str, str]
"""Config key, or name of an option that is no setting, to its flag."""


def argument(name: str, metavar: str, help: str, type_: Any = str) -> Parameter:
    """A required positional argument."""
    return _parameter(name, type_, Parameter.empty, typer.Argument(metavar=metavar, help=help))


def arguments(name: str, metavar: str, help: str) -> Parameter:
    """One or more positional arguments."""
    return argument(name, metavar, help, list[str])


def option(
    names: str, help: str, type_: Any = None, default: Any = None, section: str = RUN, **more: Any
) -> Parameter:
    """An option that is no setting; `names` as in the help: `--out, -o DIR|URI`.

    By default it is text that need not be given, or, without a metavar, a switch.
    """
    first, *others = names.replace(",", "").split()
    metavar = None if not others or others[-1].startswith("-") else others.pop()
    info = typer.Option(first, *others, metavar=metavar, help=help, rich_help_panel=section, **more)
    if metavar is None:
        type_, default = bool, False
    return _parameter(_identifier(first), type_ or str | None, default, info)


def signature(schema: type[Config] | None, own: Iterable[Parameter]) -> Signature:
    """Parameters of a command: the settings that have a flag, then its own."""
    flags = flags_of(schema, own)
    settings = [_of_setting(setting, flag, flags) for setting, flag in _flagged(schema)]
    return Signature([*settings, *own])


def flags_of(schema: type[Config] | None, own: Iterable[Parameter]) -> Flags:
    """The flags of a command. Positional arguments have none."""
    options = [p for p in own if isinstance(p.annotation.__metadata__[0], typer.models.OptionInfo)]
    return {
        "overrides": "--set",
        "file": "--config",
        **{p.name: "--" + p.name.replace("_", "-") for p in options},
        **{s.key: f"--{flag.name}" for s, flag in _flagged(schema) if not flag.positional},
    }


def values_of(schema: type[Config], given: dict[str, Any]) -> dict[str, Any]:
    """Takes the settings out of the parsed parameters: key to text, or None where not given."""
    values = {setting.key: given.pop(_identifier(flag.name)) for setting, flag in _flagged(schema)}
    return {key: None if value in (False, []) else value for key, value in values.items()}


def with_flags(message: str, flags: Flags) -> str:
    """The message with the flag in place of each `config.key` in backticks, where it has one."""
    return re.sub(r"`([a-z][a-z0-9_.]*)`", lambda found: flags.get(found[1], found[1]), message)


class SectionedCommand(TyperCommand):
    """A command whose help groups the options by section and ends with examples."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[Any]] = {section: [] for section in _SECTIONS}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, TyperArgument):
                sections["Arguments"].append((parameter.metavar, parameter.help))
            elif isinstance(parameter, TyperOption):
                section = parameter.rich_help_panel or RUN
                sections[section].append(parameter.get_help_record(ctx))
        for section, rows in sections.items():
            if rows:
                with formatter.section(section):
                    aligned = [(names.ljust(_NAMES_WIDTH), help) for names, help in rows]
                    formatter.write_dl(aligned, col_max=_NAMES_WIDTH)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Examples"):
            for line in (self.epilog or "").splitlines():
                formatter.write(f"  {line}\n")


def _flagged(schema: type[Config] | None) -> list[tuple[Setting, Flag]]:
    settings = settings_of(schema) if schema else ()
    return [(setting, setting.flag) for setting in settings if setting.flag]


def _identifier(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _parameter(name: str, type_: Any, default: Any, info: Any) -> Parameter:
    annotation = Annotated[type_, info]
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _of_setting(setting: Setting, flag: Flag, flags: Flags) -> Parameter:
    """Its value stays text: `resolve` parses it, so that all errors come from one place."""
    name, types, choices = _identifier(flag.name), setting.types, setting.choices
    repeatable = types == [list[str]]
    help = _help(setting, flag, flags)
    if flag.positional:
        # A list may come from a file of settings instead.
        type_, default = (list[str] | None, None) if repeatable else (str, Parameter.empty)
        return _parameter(name, type_, default, typer.Argument(metavar=flag.metavar, help=help))
    is_switch = types == [bool]
    info = typer.Option(
        *(f"--{name}" for name in (flag.name, flag.alias) if name),
        metavar=None if is_switch else flag.metavar,
        help=help,
        rich_help_panel=MAIN if setting.main else MORE,
        autocompletion=(lambda: choices) if choices else None,
    )
    if is_switch:
        return _parameter(name, bool, False, info)
    return _parameter(name, (list[str] if repeatable else str) | None, None, info)


def _help(setting: Setting, flag: Flag, flags: Flags) -> str:
    """First sentence of the description, then choices, default and conditions in brackets."""
    sentence = setting.description.partition(". ")[0].removesuffix(".")
    notes = []
    if setting.choices and flag.metavar != "|".join(setting.choices):
        notes.append(", ".join(setting.choices))
    if setting.field.is_required():
        notes.append("required")
    elif "unset:" not in sentence:
        notes.append(f"default: {as_text(setting.default)}")
    if setting.requires:
        needed = [
            f"{flags.get(key, key)} {' or '.join(map(as_text, allowed))}"
            for key, allowed in setting.requires.items()
        ]
        notes.append(f"with {' and '.join(needed)}")
    shown = with_flags(sentence, flags).replace("`", "")
    return f"{shown}." + (f"  [{'; '.join(notes)}]" if notes else "")
