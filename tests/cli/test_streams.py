"""Results go to stdout, progress and errors to stderr; what the manifest records of a command."""

import json
import os
import subprocess
import sys
from pathlib import Path

from conftest import Command
from smtkit.storage.artifact import Artifact
from smtkit.storage.manifest import MANIFEST


def test_json_prints_one_document_and_nothing_else(
    command: Command, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = command("tokenize", text, "--out", out, "--json")
    assert result.code == 0
    assert json.loads(result.stdout) == json.loads((out / MANIFEST).read_text())
    assert "tokenizing" in result.stderr


def test_resume_of_a_complete_artifact_prints_it_as_json_too(
    command: Command, text: Path, tokens: Path
) -> None:
    result = command("tokenize", text, "--out", tokens, "--resume", "--json")
    assert result.code == 0
    assert json.loads(result.stdout) == json.loads((tokens / MANIFEST).read_text())


def test_an_error_prints_no_json(command: Command, tmp_path: Path) -> None:
    result = command("tokenize", tmp_path / "missing", "--out", tmp_path / "out", "--json")
    assert result.code == 2
    assert "no such file" in result.line()


def test_quiet_prints_nothing(command: Command, text: Path, tmp_path: Path) -> None:
    result = command("tokenize", text, "--out", tmp_path / "out", "--quiet")
    assert (result.code, result.stdout, result.stderr) == (0, "", "")


def test_the_summary_goes_to_stdout_and_progress_to_stderr(
    command: Command, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = command("tokenize", text, "--out", out)
    digest = Artifact.open(out).manifest.digest
    assert result.stdout.startswith(f"{out}: tokens {digest[:12]}\n")
    assert "tokenizing" in result.stderr
    assert "tokenizing" not in result.stdout
    assert "\x1b" not in result.stdout + result.stderr


def test_the_manifest_holds_the_command_line(command: Command, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "my tokens"
    command("tokenize", text, "--out", out, "--seed", "3")
    manifest = Artifact.open(out).manifest
    assert manifest.command == f"smtkit tokenize {text} --out '{out}' --seed 3"
    assert manifest.seed == 3


def test_flags_win_over_overrides_and_these_over_the_file(
    command: Command, text: Path, tmp_path: Path
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("seed = 1\ntest_fraction = 0.1\nvalidation_fraction = 0.1\n")
    out = tmp_path / "out"
    arguments = ["--config", file, "--set", "seed=2", "--set", "test_fraction=0.2", "--seed", "3"]
    assert command("tokenize", text, "--out", out, *arguments).code == 0
    config = Artifact.open(out).manifest.config
    assert (config["seed"], config["test_fraction"]) == (3, 0.2)
    assert config["validation_fraction"] == 0.1


def test_inputs_can_come_from_the_file(command: Command, text: Path, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f"inputs = [{json.dumps(str(text))}]\n")
    assert command("tokenize", "--out", tmp_path / "out", "--config", file).code == 0


def test_a_closed_pipe_is_no_error(tokens: Path) -> None:
    """As with `smtkit inspect tokens | head -0`."""
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.Popen(
        [sys.executable, "-m", "smtkit.cli", "inspect", str(tokens)],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    _, stderr = process.communicate()
    assert stderr == ""
    assert process.returncode == 0


def test_an_output_inside_the_inputs_is_not_read(command: Command, tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(f"text {number} " * 20)
    arguments = ("tokenize", tmp_path, "--out", tmp_path / "tokens", "--quiet")
    assert command(*arguments).code == 0
    before = json.loads((tmp_path / "tokens" / MANIFEST).read_text())["digest"]
    assert command(*arguments, "--resume").code == 0
    assert command(*arguments, "--overwrite").code == 0
    assert json.loads((tmp_path / "tokens" / MANIFEST).read_text())["digest"] == before
