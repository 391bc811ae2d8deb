"""Resuming in a directory: finished artifacts, unfinished runs, other settings and formats."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts import Settings, everything_below, finalize, interrupt, make, write_part
from smtkit.errors import ArtifactError, UsageError
from smtkit.storage import manifest as manifests
from smtkit.storage.artifact import Artifact
from smtkit.storage.run import Run
from smtkit.storage.store import RUN_RECORD


def test_resume_keeps_a_complete_artifact(tmp_path: Path) -> None:
    first = make(tmp_path / "out")
    before = everything_below(tmp_path)
    with Run(tmp_path / "out", "tokens", Settings(), resume=True) as run:
        assert run.finished == first
    assert everything_below(tmp_path) == before


def test_resume_of_an_empty_output_starts(tmp_path: Path) -> None:
    make(tmp_path / "out", resume=True)
    Artifact.open(tmp_path / "out").verify()


def test_a_setting_that_changes_no_result_may_differ_on_resume(tmp_path: Path) -> None:
    first = make(tmp_path / "out", config=Settings(device="cpu"))
    again = make(tmp_path / "out", config=Settings(device="cuda"), resume=True)
    assert again == first


def test_resume_with_another_setting_names_the_key(tmp_path: Path) -> None:
    make(tmp_path / "out", config=Settings(width=1))
    before = everything_below(tmp_path)
    with pytest.raises(UsageError, match="width was 1, is 2") as caught:
        make(tmp_path / "out", config=Settings(width=2), resume=True)
    assert str(tmp_path / "out") in str(caught.value)
    assert everything_below(tmp_path) == before


def test_resume_with_another_input_names_it(tmp_path: Path) -> None:
    make(tmp_path / "one", b"one")
    make(tmp_path / "two", b"two")
    one, two = Artifact.open(tmp_path / "one"), Artifact.open(tmp_path / "two")
    make(tmp_path / "out", kind="encoder", parents=[one])
    with pytest.raises(UsageError, match="input tokens was"):
        make(tmp_path / "out", kind="encoder", parents=[two], resume=True)


def test_resume_and_overwrite_replace_an_artifact_of_other_settings(tmp_path: Path) -> None:
    make(tmp_path / "out", b"old", config=Settings(width=1))
    make(tmp_path / "out", b"new", config=Settings(width=2), resume=True, overwrite=True)
    artifact = Artifact.open(tmp_path / "out")
    assert artifact.file("data").read_bytes() == b"new"
    assert artifact.manifest.config["width"] == 2


def test_resume_and_overwrite_keep_an_artifact_of_the_same_settings(tmp_path: Path) -> None:
    first = make(tmp_path / "out", b"old")
    again = make(tmp_path / "out", b"new", resume=True, overwrite=True)
    assert again == first


def test_resume_takes_over_the_folder_of_the_unfinished_run(tmp_path: Path) -> None:
    folder = interrupt(tmp_path / "out", "half")
    with Run(tmp_path / "out", "tokens", Settings(), resume=True) as run:
        assert run.finished is None
        assert run.directory == folder
        assert (run.directory / "work").read_text() == "half"


def test_a_resumed_run_keeps_the_time_it_was_first_started(tmp_path: Path) -> None:
    folder = interrupt(tmp_path / "out")
    record = json.loads((folder / RUN_RECORD).read_text())
    del record["checksum"]
    record["started"] = "2001-02-03T04:05:06+00:00"
    (folder / RUN_RECORD).write_text(json.dumps(record))
    assert make(tmp_path / "out", resume=True).started == "2001-02-03T04:05:06+00:00"


def test_a_resumed_run_that_fails_again_can_be_resumed_again(tmp_path: Path) -> None:
    folder = interrupt(tmp_path / "out", "half")
    with (
        pytest.raises(ZeroDivisionError),
        Run(tmp_path / "out", "tokens", Settings(), resume=True),
    ):
        raise ZeroDivisionError
    assert (folder / "work").read_text() == "half"


def test_an_unfinished_run_is_refused_without_an_option(tmp_path: Path) -> None:
    interrupt(tmp_path / "out")
    before = everything_below(tmp_path)
    with pytest.raises(UsageError, match="unfinished run") as caught:
        make(tmp_path / "out")
    assert caught.value.hint is not None
    assert "`resume`" in caught.value.hint
    assert everything_below(tmp_path) == before


def test_resume_of_an_unfinished_run_with_another_setting_names_the_key(tmp_path: Path) -> None:
    interrupt(tmp_path / "out", config=Settings(width=1))
    before = everything_below(tmp_path)
    with pytest.raises(UsageError, match="width was 1, is 2"):
        make(tmp_path / "out", config=Settings(width=2), resume=True)
    assert everything_below(tmp_path) == before


def test_overwrite_starts_anew_where_a_run_is_unfinished(tmp_path: Path) -> None:
    folder = interrupt(tmp_path / "out")
    with Run(tmp_path / "out", "tokens", Settings(), overwrite=True) as run:
        assert run.directory != folder
        assert not folder.exists()


def test_an_interrupted_overwrite_resumes_and_the_old_artifact_stays(tmp_path: Path) -> None:
    make(tmp_path / "out", b"old", config=Settings(width=1))
    folder = interrupt(tmp_path / "out", config=Settings(width=2), overwrite=True)
    assert Artifact.open(tmp_path / "out").verified("data").read_bytes() == b"old"
    with Run(tmp_path / "out", "tokens", Settings(width=2), overwrite=True, resume=True) as run:
        assert run.directory == folder


def test_a_killed_run_can_be_resumed(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from smtkit.storage.run import Run\n"
        "from smtkit.config import GenerateConfig\n"
        "run = Run(sys.argv[1], 'rnn', GenerateConfig())\n"
        "with run:\n"
        "    (run.directory / 'work').write_text('half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "out")], check=False)
    from smtkit.config import GenerateConfig

    with (
        pytest.raises(UsageError, match="unfinished run"),
        Run(tmp_path / "out", "rnn", GenerateConfig()),
    ):
        pass
    with Run(tmp_path / "out", "rnn", GenerateConfig(), resume=True) as run:
        assert (run.directory / "work").read_text() == "half"


def test_a_run_killed_before_it_wrote_anything_is_ignored(tmp_path: Path) -> None:
    folder = interrupt(tmp_path / "out")
    (folder / "work").unlink()
    make(tmp_path / "out")
    Artifact.open(tmp_path / "out").verify()


def test_a_damaged_record_of_an_unfinished_run_is_named(tmp_path: Path) -> None:
    folder = interrupt(tmp_path / "out")
    (folder / RUN_RECORD).write_text("{")
    with pytest.raises(ArtifactError) as caught:
        make(tmp_path / "out", resume=True)
    assert str(folder / RUN_RECORD) in str(caught.value)


def test_shards_of_another_format_are_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    write_part(out, "a")
    monkeypatch.setitem(manifests._FORMAT_VERSIONS, "tokens", 2)

    with pytest.raises(UsageError, match="cannot resume: format_version was 1, is 2"):
        finalize(out)
    assert finalize(out, overwrite=True) == ["a", "b"]


@pytest.mark.parametrize("resume", [False, True])
def test_overwrite_replaces_an_artifact_of_another_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    out = str(tmp_path / "out")
    make(out)
    monkeypatch.setitem(manifests._FORMAT_VERSIONS, "tokens", 2)

    with pytest.raises(ArtifactError, match="format version is 1, this smtkit reads 2"):
        make(out, resume=resume)
    assert make(out, overwrite=True, resume=resume).format_version == 2
    Artifact.open(out)


def test_resume_removes_temporary_files_of_killed_processes(tmp_path: Path) -> None:
    interrupt(tmp_path)
    (folder,) = tmp_path.glob("run-*")
    (folder / ".train-00000.arrow.01234567").write_bytes(b"half")
    with Run(tmp_path, "tokens", Settings(), resume=True) as run:
        assert {path.name for path in run.directory.iterdir()} == {"run.json", "work"}


def test_the_run_record_identifies_the_run(tmp_path: Path) -> None:
    with Run(tmp_path / "out", "tokens", Settings()) as run:
        record = json.loads((run.directory / "run.json").read_text())
    assert record["identity"]["kind"] == "tokens"
    assert record["identity"]["format_version"] == 1
