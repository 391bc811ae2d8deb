"""Help, version, completion, examples, and what they import."""

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import smtkit
from conftest import Command
from smtkit.cli.commands import COMMANDS
from smtkit.cli.program import app
from smtkit.config.settings import as_text, settings_of
from subprocesses import python
from subprocesses import smtkit as run_smtkit

NAMES = [declared.name for declared in COMMANDS]


def test_every_stage_has_a_command() -> None:
    expected = {
        "tokenize",
        "train-encoder",
        "extract-labels",
        "train-rnn",
        "eval",
        "generate",
        "inspect",
    }
    assert expected <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_help(command: Command, name: str, flag: str) -> None:
    result = command(name, flag)
    assert result.code == 0
    assert result.stderr == ""
    assert name in result.stdout
    assert "--debug" in result.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []], ids=str)
def test_the_help_lists_every_command(command: Command, arguments: list[str]) -> None:
    result = command(*arguments)
    assert result.code == 0
    assert result.stderr == ""
    for name in NAMES:
        assert name in result.stdout


def test_the_version_is_that_of_the_package(command: Command) -> None:
    result = command("--version")
    assert (result.code, result.stdout, result.stderr) == (0, f"smtkit {smtkit.__version__}\n", "")


@pytest.mark.parametrize(
    ("program", "heavy"),
    [
        ("import smtkit", ["torch", "pyarrow"]),
        ("run(['--help'])", ["torch", "pyarrow"]),
        ("run(['--version'])", ["torch", "pyarrow"]),
        ("run(['train-rnn', '--help'])", ["torch", "pyarrow"]),
        ("run(['tokenize', 'missing', '--out', 'out'])", ["torch"]),
    ],
)
def test_help_and_usage_errors_import_neither_torch_nor_pyarrow(
    tmp_path: Path, program: str, heavy: list[str]
) -> None:
    setup = (
        "import sys\n"
        "def run(arguments):\n"
        "    from smtkit.cli import app\n"
        "    sys.argv[1:] = arguments\n"
        "    try:\n"
        "        app.main()\n"
        "    except SystemExit:\n"
        "        pass\n"
    )
    check = f"\nprint('found', [name for name in {heavy} if name in sys.modules])\n"
    result = python("-c", setup + program + check, cwd=tmp_path)
    assert result.stdout.endswith("found []\n")


def shown(text: str) -> str:
    """Without the line breaks of the help."""
    return " ".join(text.split())


def entries(text: str) -> dict[str, str]:
    """Argument or flag to its whole entry in the help."""
    found = {}
    for block in re.split(r"\n(?=  \S)|\n\n", text.partition("\nExamples:")[0]):
        names = re.match(r" *(.*?)(?:\s{2,}|$)", block)[1]  # type: ignore[index]
        found.update({name: shown(block) for name in names.replace(",", "").split()})
    return found


WITH_SETTINGS = [command for command in COMMANDS if command.schema]


@pytest.mark.parametrize("declared", WITH_SETTINGS, ids=lambda declared: declared.name)
def test_every_setting_with_a_flag_is_in_the_help_with_choices_and_default(
    command: Command, declared: Any
) -> None:
    rows = entries(command(declared.name, "--help").stdout)
    for setting in settings_of(declared.schema):
        if setting.flag is None:
            continue
        flag = setting.flag
        row = rows[flag.metavar if flag.positional else f"--{flag.name}"]
        assert all(choice in row for choice in setting.choices)
        if setting.field.is_required():
            assert row.endswith("required]")
        elif setting.default is None:
            assert "unset: " in row
        else:
            assert f"[default: {as_text(setting.default)}" in row


@pytest.mark.parametrize("declared", WITH_SETTINGS, ids=lambda declared: declared.name)
def test_the_settings_that_matter_most_come_first(command: Command, declared: Any) -> None:
    text = command(declared.name, "--help").stdout
    main = text.partition("Settings that matter most:\n")[2].partition("\n\n")[0]
    flags = re.findall(r"^  (--[a-z-]+)", main, flags=re.MULTILINE)
    by_key = {setting.key: setting.flag for setting in settings_of(declared.schema)}
    assert flags == [f"--{by_key[key].name}" for key in declared.schema.main]


@pytest.mark.parametrize("declared", COMMANDS, ids=lambda declared: declared.name)
def test_the_help_fits_80_columns(
    command: Command, declared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for line in command(declared.name, "--help").stdout.splitlines():
        assert len(line) <= 80


class StageCalledError(Exception):
    """A stage was reached."""


@pytest.mark.parametrize(
    ("name", "example"),
    [(declared.name, example) for declared in COMMANDS for example in declared.examples],
)
def test_the_examples_parse(
    name: str, example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the call of the stage, with settings that are valid."""

    def run(*arguments: Any, **keywords: Any) -> None:
        raise StageCalledError

    stage = {"eval": "evaluate"}.get(name, name.replace("-", "_"))
    for function in ("run", "run_part"):
        path = f"smtkit.stages.{stage}.{function}"
        monkeypatch.setattr(path, run, raising=function == "run")
    monkeypatch.setattr("smtkit.cli.launcher.must_launch", lambda count: False)
    (tmp_path / "encoder.toml").write_text("training.max_steps = 1\n")
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(example)
    assert program == "smtkit"
    with (
        pytest.raises(StageCalledError),
        get_command(app).make_context("smtkit", arguments) as context,
    ):
        context.command.invoke(context)


def test_help_names_flags_in_place_of_config_keys(command: Command) -> None:
    text = shown(command("generate", "--help").stdout)
    assert "from this split of --tokens;" in text
    assert "`" not in text
    assert "[default: 16; with --method dmt and --rollout segments]" in shown(
        command("train-rnn", "--help").stdout
    )


def test_completion_prints_a_script_for_the_shell() -> None:
    result = run_smtkit(
        "--show-completion",
        "bash",
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "complete -o default -F _smtkit_completion smtkit" in result.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("smtkit train-", {"train-encoder", "train-rnn"}),
        ("smtkit train-rnn --method ", {"smt", "dmt", "bptt"}),
        ("smtkit tokenize --tokenizer s", {"sentencepiece"}),
        ("smtkit train-rnn --learn", {"--learning-rate"}),
    ],
)
def test_the_shell_completes_commands_flags_and_choices(words: str, expected: set[str]) -> None:
    environment = {
        **os.environ,
        "_SMTKIT_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    result = run_smtkit(env=environment)
    assert result.returncode == 0
    assert set(result.stdout.split()) == expected
