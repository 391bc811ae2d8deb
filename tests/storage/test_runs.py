"""Which work of earlier runs a run goes on from, which it lets lie, and what it never touches."""

import contextlib
import errno
import fcntl
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from conftest import Command, KilledError
from object_store import Width, at, make, objects, put
from smtkit.errors import ArtifactError, InputOutputError, LockedError, UsageError
from smtkit.storage import manifest as manifests
from smtkit.storage.artifact import Artifact
from smtkit.storage.locks import DirectoryLock
from smtkit.storage.remote_store import RemoteStore
from smtkit.storage.run import Run
from smtkit.storage.shards import shard_writer

SHARDS = ("a", "b")


def part(out: str, *names: str, width: int = 1) -> None:
    """A part, which writes some of the shards."""
    with Run(out, "tokens", Width(width=width), part=True) as run:
        for name in names:
            (run.directory / name).write_bytes(name.encode())
            run.add(name, rows=1)


def finalize(out: str, width: int = 1, **options: Any) -> list[str]:
    """Makes an artifact of all shards; returns those that were still to be made."""
    made = []
    with Run(out, "tokens", Width(width=width), resume=True, **options) as run:
        if run.finished:
            return made
        for name in SHARDS:
            if not run.has(name):
                made.append(name)
                (run.directory / name).write_bytes(name.encode())
            run.add(name, rows=1)
        run.commit({})
    return made


def stopped(out: str, **options: Any) -> None:
    """A run that leaves a checkpoint behind, as an interrupted training does."""
    with contextlib.suppress(KilledError), Run(out, "tokens", Width(), **options) as run:
        (run.directory / "checkpoint.json").write_text("{}")
        run.keep()
        raise KilledError


# --- what is published stays until the new manifest ----------------------------------------------


@pytest.fixture
def finalized_elsewhere(
    store: str, another_machine: Callable[[], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> str:
    """An artifact that another machine made of a part of this one and one of its own."""
    part(store, "a")
    first = str(tmp_path / "cache")
    another_machine()
    part(store, "b")
    finalize(store)
    monkeypatch.setenv("SMTKIT_CACHE", first)
    return store


def test_what_is_published_stays_while_it_is_made_anew(finalized_elsewhere: str) -> None:
    store = finalized_elsewhere
    before = objects(store)

    with Run(store, "tokens", Width(width=2), overwrite=True):
        assert before <= objects(store)
        Artifact.open(store)


def test_what_was_committed_outlives_the_death_of_its_run(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KilledError

    part(store, "a", "b")
    with monkeypatch.context() as patch:
        patch.setattr(RemoteStore, "collect", killed)
        with pytest.raises(KilledError):
            finalize(store)
    Artifact.open(store)

    with Run(store, "tokens", Width(width=2), overwrite=True):
        Artifact.open(store)


# --- at a URI, what lies there counts, and not what this machine remembers -----------------------


def test_a_machine_that_made_a_part_finds_what_another_one_finalized(
    finalized_elsewhere: str,
) -> None:
    assert finalize(finalized_elsewhere) == []


def test_an_interrupted_run_does_not_overwrite_what_was_published_since(
    store: str, another_machine: Callable[[], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stopped(store)
    first = str(tmp_path / "cache")
    another_machine()
    published = make(store, width=2, overwrite=True)
    monkeypatch.setenv("SMTKIT_CACHE", first)

    with pytest.raises(UsageError, match="cannot resume: width was 2, is 1"):
        make(store, resume=True)
    assert Artifact.open(store).manifest == published


def test_where_the_uri_was_emptied_there_is_nothing_to_go_on_from(store: str) -> None:
    part(store, "a")
    for name in objects(store):
        at(store).remove(name)

    part(store, "b", width=2)
    assert finalize(store, width=2) == ["a"]


def test_parts_go_on_from_one_run_whatever_machines_remember(
    store: str, another_machine: Callable[[], None]
) -> None:
    stopped(store)
    for name in objects(store):
        at(store).remove(name)
    part(store, "a")
    another_machine()
    part(store, "b")
    another_machine()

    assert finalize(store) == []


def test_a_run_that_began_before_another_was_published_does_not_replace_it(
    store: str, another_machine: Callable[[], None]
) -> None:
    with Run(store, "tokens", Width()) as run:
        another_machine()
        published = make(store, width=2, overwrite=True)
        with pytest.raises(LockedError, match="another run has written it meanwhile"):
            run.commit({})
    assert Artifact.open(store).manifest == published


# --- what is not of runs is not touched ----------------------------------------------------------


@pytest.mark.parametrize("name", ["run-1", "run-data", "run-deadbeef-1", "runs", "run-DEADBEEF"])
def test_other_directories_are_not_taken_for_runs(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    (out / name).mkdir(parents=True)
    (out / name / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=f"holds other files \\({name}\\)"):
        make(str(out), overwrite=True)

    # And beside an artifact they stay when it is made anew.
    (out / name).rename(tmp_path / "kept")
    make(str(out))
    (tmp_path / "kept").rename(out / name)
    make(str(out), overwrite=True)
    assert (out / name / "thesis.txt").read_text() == "mine"


def test_other_objects_are_not_taken_for_runs(store: str) -> None:
    make(store)
    put(store, "run-1/thesis.txt", b"mine")
    make(store, overwrite=True)
    assert at(store).read("run-1/thesis.txt") == b"mine"


@pytest.mark.parametrize("options", [{}, {"part": True}, {"overwrite": True}, {"resume": True}])
def test_a_refused_run_leaves_a_directory_as_it_was(tmp_path: Path, options: dict) -> None:
    for name in (".lock", "notes.txt"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        make(str(tmp_path), **options)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        ".lock": "mine",
        "notes.txt": "mine",
    }


def test_where_nothing_can_be_locked_no_directory_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(InputOutputError, match="cannot be locked"):
        make(str(tmp_path / "a" / "b"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("width", [1, 2])
def test_a_whole_artifact_may_lie_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    made = make(str(tmp_path / "out"))

    def refused(self: object, directory: Path, **_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(directory / "lock"))

    monkeypatch.setattr(DirectoryLock, "__init__", refused)
    if width == 1:
        assert make(str(tmp_path / "out"), resume=True) == made
    else:
        with pytest.raises(UsageError, match="width was 1, is 2"):
            make(str(tmp_path / "out"), width=2, resume=True)
    with pytest.raises(InputOutputError, match="out/lock: Read-only file system"):
        make(str(tmp_path / "out"), overwrite=True)


# --- what is of another format, or damaged -------------------------------------------------------


def test_shards_of_another_format_are_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    part(out, "a")
    monkeypatch.setitem(manifests._FORMAT_VERSIONS, "tokens", 2)

    with pytest.raises(UsageError, match="cannot resume: format_version was 1, is 2"):
        finalize(out)
    assert finalize(out, overwrite=True) == ["a", "b"]


@pytest.mark.parametrize("resume", [False, True])
def test_an_artifact_of_another_format_is_made_anew_if_so_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    out = str(tmp_path / "out")
    make(out)
    monkeypatch.setitem(manifests._FORMAT_VERSIONS, "tokens", 2)

    with pytest.raises(ArtifactError, match="format version is 1, this smtkit reads 2"):
        make(out, resume=resume)
    assert make(out, overwrite=True, resume=resume).format_version == 2
    Artifact.open(out)


def test_what_killed_processes_were_writing_goes_when_a_run_goes_on(tmp_path: Path) -> None:
    stopped(str(tmp_path))
    (folder,) = tmp_path.glob("run-*")
    (folder / ".train-00000.arrow.01234567").write_bytes(b"half")
    with Run(tmp_path, "tokens", Width(), resume=True) as run:
        assert {path.name for path in run.directory.iterdir()} == {"run.json", "checkpoint.json"}


def test_a_receipt_that_says_nonsense_is_no_receipt(store: str) -> None:
    part(store, "a", "b")
    (folder,) = {name.partition("/")[0] for name in objects(store) if ".work/" in name}
    put(store, f"{folder}/c~many~1~0", b"")
    assert finalize(store) == []


def test_a_record_that_is_not_text_is_said_to_be_damaged(
    store: str, another_machine: Callable[[], None], command: Command
) -> None:
    part(store, "a")
    (record,) = (name for name in objects(store) if name.endswith("run.json"))
    put(store, record, b"\xff\xfe")
    another_machine()
    rows = ("synthesize", "parity", "--out", store, "--length=8", "--sequences=3")
    result = command(*rows, "--resume")
    assert result.code == 3
    assert "run.json: damaged" in result.line()
    assert command(*rows, "--overwrite").code == 0
    Artifact.open(store)


def test_records_elsewhere_are_not_fetched(store: str, tmp_path: Path) -> None:
    put(store, "..-deadbeef.work/run.json", b"{}")
    with pytest.raises(UsageError, match="holds other files"):
        make(store)
    assert not list((tmp_path / "cache").rglob("run.json"))


# --- the same shard from two processes -----------------------------------------------------------


def test_two_that_write_the_same_shard_do_not_spoil_it(tmp_path: Path) -> None:
    path, schema = tmp_path / "a.arrow", pa.schema([("x", pa.int64())])
    batch = pa.record_batch([pa.array(range(1000))], schema=schema)
    begun = threading.Barrier(2)

    def write() -> None:
        with shard_writer(path, schema) as writer:
            begun.wait()
            writer.write_batch(batch)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pa.ipc.open_file(path).read_all().num_rows == 1000
    assert [each.name for each in tmp_path.iterdir()] == ["a.arrow"]


def test_a_shard_that_another_process_took_away_is_one_line(store: str) -> None:
    with (
        pytest.raises(LockedError, match="another process writes the same file"),
        Run(store, "tokens", Width(), part=True) as run,
    ):
        run.add("a", rows=1)


def test_what_identifies_a_run_is_in_its_record(tmp_path: Path) -> None:
    with Run(tmp_path / "out", "tokens", Width()) as run:
        record = json.loads((run.directory / "run.json").read_text())
    assert record["identity"]["kind"] == "tokens"
    assert record["identity"]["format_version"] == 1
