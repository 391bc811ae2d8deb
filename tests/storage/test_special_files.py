"""Links and special files in an artifact: refused in one line, and never followed or waited for."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from artifacts import edit_manifest, everything_below
from conftest import Command, Pipeline
from smtkit.storage.manifest import MANIFEST


def a_link(path: Path) -> None:
    """To the same content, outside the artifact."""
    outside = path.parent.parent.parent / "outside"
    path.rename(outside)
    path.symlink_to(outside)


def a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_linked_folder(path: Path) -> None:
    outside = path.parent.parent.parent / "outside"
    path.parent.rename(outside)
    path.parent.symlink_to(outside)


CHANGES = [a_link, a_fifo, a_device, a_directory, a_linked_folder]
USES = {
    "tokens": ("train-encoder", "{}", "--max-steps", 1, "--out", "{}-out"),
    "encoder": ("extract-labels", "{}", "--tokens", "{}", "--out", "{}-out"),
    "labels": ("train-rnn", "{}", "--max-steps", 1, "--out", "{}-out"),
    "rnn": ("generate", "{}"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", USES)
def test_a_special_file_is_refused(
    command: Command, pipeline: Pipeline, tmp_path: Path, kind: str, change: Callable[[Path], None]
) -> None:
    artifact = shutil.copytree(getattr(pipeline, kind), tmp_path / kind)
    path = next(path for path in sorted(artifact.glob("run-*/*")) if path.suffix != ".jsonl")
    change(path)
    for arguments in (USES[kind], ("inspect", "{}"), ("inspect", "{}", "--verify")):
        result = command(*(str(each).format(artifact) for each in arguments))
        assert result.code == 3
        assert str(path.parent) in result.line()
        assert "a regular file" in result.line() or "missing, though" in result.line()
    assert not (tmp_path / f"{kind}-out").exists()


@pytest.mark.parametrize("change", [a_fifo, a_device, a_directory])
def test_a_manifest_that_is_no_file_is_refused(
    command: Command, pipeline: Pipeline, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    artifact = shutil.copytree(pipeline.rnn, tmp_path / "rnn")
    change(artifact / MANIFEST)
    result = command("generate", artifact)
    assert (result.code, "a regular file" in result.line()) == (3, True)


def test_a_manifest_without_end_is_refused(
    command: Command, pipeline: Pipeline, tmp_path: Path
) -> None:
    artifact = shutil.copytree(pipeline.rnn, tmp_path / "rnn")
    os.truncate(artifact / MANIFEST, 2**40)
    result = command("generate", artifact)
    assert (result.code, "larger than" in result.line()) == (3, True)


def test_an_artifact_may_itself_be_reached_through_a_link(
    command: Command, pipeline: Pipeline, tmp_path: Path
) -> None:
    (tmp_path / "rnn").symlink_to(pipeline.rnn)
    assert command("generate", tmp_path / "rnn", "--max-tokens", 4).code == 0
    assert command("inspect", tmp_path / "rnn", "--verify").code == 0


@pytest.mark.parametrize("name", ["../outside/data", "/etc/passwd", "run-00000000/../../x", "a"])
def test_a_name_that_leaves_the_artifact_is_refused(
    command: Command, pipeline: Pipeline, tmp_path: Path, name: str
) -> None:
    artifact = shutil.copytree(pipeline.rnn, tmp_path / "rnn")
    edit_manifest(artifact, files=[{"name": name, "bytes": 1, "rows": None, "xxh3": "0" * 32}])
    before = everything_below(tmp_path)
    result = command("inspect", artifact, "--verify")
    assert (result.code, f"{MANIFEST}: files.0.name: " in result.line()) == (3, True)
    assert everything_below(tmp_path) == before
