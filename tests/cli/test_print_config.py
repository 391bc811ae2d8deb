"""`--print-config`: every setting, where it was set, as TOML that can be used as --config."""

import re
import tomllib
from pathlib import Path

from conftest import Command
from smtkit.config import TrainRnnConfig, flatten, resolve


def lines(text: str) -> dict[str, tuple[str, str]]:
    """Key to (value, comment) of the lines printed; keys that are commented out begin with #."""
    found = re.findall(r"^(#? ?[a-z_.]+) = (.*?) +# (.*)$", text, flags=re.MULTILINE)
    assert len(found) == text.count("\n")
    return {key: (value, comment) for key, value, comment in found}


def test_each_value_is_printed_with_its_origin(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "rnn.toml"
    file.write_text("seed = 3\ntraining.clip = 0.5\n")
    arguments = ["--config", file, "--set", "cell.width=12", "--rollout", "jacobi"]
    result = command(
        *("train-rnn", "labels", "--out", tmp_path / "out", "--max-steps", 4),
        *("--method", "dmt", *arguments, "--print-config"),
    )
    assert (result.code, result.stderr) == (0, "")
    printed = lines(result.stdout)
    assert printed["seed"] == ("3", str(file))
    assert printed["training.clip"] == ("0.5", str(file))
    assert printed["cell.width"] == ("12", "--set cell.width=12")
    assert printed["rollout.kind"] == ('"jacobi"', "--rollout")
    assert printed["training.max_steps"] == ("4", "--max-steps")
    assert printed["training.batch_size"] == ("32", "default")
    assert printed["# training.max_seconds"] == ("unset", "default")
    assert printed["# rollout.depth"] == (
        "16",
        "default; only used with rollout.kind segments; found rollout.kind jacobi",
    )
    assert not (tmp_path / "out").exists()


def test_every_setting_is_printed_and_the_output_is_a_file_of_settings(
    command: Command, tmp_path: Path
) -> None:
    arguments = ("train-rnn", "labels", "--out", tmp_path / "out", "--max-steps", 4)
    text = command(*arguments, "--cell", "gru", "--print-config").stdout
    file = tmp_path / "printed.toml"
    file.write_text(text)

    config = resolve(TrainRnnConfig, overrides=["training.max_steps=4", "cell.kind=gru"])
    assert resolve(TrainRnnConfig, file) == config
    keys = {key.removeprefix("# ") for key in lines(text)}
    assert keys == {key for key, _ in flatten(config.model_dump())}
    assert len(dict(flatten(tomllib.loads(text)))) > 20
