"""Commands, flags, settings and links in the docs exist."""

import re
import runpy
from pathlib import Path

import pytest
from typer.main import get_command

from smtkit.cli.program import app

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]
GENERATED = {"commands.md"}
"""Pages that are made when the site is built; tests/test_site.py builds it."""
SHELL = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND_LINE = re.compile(r"^smtkit (?P<command>[a-z-]+)(?P<rest>.*)$", re.MULTILINE)


def test_configuration_page_is_what_the_schemas_say() -> None:
    page = runpy.run_path(str(ROOT / "docs/configuration.py"))["page"]()
    assert (ROOT / "docs/configuration.md").read_text(encoding="utf-8") == page
    assert "Undefined" not in page
    columns = {len(re.findall(r"(?<!\\)\|", row)) for row in page.splitlines() if row[:1] == "|"}
    assert columns == {6}
    assert "| `objective.dynamics_start` | integer, `auto`, string | `100` |" in page
    assert "| `include` | array | `[]` |" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_flags_in_the_docs_exist(page: Path) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    blocks = SHELL.findall(page.read_text(encoding="utf-8"))
    for match in COMMAND_LINE.finditer("\n".join(blocks)):
        command = commands[match["command"]]
        known = {flag for parameter in command.params for flag in parameter.opts}
        flags = set(re.findall(r"--[a-z-]+", match["rest"]))
        assert flags <= known, match[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_in_the_docs_lead_to_files_and_headings(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'src="([^"]+)"', text)]
    for link in links:
        path, _, heading = link.partition("#")
        if "://" in path or path in GENERATED:
            continue
        target = page.parent / path if path else page
        assert target.is_file(), link
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [_anchor(title) for title in headings], link


def _anchor(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
