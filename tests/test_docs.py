"""What the docs say of settings and commands is what the code has."""

import re
import runpy
from pathlib import Path

import pytest
from typer.main import get_command

from smtkit.cli import app

ROOT = Path(__file__).parent.parent
SHELL = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND_LINE = re.compile(r"^smtkit (?P<command>[a-z-]+)(?P<rest>.*)$", re.MULTILINE)


def test_configuration_page_is_what_the_schemas_say() -> None:
    page = runpy.run_path(str(ROOT / "docs/configuration.py"))["page"]()
    assert (ROOT / "docs/configuration.md").read_text(encoding="utf-8") == page


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))])
def test_commands_and_flags_in_the_docs_exist(page: str) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    blocks = SHELL.findall((ROOT / page).read_text(encoding="utf-8"))
    for match in COMMAND_LINE.finditer("\n".join(blocks)):
        command = commands[match["command"]]
        known = {flag for parameter in command.params for flag in parameter.opts}
        flags = set(re.findall(r"--[a-z-]+", match["rest"]))
        assert flags <= known, match[0]
