"""The commit protocol in a directory: commits, failures, locks, and outputs that are refused."""

import errno
import fcntl
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from artifacts import (
    Settings,
    everything_below,
    make,
)
from smtkit.errors import ArtifactError, InputOutputError, LockedError, UsageError
from smtkit.storage.artifact import Artifact
from smtkit.storage.locks import DirectoryLock
from smtkit.storage.manifest import MANIFEST
from smtkit.storage.run import Run


def test_before_the_commit_there_is_no_artifact(tmp_path: Path) -> None:
    with Run(tmp_path / "out", "tokens", Settings()) as run:
        (run.directory / "data").write_text("whole")
        run.add("data")
        with pytest.raises(ArtifactError, match="not a complete artifact"):
            Artifact.open(tmp_path / "out")
        run.commit({})
        Artifact.open(tmp_path / "out").verify()


def test_the_old_artifact_is_readable_until_the_new_one_is_committed(tmp_path: Path) -> None:
    make(tmp_path / "out", b"old")
    with Run(tmp_path / "out", "tokens", Settings(), overwrite=True) as run:
        (run.directory / "data").write_bytes(b"new")
        run.add("data")
        before = Artifact.open(tmp_path / "out")
        assert before.verified("data").read_bytes() == b"old"
        run.commit({})
    assert Artifact.open(tmp_path / "out").verified("data").read_bytes() == b"new"


def test_a_failed_overwrite_leaves_exactly_the_old_artifact(tmp_path: Path) -> None:
    make(tmp_path / "out", b"old")
    before = everything_below(tmp_path)
    with (
        suppress(ZeroDivisionError),
        Run(tmp_path / "out", "tokens", Settings(), overwrite=True) as run,
    ):
        (run.directory / "data").write_bytes(b"new")
        run.add("data")
        raise ZeroDivisionError
    assert everything_below(tmp_path) == before


def test_a_failed_first_run_leaves_nothing(tmp_path: Path) -> None:
    with suppress(ZeroDivisionError), Run(tmp_path / "out", "tokens", Settings()) as run:
        (run.directory / "data").write_bytes(b"half")
        raise ZeroDivisionError
    assert everything_below(tmp_path) == {}


def test_a_failed_run_leaves_an_empty_directory_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ZeroDivisionError), Run(tmp_path / "out", "tokens", Settings()):
        raise ZeroDivisionError
    assert everything_below(tmp_path) == {"out": None}


def test_files_that_the_manifest_does_not_name_are_removed(tmp_path: Path) -> None:
    make(tmp_path / "out", b"old")
    with Run(tmp_path / "out", "tokens", Settings(), overwrite=True) as run:
        (run.directory / "data").write_bytes(b"new")
        (run.directory / "scratch").write_bytes(b"not added")
        run.add("data")
        run.commit({})
    name = f"{run.directory.name}/data"
    assert set(everything_below(tmp_path / "out")) == {MANIFEST, run.directory.name, name}


def test_an_old_folder_with_other_files_does_not_prevent_the_commit(tmp_path: Path) -> None:
    old = make(tmp_path / "out", b"old").files[0].name.partition("/")[0]
    (tmp_path / "out" / old / "notes").mkdir()
    (tmp_path / "out" / old / "notes" / "mine").write_text("a user's")
    make(tmp_path / "out", b"new", overwrite=True)
    assert Artifact.open(tmp_path / "out").verified("data").read_bytes() == b"new"


def test_an_error_after_the_commit_leaves_the_artifact(tmp_path: Path) -> None:
    with suppress(ZeroDivisionError), Run(tmp_path / "out", "tokens", Settings()) as run:
        (run.directory / "data").write_bytes(b"whole")
        run.add("data")
        run.commit({})
        raise ZeroDivisionError
    Artifact.open(tmp_path / "out").verify()


def test_an_interrupt_while_old_files_are_removed_leaves_the_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "out", b"old")

    def interrupted(path: Path, missing_ok: bool = False) -> None:
        raise KeyboardInterrupt

    run = Run(tmp_path / "out", "tokens", Settings(), overwrite=True)
    with suppress(KeyboardInterrupt), run:
        (run.directory / "data").write_bytes(b"new")
        run.add("data")
        monkeypatch.setattr(Path, "unlink", interrupted)
        run.commit({})
    monkeypatch.undo()
    assert Artifact.open(tmp_path / "out").verified("data").read_bytes() == b"new"


def test_a_second_run_on_the_same_directory_is_locked_out(tmp_path: Path) -> None:
    with Run(tmp_path / "out", "tokens", Settings()) as run:
        with (
            pytest.raises(LockedError, match="another run") as caught,
            Run(tmp_path / "out", "tokens", Settings(), overwrite=True, resume=True),
        ):
            pass
        assert str(tmp_path / "out") in str(caught.value)
        assert run.directory.is_dir()
    with Run(tmp_path / "out", "tokens", Settings()):
        pass  # the first run has released the lock


def test_the_lock_excludes_other_processes_until_its_holder_ends(
    tmp_path: Path,
) -> None:
    program = (
        "import sys\n"
        "from smtkit.storage.run import Run\n"
        "from smtkit.config import GenerateConfig\n"
        "with Run(sys.argv[1], 'tokens', GenerateConfig()):\n"
        "    print('locked', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "out")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(LockedError), Run(tmp_path / "out", "tokens", Settings()):
            pass
        other.kill()
    make(tmp_path / "out")


def test_an_output_that_exists_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "out")
    before = everything_below(tmp_path)
    with pytest.raises(UsageError, match="exists") as caught:
        make(tmp_path / "out")
    assert str(tmp_path / "out") in str(caught.value)
    assert caught.value.hint is not None
    assert "`overwrite`" in caught.value.hint
    assert "`resume`" in caught.value.hint
    assert everything_below(tmp_path) == before


@pytest.mark.parametrize("flags", [{}, {"overwrite": True}, {"resume": True}], ids=str)
def test_a_directory_with_other_files_is_refused(tmp_path: Path, flags: dict[str, bool]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with (
        pytest.raises(UsageError, match=r"thesis\.tex"),
        Run(tmp_path, "tokens", Settings(), **flags),
    ):
        pass
    assert everything_below(tmp_path) == {"thesis.tex": b"years of work"}


@pytest.mark.parametrize("flags", [{}, {"overwrite": True}, {"resume": True}], ids=str)
def test_an_artifact_of_another_kind_is_refused(tmp_path: Path, flags: dict[str, bool]) -> None:
    make(tmp_path / "out", kind="rnn")
    before = everything_below(tmp_path)
    with pytest.raises(UsageError, match="kind rnn, not tokens"):
        make(tmp_path / "out", kind="tokens", **flags)
    assert everything_below(tmp_path) == before


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(UsageError, match="not a directory"):
        make(tmp_path / "file", overwrite=True)
    with pytest.raises(UsageError, match="not a directory"):
        make(tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text() == "text"


@pytest.mark.parametrize("name", ["run-1", "run-data", "run-deadbeef-1", "runs", "run-DEADBEEF"])
def test_other_directories_are_not_taken_for_runs(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    (out / name).mkdir(parents=True)
    (out / name / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=f"holds other files \\({name}\\)"):
        make(out, overwrite=True)

    # And beside an artifact they stay when it is made anew.
    (out / name).rename(tmp_path / "kept")
    make(out)
    (tmp_path / "kept").rename(out / name)
    make(out, overwrite=True)
    assert (out / name / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("options", [{}, {"part": True}, {"overwrite": True}, {"resume": True}])
def test_a_refused_run_leaves_a_directory_as_it_was(tmp_path: Path, options: dict) -> None:
    for name in (".lock", "notes.txt"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        make(tmp_path, **options)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        ".lock": "mine",
        "notes.txt": "mine",
    }


def test_a_file_system_without_locks_leaves_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(InputOutputError, match="cannot be locked"):
        make(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("width", [1, 2])
def test_resume_finds_a_complete_artifact_in_a_read_only_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    made = make(tmp_path / "out")

    def refused(self: object, directory: Path, **_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(directory / "lock"))

    monkeypatch.setattr(DirectoryLock, "__init__", refused)
    if width == 1:
        assert make(tmp_path / "out", resume=True) == made
    else:
        with pytest.raises(UsageError, match="width was 1, is 2"):
            make(tmp_path / "out", width=2, resume=True)
    with pytest.raises(InputOutputError, match="out/lock: Read-only file system"):
        make(tmp_path / "out", overwrite=True)
