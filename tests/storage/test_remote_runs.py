"""Runs that write to a URI: failures, other machines, and runs that resume."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifacts import Settings, finalize, interrupt, make, write_part
from conftest import Command, KilledError
from object_store import at, named, objects, put
from smtkit.errors import InputOutputError, LockedError, UsageError
from smtkit.storage.artifact import Artifact
from smtkit.storage.manifest import MANIFEST
from smtkit.storage.remote import Remote
from smtkit.storage.run import Run
from smtkit.storage.store import RemoteStore


def test_outputs_are_refused_as_in_a_directory(store: str) -> None:
    first = make(store)
    with pytest.raises(UsageError, match=f"`out` {store}: exists"):
        make(store)
    with (
        pytest.raises(UsageError, match="kind tokens, not labels"),
        Run(store, "labels", Settings()),
    ):
        pass
    with pytest.raises(UsageError, match="cannot resume: width was 1, is 2"):
        make(store, width=2, resume=True)
    assert make(store, resume=True) == first
    put(f"{store}/strange", "notes.txt", b"")
    with pytest.raises(UsageError, match=r"holds other files \(notes.txt\)"):
        make(f"{store}/strange", overwrite=True)


def test_a_second_run_of_one_machine_is_locked_out(store: str) -> None:
    with Run(store, "tokens", Settings()), pytest.raises(LockedError, match=store):
        make(store)


def test_the_old_artifact_is_readable_until_the_new_one_is_committed(store: str) -> None:
    first = make(store, b"old")
    with Run(store, "tokens", Settings(), overwrite=True) as run:
        (run.directory / "data").write_bytes(b"new")
        run.add("data", rows=3)
        artifact = Artifact.open(store)
        assert artifact.manifest == first
        assert artifact.file("data").read_bytes() == b"old"
        second = run.commit({})
    assert Artifact.open(store).file("data").read_bytes() == b"new"
    assert objects(store) == named(second)


def test_a_failed_run_leaves_nothing(store: str) -> None:
    def fail() -> None:
        with Run(store, "tokens", Settings()) as run:
            (run.directory / "data").write_bytes(b"half")
            run.add("data", rows=1)
            raise KilledError

    with pytest.raises(KilledError):
        fail()
    assert objects(store) == set()
    make(store)


class Failing:
    """A file of which a read fails after 1,000 bytes."""

    def __init__(self) -> None:
        self._blocks = [b"x" * 1000]

    def __enter__(self) -> "Failing":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def read(self, size: int) -> bytes:
        if not self._blocks:
            raise OSError("the disk is gone")
        return self._blocks.pop()


def upload_half(store: str, monkeypatch: pytest.MonkeyPatch, *, removed: bool) -> None:
    """An upload that fails midway; `removed`: the store allows to remove what it left."""

    def opened(path: Path, *arguments: Any, **options: Any) -> Any:
        return Failing() if path.name == "data" else whole(path, *arguments, **options)

    whole = Path.open
    with Run(store, "tokens", Settings(), resume=True) as run, monkeypatch.context() as patch:
        (run.directory / "data").write_bytes(b"x" * 2000)
        patch.setattr(Path, "open", opened)
        if not removed:
            patch.setattr(Remote, "remove", lambda remote, name: None)
        run.add("data", rows=2)


@pytest.mark.parametrize("removed", [True, False])
def test_an_upload_cut_short_is_not_taken_for_a_file(
    store: str, monkeypatch: pytest.MonkeyPatch, another_machine: Any, removed: bool
) -> None:
    with pytest.raises(InputOutputError, match="the disk is gone"):
        upload_half(store, monkeypatch, removed=removed)
    gc.collect()
    halves = [size for name, size in at(store).sizes().items() if name.endswith("/data")]
    assert halves == ([] if removed else [1000])  # closing the stream publishes what it has
    with Run(store, "tokens", Settings(), resume=True) as run:
        assert (run.directory / "data").stat().st_size == 2000  # the local file stays
    another_machine()
    with Run(store, "tokens", Settings(), resume=True) as run:
        assert not run.has("data")
        (run.directory / "data").write_bytes(b"x" * 2000)
        run.add("data", rows=2)
        manifest = run.commit({})
    assert objects(store) == named(manifest)


def test_a_manifest_that_cannot_be_uploaded_leaves_the_old_one(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(store, b"old")

    write = Remote.write

    def fail(remote: Remote, name: str, content: bytes) -> None:
        if name.endswith(MANIFEST):
            content = content[:100]
        write(remote, name, content)
        if name.endswith(MANIFEST):
            raise InputOutputError("the network is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "write", fail)
        with pytest.raises(InputOutputError, match="the network is gone"):
            make(store, b"new", overwrite=True)
    gc.collect()
    assert Artifact.open(store).manifest == first
    assert Artifact.open(store).file("data").read_bytes() == b"old"
    second = make(store, b"new", resume=True)
    assert second.digest != first.digest
    assert objects(store) == named(second)


def test_the_commit_fails_if_another_run_has_removed_a_file(store: str) -> None:
    with Run(store, "tokens", Settings()) as run:
        (run.directory / "data").write_bytes(b"mine")
        at(store).remove(run.add("data", rows=1).name)
        with pytest.raises(InputOutputError, match="no longer there as it was uploaded"):
            run.commit({})
    assert MANIFEST not in objects(store)


@pytest.fixture
def finalized_elsewhere(
    store: str, another_machine: Callable[[], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> str:
    """An artifact that another machine made of its own part and one of this machine."""
    write_part(store, "a")
    first = str(tmp_path / "cache")
    another_machine()
    write_part(store, "b")
    finalize(store)
    monkeypatch.setenv("SMTKIT_CACHE", first)
    return store


def test_the_published_artifact_stays_while_it_is_overwritten(finalized_elsewhere: str) -> None:
    store = finalized_elsewhere
    before = objects(store)

    with Run(store, "tokens", Settings(width=2), overwrite=True):
        assert before <= objects(store)
        Artifact.open(store)


def test_the_artifact_stays_if_its_run_is_killed_after_the_commit(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KilledError

    write_part(store, "a", "b")
    with monkeypatch.context() as patch:
        patch.setattr(RemoteStore, "collect", killed)
        with pytest.raises(KilledError):
            finalize(store)
    Artifact.open(store)

    with Run(store, "tokens", Settings(width=2), overwrite=True):
        Artifact.open(store)


def test_resume_finds_the_artifact_that_another_machine_finalized(
    finalized_elsewhere: str,
) -> None:
    assert finalize(finalized_elsewhere) == []


def test_an_interrupted_run_does_not_replace_an_artifact_published_since(
    store: str, another_machine: Callable[[], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    interrupt(store)
    first = str(tmp_path / "cache")
    another_machine()
    published = make(store, width=2, overwrite=True)
    monkeypatch.setenv("SMTKIT_CACHE", first)

    with pytest.raises(UsageError, match="cannot resume: width was 2, is 1"):
        make(store, resume=True)
    assert Artifact.open(store).manifest == published


def test_an_emptied_uri_holds_nothing_to_resume(store: str) -> None:
    write_part(store, "a")
    for name in objects(store):
        at(store).remove(name)

    write_part(store, "b", width=2)
    assert finalize(store, width=2) == ["a"]


def test_parts_ignore_runs_that_only_a_staging_directory_has(
    store: str, another_machine: Callable[[], None]
) -> None:
    interrupt(store)
    for name in objects(store):
        at(store).remove(name)
    write_part(store, "a")
    another_machine()
    write_part(store, "b")
    another_machine()

    assert finalize(store) == []


def test_a_run_does_not_replace_an_artifact_published_after_it_started(
    store: str, another_machine: Callable[[], None]
) -> None:
    with Run(store, "tokens", Settings()) as run:
        another_machine()
        published = make(store, width=2, overwrite=True)
        with pytest.raises(LockedError, match="another run has written it meanwhile"):
            run.commit({})
    assert Artifact.open(store).manifest == published


def test_other_objects_are_not_taken_for_runs(store: str) -> None:
    make(store)
    put(store, "run-1/thesis.txt", b"mine")
    make(store, overwrite=True)
    assert at(store).read("run-1/thesis.txt") == b"mine"


def test_an_invalid_receipt_is_ignored(store: str) -> None:
    write_part(store, "a", "b")
    (folder,) = {name.partition("/")[0] for name in objects(store) if ".work/" in name}
    put(store, f"{folder}/c~many~1~0", b"")
    assert finalize(store) == []


def test_a_run_record_that_is_not_text_is_an_error(
    store: str, another_machine: Callable[[], None], command: Command
) -> None:
    write_part(store, "a")
    (record,) = (name for name in objects(store) if name.endswith("run.json"))
    put(store, record, b"\xff\xfe")
    another_machine()
    rows = ("synthesize", "parity", "--out", store, "--length=8", "--sequences=3")
    result = command(*rows, "--resume")
    assert result.code == 3
    assert "run.json: damaged" in result.line()
    assert command(*rows, "--overwrite").code == 0
    Artifact.open(store)


def test_a_record_in_another_folder_is_not_fetched(store: str, tmp_path: Path) -> None:
    put(store, "..-deadbeef.work/run.json", b"{}")
    with pytest.raises(UsageError, match="holds other files"):
        make(store)
    assert not list((tmp_path / "cache").rglob("run.json"))


def test_a_shard_that_another_process_has_moved_is_an_error(store: str) -> None:
    with (
        pytest.raises(LockedError, match="another process writes the same file"),
        Run(store, "tokens", Settings(), part=True) as run,
    ):
        run.add("a", rows=1)
