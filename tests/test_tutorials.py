"""The tutorials of docs/ run as written, with a few steps of training each."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np

from image_files import write_picture
from test_how_to import apply, commands, manifest, run_commands

ROOT = Path(__file__).parent.parent
FEW = {
    "train-encoder": "--max-steps 2 --set training.batch_size=8",
    "train-rnn": "--max-steps 2 --set training.batch_size=4",
    "extract-labels": "--max-windows 20",
    "eval": "--windows 4 --lengths 1",
    "synthesize": "--sequences 200",
    "tokenize": "--validation-fraction 0.3 --test-fraction 0.3",
    "generate": "",
}
"""Flags that shorten a command; they take the place of those that a page gives."""


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def shortened(command: str) -> str:
    """Without plans, which tests of their own measure."""
    name = shlex.split(command)[1]
    flags = FEW.get(name, "")
    for flag in re.findall(r"--[a-z-]+", flags.replace("--set", "")):
        command = re.sub(rf" {flag} \S+", "", command)
    if "text --config" in command:
        flags += " --vocab-size 400"  # there is too little text for more
    return "smtkit status ." if name == "plan" else f"{command} {flags}"


def follow(name: str, directory: Path, source: Path = ROOT / "src") -> list[str]:
    """Runs the commands of a page in `directory`; returns them."""
    lines = [shortened(command) for command in commands(page(name))]
    run_commands("```sh\n" + "\n".join(lines) + "\n```\n", source, directory)
    return lines


def test_the_tutorial_on_text(tmp_path: Path) -> None:
    (tmp_path / "my-text").mkdir()
    for text in ROOT.glob("docs/*.md"):
        shutil.copy(text, tmp_path / "my-text")
    lines = follow("tutorial-text", tmp_path)
    assert len(lines) > 8
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert manifest(tmp_path / "rnn")["config"]["init_from_labels"]


def test_the_tutorial_on_images(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for number in range(40):
        pixels = draw.integers(0, 256, (20, 20), dtype=np.uint8)
        write_picture(tmp_path / "my-images" / str(number % 2) / f"{number}.png", pixels)
    follow("tutorial-images", tmp_path)
    assert manifest(tmp_path / "tokens")["statistics"]["length"] == 196
    for name in ("samples.png", "completions.png", "report.html"):
        assert (tmp_path / name).stat().st_size > 1000


def test_the_tutorial_on_a_cell(tmp_path: Path) -> None:
    apply(page("tutorial-cell"), tmp_path)
    follow("tutorial-cell", tmp_path, tmp_path / "src")
    for rnn in ("bptt", "rnn"):
        assert manifest(tmp_path / rnn)["config"]["cell"]["kind"] == "leaky"
    assert (tmp_path / "cells.html").exists()
