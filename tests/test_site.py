"""The site of the documentation: built without a warning, it loads nothing from elsewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from smtkit.cli.program import app

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    out = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", out]
    found = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "WARNING -" not in found.stderr
    return out


def test_every_command_has_its_help(site: Path) -> None:
    page = (site / "commands.html").read_text(encoding="utf-8")
    for name in get_command(app).commands:  # type: ignore[attr-defined]
        assert f'id="smtkit-{name}"' in page


def test_the_reference_is_of_the_code(site: Path) -> None:
    page = (site / "reference.html").read_text(encoding="utf-8")
    for name in ("inference.trained.TrainedRNN.step", "api.stages.train_rnn", "errors.UsageError"):
        assert f'id="smtkit.{name}"' in page


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.glob("*.html"))
    assert len(pages) > 10
    for page in pages:
        loaded = re.findall(
            r'<(?:script|img|link)\b[^>]*?(?:src|href)="?([^"\s>]+)', page.read_text("utf-8")
        )
        assert not [path for path in loaded if re.match(r"(https?:)?//", path)], page.name
