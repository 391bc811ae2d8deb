"""Exit codes other than 0 and 2, each with one line; `--debug` adds the traceback."""

import os
from pathlib import Path

import pytest

from conftest import Command
from smtkit.config import GenerateConfig
from smtkit.storage.manifest import Kind
from smtkit.storage.run import Run
from subprocesses import smtkit


def artifact_of(kind: Kind, out: Path) -> Path:
    with Run(out, kind, GenerateConfig()) as run:
        (run.directory / "data").write_text("some data")
        run.add("data")
        run.commit({"answer": 42})
    return out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["train-encoder", "EVALUATION", "--max-steps", "1"],
            "tokens (tokens: made by smtkit tokenize or smtkit synthesize)",
        ),
        (
            ["train-rnn", "EVALUATION", "--max-steps", "1"],
            "labels (labels: made by smtkit extract-labels)",
        ),
        (
            ["extract-labels", "EVALUATION", "--tokens", "EVALUATION"],
            "encoder (encoder: made by smtkit train-encoder)",
        ),
        (["eval", "EVALUATION", "--tokens", "EVALUATION"], "rnn (rnn: made by smtkit train-rnn)"),
        (["generate", "EVALUATION"], "rnn (rnn: made by smtkit train-rnn)"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_an_artifact_of_the_wrong_kind_is_refused(
    command: Command, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    evaluation = artifact_of("evaluation", tmp_path / "evaluation")
    arguments = [
        str(evaluation) if argument == "EVALUATION" else argument for argument in arguments
    ]
    out = [] if arguments[0] == "generate" else ["--out", tmp_path / "out"]
    result = command(*arguments, *out)
    assert result.code == 3
    assert result.line() == f"{evaluation}: kind is evaluation, expected {expected}"
    assert not (tmp_path / "out").exists()


def test_a_directory_that_is_no_artifact_is_refused(command: Command, tmp_path: Path) -> None:
    result = command("inspect", tmp_path)
    assert result.code == 3
    assert result.line().startswith(f"{tmp_path}: not a complete artifact")


def test_an_output_that_another_run_is_writing_is_locked(
    command: Command, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with Run(out, "tokens", GenerateConfig()):
        result = command("tokenize", text, "--out", out, "--overwrite")
    assert result.code == 4
    assert result.line().startswith(f"--out {out}: another run")


def test_bytes_that_are_not_text_are_named(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(b"good\xff")
    arguments = ["--out", tmp_path / "out", "--tokenizer", "char", "--quiet"]
    result = command("tokenize", path, *arguments)
    assert result.code == 74
    assert result.line().startswith(f"{path}: byte 4: 0xff is not UTF-8")
    assert "--errors replace" in result.line()
    assert not (tmp_path / "out").exists()


def test_an_interrupt_from_the_keyboard_is_one_line(
    command: Command, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("smtkit.stages.tokenize.run", interrupted)
    result = command("tokenize", text, "--out", tmp_path / "out")
    assert (result.code, result.line()) == (130, "interrupted")


unprivileged = pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write anything")


@unprivileged
def test_a_file_that_may_not_be_read_is_named(command: Command, text: Path, tmp_path: Path) -> None:
    text.chmod(0)
    result = command("tokenize", text, "--out", tmp_path / "out")
    assert result.code == 74
    assert result.line() == f"{text}: Permission denied"


@unprivileged
def test_a_directory_that_may_not_be_read_is_named(command: Command, tmp_path: Path) -> None:
    closed = tmp_path / "in" / "closed"
    closed.mkdir(parents=True)
    (tmp_path / "in" / "open.txt").write_text("text")
    (closed / "secret.txt").write_text("text")
    closed.chmod(0)
    try:
        result = command("tokenize", tmp_path / "in", "--out", tmp_path / "out")
    finally:
        closed.chmod(0o700)
    assert result.code == 74
    assert result.line() == f"{closed}: Permission denied"


@unprivileged
def test_an_output_that_may_not_be_written_is_named(
    command: Command, text: Path, tmp_path: Path
) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    for out in (tmp_path / "closed", tmp_path / "closed" / "out"):
        result = command("tokenize", text, "--out", out)
        assert result.code == 74
        assert str(tmp_path / "closed") in result.line()
        assert "Permission denied" in result.line()


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    result = smtkit("inspect", missing, "--debug")
    assert result.returncode != 0
    assert "Traceback (most recent call last)" in result.stderr
    assert f"{missing}: no such artifact" in result.stderr
    assert "Traceback" not in smtkit("inspect", missing).stderr
