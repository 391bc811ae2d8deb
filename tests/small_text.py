"""A short text and its tokens, as fixtures."""

from pathlib import Path

import pytest

from conftest import Command


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("To be, or not to be, that is the question.\n" * 20)
    return path


@pytest.fixture
def tokens(command: Command, text: Path, tmp_path: Path) -> Path:
    out = tmp_path / "tokens"
    assert command("tokenize", text, "--out", out).code == 0
    return out
