"""Hooks of the site (mkdocs.yml): the page of commands, from the help of the program."""

from typing import Any

from mkdocs.structure.files import File, Files
from typer.main import get_command

from smtkit.cli.program import app

_HEADER = """# Commands

The help of every command, as `smtkit COMMAND --help` prints it. [Configuration](configuration.md)
describes all settings, also those without a flag.
"""


def on_files(files: Files, config: Any) -> Files:
    """Adds the page."""
    files.append(File.generated(config, "commands.md", content=page()))
    return files


def page() -> str:
    """Markdown of the help of all commands."""
    program: Any = get_command(app)
    parts = [_HEADER]
    for name, command in program.commands.items():
        with command.make_context(name, [], parent=None, resilient_parsing=True) as context:
            context.info_name = f"smtkit {name}"
            parts.append(f"\n## smtkit {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "".join(parts)
