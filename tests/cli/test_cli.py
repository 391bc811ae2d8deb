"""The command line: exit codes, one-line messages, and what goes to which stream."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import smtkit
from conftest import Command, Pipeline
from smtkit.cli import app
from smtkit.config import GenerateConfig, TrainRnnConfig
from smtkit.errors import UsageError
from smtkit.storage.artifact import Artifact
from smtkit.storage.manifest import MANIFEST, Kind
from smtkit.storage.run import Run
from smtkit.storage.tensors import MODEL, load_tensors

COMMANDS = [
    command.name or command.callback.__name__.replace("_", "-")
    for command in app.app.registered_commands
    if command.callback
]


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


def artifact_of(kind: Kind, out: Path) -> Path:
    with Run(out, kind, GenerateConfig()) as run:
        (run.directory / "data").write_text("some data")
        run.add("data")
        run.commit({"answer": 42})
    return out


def in_new_process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "smtkit.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


# Help, version, imports


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
    assert expected <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_explains_itself(command: Command, name: str, flag: str) -> None:
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
    for name in COMMANDS:
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
def test_what_is_light_imports_nothing_heavy(
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
    result = subprocess.run(
        [sys.executable, "-c", setup + program + check],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert result.stdout.endswith("found []\n")


# Mistakes of the user: exit code 2


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


# Other exit codes


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


# --debug


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    result = in_new_process("inspect", missing, "--debug")
    assert result.returncode != 0
    assert "Traceback (most recent call last)" in result.stderr
    assert f"{missing}: no such artifact" in result.stderr
    assert "Traceback" not in in_new_process("inspect", missing).stderr


# What goes where


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


@pytest.mark.parametrize("start", ["--init", "--init-from-labels"])
def test_inspect_shows_the_network_that_was_trained(
    command: Command, pipeline: Pipeline, tmp_path: Path, start: str
) -> None:
    """Though nothing of it was described; and the run goes on where it stopped."""
    out, flags = tmp_path / "out", [start, *([pipeline.rnn] if start == "--init" else [])]
    arguments = ("train-rnn", pipeline.labels, "--out", out, "--max-steps", 1, *flags)
    assert command(*arguments, "--set", "training.batch_size=4").code == 0
    manifest = json.loads(command("inspect", out, "--json").stdout)["manifest"]
    config, header = manifest["config"], load_tensors(Artifact.open(out).file(MODEL))[1]

    assert config["cell"]["width"] == 16
    assert config["memory"] == {"slots": 2, "slot_width": 8}
    for section in ("cell", "readout", "decoder"):
        assert config[section] == header[section]
    assert manifest["identity"]["cell.width"] == TrainRnnConfig.model_fields["cell"].default.width
    assert TrainRnnConfig(**config).cell.width == 16
    before = (out / "manifest.json").read_bytes()
    assert command(*arguments, "--set", "training.batch_size=4", "--resume").code == 0
    assert (out / "manifest.json").read_bytes() == before


def test_inputs_can_come_from_the_file(command: Command, text: Path, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f"inputs = [{json.dumps(str(text))}]\n")
    assert command("tokenize", "--out", tmp_path / "out", "--config", file).code == 0


def test_a_reader_that_goes_away_is_no_error(tokens: Path) -> None:
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


# inspect


def test_inspect_shows_what_it_is_and_what_it_was_made_from(
    command: Command, tokens: Path, tmp_path: Path
) -> None:
    parent = Artifact.open(tokens)
    out = tmp_path / "encoder"
    with Run(out, "encoder", GenerateConfig(), [parent]) as run:
        (run.directory / "data").write_text("12345")
        run.add("data")
        digest = run.commit({"answer": 42}).digest
    result = command("inspect", out)
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{out}: encoder {digest[:12]}\n")
    assert "answer: 42" in result.stdout
    assert "1 files, 5 bytes" in result.stdout
    assert f"from {tokens}: tokens {parent.manifest.digest[:12]}" in result.stdout


def test_inspect_prints_the_manifest_as_json(command: Command, tokens: Path) -> None:
    result = command("inspect", tokens, "--json")
    assert (result.code, result.stderr) == (0, "")
    content = json.loads(result.stdout)
    assert content["manifest"] == json.loads((tokens / MANIFEST).read_text())
    assert set(content) == {"manifest", "counts", "rows"}


def test_verification_finds_a_flipped_bit(command: Command, tokens: Path) -> None:
    assert command("inspect", tokens, "--verify").code == 0
    shard = Artifact.open(tokens).files("train-")[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    result = command("inspect", tokens, "--verify")
    assert result.code == 3
    assert result.line().startswith(f"{shard}: damaged")


def test_inspect_finds_a_file_cut_short(command: Command, tokens: Path) -> None:
    shard = Artifact.open(tokens).files("train-")[0]
    os.truncate(shard, 100)
    result = command("inspect", tokens)
    assert result.code == 3
    assert result.line().startswith(f"{shard}: 100 bytes")


def test_a_size_that_is_no_size_is_refused(command: Command, text: Path, tmp_path: Path) -> None:
    result = command("tokenize", text, "--out", tmp_path / "out", "--size", "28")
    assert result.code == 2
    assert result.line() == "--size: pixel.size = '28': expected HxW, for example 28x28"


def test_an_output_below_the_inputs_is_no_input(command: Command, tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(f"text {number} " * 20)
    arguments = ("tokenize", tmp_path, "--out", tmp_path / "tokens", "--quiet")
    assert command(*arguments).code == 0
    before = json.loads((tmp_path / "tokens" / MANIFEST).read_text())["digest"]
    assert command(*arguments, "--resume").code == 0
    assert command(*arguments, "--overwrite").code == 0
    assert json.loads((tmp_path / "tokens" / MANIFEST).read_text())["digest"] == before


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
