"""What a killed commit has left is collected; links in place of run folders are not followed."""

import os
import shutil
from pathlib import Path

import pytest

from artifacts import Settings, everything_below, interrupt, make, write_part
from conftest import Command, Pipeline
from smtkit.errors import UsageError
from smtkit.storage import store
from smtkit.storage.artifact import Artifact
from smtkit.storage.manifest import MANIFEST
from smtkit.storage.run import Run


def kill_before_collection(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces an artifact by a run that is killed after its manifest is in place."""

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        make(out, b"new", overwrite=True, width=2)
    monkeypatch.undo()
    assert len(list(out.glob("run-*"))) == 2


@pytest.mark.parametrize("options", [{"resume": True}, {"overwrite": True}, {}])
def test_the_next_run_collects_what_a_killed_commit_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, bool]
) -> None:
    out = tmp_path / "out"
    make(out, b"old")
    kill_before_collection(out, monkeypatch)
    if options:
        make(out, b"newer", width=2, **options)
    else:
        with pytest.raises(UsageError, match="exists"):
            make(out)
    (run,) = out.glob("run-*")
    (entry,) = Artifact.open(out).manifest.files
    assert set(everything_below(out)) == {MANIFEST, run.name, entry.name}


def test_an_unfinished_run_is_not_collected(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out, b"old")
    run = interrupt(out, "half", config=Settings(width=2), overwrite=True)
    make(out, b"old", resume=True)
    assert (run / "work").read_text() == "half"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that looks like a run, outside the artifact."""
    folder = tmp_path / "outside"
    other = interrupt(tmp_path / "other", "precious")
    shutil.copytree(other, folder)
    (folder / ".hidden").write_text("precious")
    return folder


@pytest.mark.parametrize("options", [{"resume": True}, {"overwrite": True}, {}])
def test_a_link_in_place_of_an_unfinished_run_is_not_followed(
    tmp_path: Path, outside: Path, options: dict[str, bool]
) -> None:
    out, before = tmp_path / "out", everything_below(outside)
    out.mkdir()
    (out / "run-00000000").symlink_to(outside)
    make(out, **options)
    assert everything_below(outside) == before
    Artifact.open(out).verify()
    assert not (out / "run-00000000").is_symlink()


@pytest.mark.parametrize("options", [{"resume": True}, {"overwrite": True}])
def test_a_link_in_place_of_the_run_that_made_an_artifact_is_not_followed(
    tmp_path: Path, options: dict[str, bool]
) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    run = make(out).files[0].name.partition("/")[0]
    (out / run).rename(outside)
    (outside / "mine").write_text("precious")
    (out / run).symlink_to(outside)
    before = everything_below(outside)
    make(out, **options)
    make(out, b"new", width=2, overwrite=True)
    assert everything_below(outside) == before
    assert Artifact.open(out).verified("data").read_bytes() == b"new"


def test_a_part_does_not_write_through_a_link(tmp_path: Path, outside: Path) -> None:
    out = tmp_path / "out"
    write_part(out, "a")
    (run,) = out.glob("run-*")
    shutil.rmtree(run)
    run.symlink_to(outside)
    before = everything_below(outside)
    with pytest.raises(UsageError, match=f"{run.name} is a link"):
        write_part(out, "b")
    assert everything_below(outside) == before


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_all_files_have_the_mode_that_the_umask_allows(
    command: Command, pipeline: Pipeline, tmp_path: Path, mask: int
) -> None:
    before = os.umask(mask)
    try:
        arguments = ("train-rnn", pipeline.labels, "--max-steps", 1, "--out", tmp_path / "rnn")
        assert command(*arguments).code == 0
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "rnn").rglob("*") if path.is_file()]
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == {
        path.name: oct(0o666 & ~mask) for path in files
    }


def test_a_run_is_still_taken_over_where_a_link_lies_beside_it(
    tmp_path: Path, outside: Path
) -> None:
    out, before = tmp_path / "out", everything_below(outside)
    run = interrupt(out, "half")
    (out / "run-00000000").symlink_to(outside)
    with Run(out, "tokens", Settings(), resume=True) as resumed:
        assert resumed.directory == run
        (run / "data").write_bytes(b"whole")
        resumed.add("data")
        resumed.commit({})
    assert everything_below(outside) == before
