"""`smtkit init`: pipelines that run wherever smtkit is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Command
from smtkit.config import resolve
from smtkit.config.training import ExtractLabelsConfig, TrainEncoderConfig
from smtkit.errors import UsageError
from smtkit.stages import init

ROOT = Path(__file__).parents[2]
NAMES = sorted(init.PIPELINES)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


@pytest.mark.parametrize("name", NAMES)
def test_a_pipeline_is_that_of_the_repository(tmp_path: Path, name: str) -> None:
    written = init.run(name, tmp_path / "mine")
    expected = contents(ROOT / "pipelines" / name)
    expected["stages.mk"] = (ROOT / "pipelines" / "stages.mk").read_bytes()
    assert contents(tmp_path / "mine") == expected
    assert {path.name for path in written} == set(expected)
    resolve(TrainEncoderConfig, tmp_path / "mine" / "encoder.toml")
    resolve(ExtractLabelsConfig, tmp_path / "mine" / "labels.toml")


def test_files_that_exist_are_kept(tmp_path: Path, command: Command) -> None:
    (tmp_path / "encoder.toml").write_text("mine")
    result = command("init", "text", tmp_path)
    assert result.code == 2
    assert result.line() == (
        f"{tmp_path}: holds encoder.toml (name another directory, or --overwrite replaces it)"
    )
    assert contents(tmp_path) == {"encoder.toml": b"mine"}
    assert command("init", "text", tmp_path, "--overwrite").code == 0
    assert b"[encoder]" in contents(tmp_path)["encoder.toml"]


def test_the_command_that_runs_it_can_be_pasted(tmp_path: Path, command: Command) -> None:
    directory = tmp_path / "mine & yours"
    shown = command("init", "text", directory).stdout
    assert f"make -C '{directory}' TEXT=" in shown


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pipeline txt: allowed: quickstart, text, digits, "):
        init.run("txt", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file: not a directory"):
        init.run("text", tmp_path / "file")


def test_the_text_pipeline_finds_text_from_where_make_is_called(
    tmp_path: Path, command: Command
) -> None:
    command("init", "text", tmp_path / "mine")
    for where, text in (("above", "text"), ("mine", "../text"), ("mine", str(tmp_path / "text"))):
        (tmp_path / "text").mkdir(exist_ok=True)
        cwd = tmp_path / "mine" if where == "mine" else tmp_path
        run = subprocess.run(
            ["make", "-n", "-C", str(tmp_path / "mine"), f"TEXT={text}"],
            cwd=cwd,
            env={**os.environ, "PWD": str(cwd)},
            capture_output=True,
            text=True,
            check=True,
        )
        (line,) = [line for line in run.stdout.splitlines() if line.startswith("smtkit tokenize")]
        assert (tmp_path / "mine" / line.split()[2]).resolve() == tmp_path / "text"


def test_an_installed_wheel_writes_pipelines_that_run(tmp_path: Path) -> None:
    """In a folder of its own, from where nothing of the repository is found."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    for name in NAMES:
        assert contents(site / "smtkit" / "pipelines" / name) == contents(ROOT / "pipelines" / name)
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    smtkit = f"{sys.executable} -m smtkit.cli"
    subprocess.run(
        [*smtkit.split(), "init", "retrieval", "mine"], cwd=tmp_path, env=environment, check=True
    )
    make = ["make", "-C", "mine", f"SMTKIT={smtkit}", "SMOKE=1", "T=16", "WIDTH=16"]
    target = "artifacts-smoke/mlp-16-0/encoder/manifest.json"
    flags = "ENCODER_FLAGS=--max-steps 1 --set training.validation_windows=1"
    environment["PWD"] = str(tmp_path)
    subprocess.run([*make, flags, target], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "mine" / target).exists()
    assert (
        subprocess.run([*make, flags, "-q", target], cwd=tmp_path, env=environment).returncode == 0
    )
