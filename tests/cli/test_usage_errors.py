"""Mistakes of the user: exit code 2 and one line."""

import sys
from pathlib import Path

import pytest

from conftest import Command
from smtkit.cli import app
from smtkit.errors import UsageError
from smtkit.storage.manifest import MANIFEST


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train"], "train"),
        (["--no-such-flag"], "--no-such-flag"),
        (["tokenize", "--no-such-flag"], "--no-such-flag"),
        (["tokenize", "text.txt"], "--out"),
        (["train-encoder", "--out", "out"], "TOKENS"),
        (["train-encoder", "tokens", "--out", "out", "--max-steps", "many"], "many"),
        (["train-encoder", "tokens", "--out", "out", "--max-steps", "1", "more"], "more"),
        (["inspect"], "ARTIFACT"),
    ],
    ids=str,
)
def test_a_wrong_command_line_is_one_line_that_names_what_is_wrong(
    command: Command, arguments: list[str], named: str
) -> None:
    result = command(*arguments)
    assert result.code == 2
    assert named in result.line()


def test_a_misspelled_command_or_flag_comes_with_a_suggestion(command: Command) -> None:
    assert "tokenize" in command("tokenise").line()
    assert "--tokenizer" in command("tokenize", "a", "--out", "b", "--tokeniser", "char").line()


@pytest.mark.parametrize(
    "arguments",
    [
        ["tokenize", "MISSING", "--out", "OUT"],
        ["train-encoder", "MISSING", "--out", "OUT", "--max-steps", "1"],
        ["extract-labels", "MISSING", "--tokens", "MISSING", "--out", "OUT"],
        ["train-rnn", "MISSING", "--out", "OUT", "--max-steps", "1"],
        ["eval", "MISSING", "--tokens", "MISSING", "--out", "OUT"],
        ["generate", "MISSING"],
        ["inspect", "MISSING"],
        ["tokenize", "TEXT", "--out", "OUT", "--config", "MISSING"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_a_path_that_does_not_exist_is_named(
    command: Command, text: Path, tmp_path: Path, arguments: list[str]
) -> None:
    paths = {"MISSING": tmp_path / "missing", "OUT": tmp_path / "out", "TEXT": text}
    result = command(*(paths.get(argument, argument) for argument in arguments))
    assert result.code == 2
    assert result.line().startswith(f"{tmp_path / 'missing'}: no such ")
    assert not (tmp_path / "out").exists()


def test_an_unknown_key_comes_with_a_suggestion(
    command: Command, text: Path, tmp_path: Path
) -> None:
    result = command("tokenize", text, "--out", tmp_path / "out", "--set", "tokeniser=char")
    assert result.code == 2
    assert result.line() == (
        "--set tokeniser=char: unknown key tokeniser (did you mean tokenizer?)"
    )


def test_a_wrong_value_of_a_flag_names_what_is_allowed(
    command: Command, text: Path, tmp_path: Path
) -> None:
    result = command("tokenize", text, "--out", tmp_path / "out", "--tokenizer", "words")
    assert result.code == 2
    assert result.line().startswith("--tokenizer: tokenizer = 'words': ")
    assert "'byte', 'char', 'sentencepiece' or 'pixel'" in result.line()


def test_a_wrong_value_of_the_config_file_names_the_file(
    command: Command, text: Path, tmp_path: Path
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("seed = 'seven'\n")
    result = command("tokenize", text, "--out", tmp_path / "out", "--config", file)
    assert result.code == 2
    assert result.line().startswith(f"{file}: seed = 'seven'")


@pytest.mark.parametrize("name", ["train-encoder", "train-rnn"])
def test_a_missing_limit_comes_with_an_example(command: Command, tmp_path: Path, name: str) -> None:
    result = command(name, tmp_path / "in", "--out", tmp_path / "out")
    assert result.code == 2
    assert result.line() == (
        "training.max_steps or training.max_seconds must be set "
        "(for example --max-steps 1000, or --max-seconds 600)"
    )


def test_an_output_that_exists_is_refused(command: Command, text: Path, tokens: Path) -> None:
    before = (tokens / MANIFEST).read_bytes()
    result = command("tokenize", text, "--out", tokens)
    assert result.code == 2
    assert result.line().startswith(f"--out {tokens}: exists")
    assert "--overwrite" in result.line()
    assert "--resume" in result.line()
    assert (tokens / MANIFEST).read_bytes() == before


def test_an_output_that_holds_other_files_is_refused(
    command: Command, text: Path, tmp_path: Path
) -> None:
    result = command("tokenize", text, "--out", tmp_path, "--overwrite")
    assert result.code == 2
    assert "text.txt" in result.line()


def test_an_output_that_is_a_file_is_refused(command: Command, text: Path) -> None:
    result = command("tokenize", text, "--out", text)
    assert result.code == 2
    assert result.line().startswith(f"--out {text}: not a directory")


def test_a_malformed_size_is_refused(command: Command, text: Path, tmp_path: Path) -> None:
    result = command("tokenize", text, "--out", tmp_path / "out", "--size", "2x8x3")
    assert result.code == 2
    expected = "--size: pixel.size = '2x8x3': expected HxW, for example 28x28, or N for a square"
    assert result.line() == expected


def test_errors_of_libraries_name_keys_and_the_command_line_names_flags(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: object, **__: object) -> None:
        raise UsageError("`out` x: exists", "`overwrite`, `pixel.maximum` or `pixel.other`")

    monkeypatch.setattr("smtkit.stages.tokenize.run", run)
    monkeypatch.setattr(sys, "argv", ["smtkit", "tokenize", "x", "--out", "x"])
    with pytest.raises(SystemExit):
        app.main()
    said = capsys.readouterr().err
    assert said == "smtkit: --out x: exists (--overwrite, --maximum or pixel.other)\n"
