"""The cache of remote files: damaged copies, concurrent readers, and reads during a commit.

The stores are directories of this disk, named by the `file` URIs of pyarrow: no server is needed.
"""

import json
import os
import pwd
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import xxhash

from artifacts import (
    make,
)
from conftest import Command, Pipeline, rnn_config, shards
from smtkit.errors import ArtifactError, InputOutputError, UsageError
from smtkit.stages import train_rnn
from smtkit.storage import cache
from smtkit.storage.artifact import Artifact, read_manifest
from smtkit.storage.location import locate
from smtkit.storage.manifest import MANIFEST, Manifest
from smtkit.storage.remote import Remote

CONTENT = b"some content"
DAMAGED = b"some c0ntent"


@pytest.fixture(autouse=True)
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of copies; it does not exist yet."""
    monkeypatch.setenv("SMTKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "files"


@pytest.fixture
def store(tmp_path: Path) -> Remote:
    """An artifact with a file `data`."""
    make(tmp_path / "store", CONTENT)
    return Remote(f"file://{tmp_path}/store")


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read from the store, in order."""
    names: list[str] = []
    blocks = Remote.blocks
    monkeypatch.setattr(
        Remote, "blocks", lambda remote, name: (names.append(name), blocks(remote, name))[1]
    )
    return names


def here(copies: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in copies.rglob("*") if path.is_file()}


# --- damaged copies -----------------------------------------------------------------------------


@pytest.mark.parametrize("content", [DAMAGED, b"some", b""], ids=["altered", "cut", "empty"])
@pytest.mark.parametrize("read", ["file", "verified"])
def test_a_damaged_copy_is_fetched_again(
    store: Remote, copies: Path, content: bytes, read: str
) -> None:
    Artifact.open(store).file("data").write_bytes(content)
    assert getattr(Artifact.open(store), read)("data").read_bytes() == CONTENT
    assert here(copies) == {"data": CONTENT}


def test_a_copy_damaged_after_it_was_verified_is_fetched_again(store: Remote) -> None:
    artifact = Artifact.open(store)
    for _ in range(2):
        path = artifact.file("data")
    path.write_bytes(DAMAGED)
    os.utime(path, ns=(0, 0))  # modification times may be milliseconds coarse
    assert artifact.file("data").read_bytes() == CONTENT


def test_a_copy_is_hashed_once_per_process(store: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    new = xxhash.xxh3_128
    Artifact.open(store).file("data")
    monkeypatch.setattr(xxhash, "xxh3_128", lambda *data: (hashed.append(1), new(*data))[1])
    for _ in range(3):
        Artifact.open(store).file("data")
        Artifact.open(store).verified("data")
    assert len(hashed) == 1


def test_a_damaged_copy_and_a_damaged_file_are_an_error(store: Remote, tmp_path: Path) -> None:
    artifact = Artifact.open(store)
    artifact.file("data").write_bytes(DAMAGED)
    name = artifact.manifest.files[0].name
    (tmp_path / "store" / name).write_bytes(DAMAGED)
    with pytest.raises(ArtifactError, match=f"{store}/{name}: damaged: 12 bytes, xxh3"):
        artifact.file("data")


def test_verify_removes_damaged_copies_of_labels(pipeline: Pipeline, tmp_path: Path) -> None:
    labels = Remote(f"file://{pipeline.labels}")
    config = rnn_config(training={"max_steps": 2})
    whole = train_rnn.run(config, labels, tmp_path / "rnn")
    for path in (
        path for split in ("train", "validation") for path in shards(pipeline.labels, split)
    ):
        (copy,) = (tmp_path / "cache" / "files").rglob(path.name)
        content = bytearray(copy.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 1000] = b"\xff" * 1000
        copy.write_bytes(content)
    Artifact.open(labels).verify()
    assert not list((tmp_path / "cache" / "files").rglob("*.arrow"))
    assert train_rnn.run(config, labels, tmp_path / "again").digest == whole.digest


# --- fetching -----------------------------------------------------------------------------------


@pytest.mark.parametrize("read", ["file", "verified"])
def test_threads_that_find_one_damaged_copy_fetch_it_once(
    store: Remote, fetched: list[str], monkeypatch: pytest.MonkeyPatch, read: str
) -> None:
    class Slow:
        """A slow checksum: all threads find the damage before one of them fetches the file."""

        def __init__(self) -> None:
            self._checksum = new()
            self.update = self._checksum.update

        def hexdigest(self) -> str:
            time.sleep(0.2)
            return self._checksum.hexdigest()

    new = xxhash.xxh3_128
    artifact = Artifact.open(store)
    artifact.file("data").write_bytes(DAMAGED)
    fetched.clear()
    monkeypatch.setattr(xxhash, "xxh3_128", Slow)
    with ThreadPoolExecutor(4) as pool:
        reads = [pool.submit(getattr(artifact, read), "data") for _ in range(4)]
    assert [done.result().read_bytes() for done in reads] == [CONTENT] * 4
    assert len(fetched) == 1


def test_processes_that_find_one_damaged_copy_fetch_it_again(store: Remote, tmp_path: Path) -> None:
    content = os.urandom(2**23)
    make(tmp_path / "store", content, overwrite=True)
    Artifact.open(store).file("data").write_bytes(bytes(2**23))
    program = (
        "import sys; from smtkit.storage.artifact import Artifact\n"
        "from smtkit.storage.remote import Remote\n"
        "artifact = Artifact.open(Remote(sys.argv[1]))\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "sys.stdout.write(str(artifact.verified('data')))\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, store.uri],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        path, errors = process.communicate(timeout=100)
        assert errors == ""
        assert Path(path).read_bytes() == content


def test_the_partial_copy_of_a_killed_process_is_replaced(store: Remote, copies: Path) -> None:
    (entry,) = (entry for entry in read_manifest(store).files if entry.logical_name == "data")
    (copies / entry.xxh3).mkdir(parents=True)
    program = (
        "import os, sys; from smtkit.storage.artifact import Artifact\n"
        "from smtkit.storage.remote import Remote\n"
        "def half(remote, name):\n"
        "    yield b'x' * 2**20\n"
        "    os.kill(os.getpid(), 9)\n"
        "Remote.blocks = half\n"
        "Artifact.open(Remote(sys.argv[1])).file('data')\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, store.uri], check=False)
    assert killed.returncode == -9
    assert sum(len(content) for content in here(copies).values()) == 2**20
    assert Artifact.open(store).file("data").read_bytes() == CONTENT
    assert here(copies) == {"data": CONTENT}


def test_a_copy_that_does_not_fit_the_disk_is_not_published(
    store: Remote, copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputOutputError, match="data: No space left on device"):
            Artifact.open(store).file("data")
    assert here(copies) == {}
    assert Artifact.open(store).file("data").read_bytes() == CONTENT


# --- the location of the cache ------------------------------------------------------------------


def test_a_cache_at_a_uri_is_refused(
    store: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SMTKIT_CACHE", "s3://bucket/cache")
    before = set(tmp_path.iterdir())
    for use in (lambda: Artifact.open(store).file("data"), lambda: cache.staging(store)):
        with pytest.raises(UsageError, match="SMTKIT_CACHE is s3://bucket/cache, expected a path"):
            use()
    assert set(tmp_path.iterdir()) == before


def test_without_a_home_directory_the_cache_must_be_set(
    store: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*user: Any) -> None:
        raise KeyError("no such user")

    for name in ("HOME", "SMTKIT_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(UsageError, match=r"~/.cache/smtkit: there is no such home") as caught:
        Artifact.open(store).file("data")
    assert caught.value.hint == "set SMTKIT_CACHE to a path"


def staging(uri: str) -> Path:
    remote = locate(uri)
    assert isinstance(remote, Remote)
    return cache.staging(remote)


@pytest.mark.parametrize(
    ("uri", "other"),
    [
        ("s3://bucket/a/sp", "s3://bucket/a/sp?region=us-east-1"),
        ("s3://bucket/a/sp", "s3://bucket/a/s%70/"),
        ("s3://bucket/a/sp", "s3://bucket/a%2Fsp/?scheme=http"),
        ("gs://bucket/a", "gs://anonymous@bucket/a?retry_limit_seconds=3"),
        ("s3://b/a?endpoint_override=h:1", "s3://b/a?scheme=http&endpoint_override=h%3A1"),
    ],
)
def test_spellings_of_one_uri_share_a_staging_directory(uri: str, other: str) -> None:
    assert staging(uri) == staging(other)


def test_different_uris_have_different_staging_directories() -> None:
    uris = [
        "s3://bucket/a",
        "gs://bucket/a",
        "s3://bucket/b",
        "s3://bucket/A",
        "s3://bucket/a%2520",
        "s3://bucket/a%20",
        "s3://bucket/a?endpoint_override=h:1",
        "s3://bucket/a?endpoint_override=h:2",
    ]
    assert len({staging(uri) for uri in uris}) == len(uris)


# --- reading while a run commits ----------------------------------------------------------------


def replace_before(
    monkeypatch: pytest.MonkeyPatch, step: str, out: Path, times: int
) -> list[Manifest]:
    """Lets another run commit before each of the first `times` calls of `step`; its manifests."""
    made: list[Manifest] = []
    done = getattr(Remote, step)

    def late(remote: Remote, *arguments: Any) -> Any:
        if len(made) < times:
            made.append(make(out, bytes(len(made) + 1), overwrite=True))
        return done(remote, *arguments)

    monkeypatch.setattr(Remote, step, late)
    return made


@pytest.mark.parametrize("times", [1, 3])
def test_an_artifact_replaced_while_it_is_opened_reads_as_the_new_one(
    store: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    made = replace_before(monkeypatch, "sizes", tmp_path / "store", times)
    artifact = Artifact.open(store)
    assert artifact.manifest == made[-1]
    assert artifact.file("data").read_bytes() == bytes(times)


def test_an_artifact_replaced_again_and_again_is_an_error(
    store: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = replace_before(monkeypatch, "sizes", tmp_path / "store", 1000)
    with pytest.raises(ArtifactError, match="missing, though the manifest names it"):
        Artifact.open(store)
    assert 2 <= len(made) <= 10


@pytest.mark.parametrize("opened", [read_manifest, Artifact.open])
def test_a_manifest_replaced_while_it_is_read_reads_as_the_new_one(
    store: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Any
) -> None:
    """pyarrow reads the length of an object, and then as many bytes, perhaps of a longer one."""
    path = tmp_path / "store" / MANIFEST
    lengths = iter([path.stat().st_size])
    read = Remote.read
    second = make(path.parent, b"more", overwrite=True)
    path.write_text(" " * 100 + path.read_text())  # longer than the new one
    monkeypatch.setattr(Remote, "read", lambda *at: read(*at)[: next(lengths, None)])
    found = opened(store)
    assert getattr(found, "manifest", found) == second


def test_a_manifest_that_is_cut_short_is_refused(store: Remote, tmp_path: Path) -> None:
    path = tmp_path / "store" / MANIFEST
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=f"{store}/{MANIFEST}: not a manifest: "):
        Artifact.open(store)


# --- manifests that no run writes ---------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["run-1/a\0b", "run-1/a\n", "run\x1b/a", "run-1/\x85", "../a", "/a"]
)
def test_invalid_file_names_in_a_manifest_are_refused(
    tmp_path: Path, command: Command, name: str
) -> None:
    out = tmp_path / "out"
    content = json.loads(make(out).model_dump_json())
    content["files"][0]["name"] = name
    (out / MANIFEST).write_text(json.dumps(content))
    result = command("inspect", out)
    assert result.code == 3
    assert result.line().startswith(f"{out / MANIFEST}: files.0.name: String should match pattern")


@pytest.mark.parametrize("key", ["config", "parents"])
def test_a_manifest_nested_too_deeply_is_refused(
    tmp_path: Path, command: Command, key: str
) -> None:
    out = tmp_path / "out"
    content = json.loads(make(out).model_dump_json())
    text = json.dumps({**content, key: "BOTTOM"})
    (out / MANIFEST).write_text(text.replace('"BOTTOM"', "[" * 100_000 + "]" * 100_000))
    result = command("inspect", out)
    assert result.code == 3
    assert result.line().startswith(f"{out / MANIFEST}: not a manifest: ")
