"""The guide docs/python.md and the notebooks run, with a few steps of training each."""

import re
import warnings
from pathlib import Path
from typing import Any

import jupytext
import pytest

from conftest import write_text

DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOKS = sorted(DOCS.glob("notebooks/*.py"))


def run(blocks: list[str]) -> dict[str, Any]:
    """The names that are defined after all blocks ran, in order."""
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the networks are hardly trained
        for number, block in enumerate(blocks, start=1):
            exec(compile(block, f"block {number}", "exec"), names)
    return names


def test_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my-text").mkdir()
    for number in range(12):
        write_text(Path("my-text") / f"{number}.txt", 300, seed=number)
    page = (DOCS / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    names = run([re.sub(r"max_steps=\d+", "max_steps=2", block) for block in blocks])
    assert len(blocks) > 10
    assert names["result"].kind == "evaluation"
    assert not Path("another").exists()  # its settings were refused
    assert names["predicted"].shape[1:] == (names["rnn"].slots, names["rnn"].slot_width)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = jupytext.read(path)
    assert notebook.cells[0].cell_type == "markdown"
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    settings = [number for number, cell in enumerate(cells) if re.search(r"^steps = ", cell, re.M)]
    (number,) = settings
    cells[number] = re.sub(r"^steps = \d+", "steps = 2", cells[number], flags=re.MULTILINE)
    cells = [cell.replace("max_windows=6000", "max_windows=64") for cell in cells]
    names = run(cells)
    assert names["effective_rank"] >= 1
