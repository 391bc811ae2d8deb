"""Artifacts at URIs, on an S3 server of this machine: reading, damage, and all stages."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from artifacts import (
    make,
)
from conftest import (
    Command,
    KilledError,
    Killer,
    Pipeline,
    encoder_config,
    evaluate_config,
    model_bytes,
    on_ranks,
    rnn_config,
    shards,
    write_text,
)
from object_store import at, named, objects, put
from smtkit.config import ExtractLabelsConfig
from smtkit.errors import ArtifactError, InputOutputError, UsageError
from smtkit.stages import extract_labels, train_encoder
from smtkit.storage import cache
from smtkit.storage.artifact import Artifact, read_manifest
from smtkit.storage.manifest import MANIFEST, METRICS
from smtkit.storage.remote import Remote

NAMES = ("tokens", "encoder", "labels", "rnn", "evaluation")
SMALL_SHARDS = ExtractLabelsConfig(shard_bytes=20_000, max_windows=60)


def test_a_file_uri_is_a_directory(tmp_path: Path) -> None:
    make(f"file://{tmp_path}/a")
    assert Artifact.open(tmp_path / "a").file("data").read_bytes() == b"some content"


# --- reading ------------------------------------------------------------------------------------


def test_an_artifact_at_a_uri_equals_a_local_one(store: str, tmp_path: Path) -> None:
    remote = make(store, metrics="{}\n")
    local = make(tmp_path / "local", metrics="{}\n")
    assert remote.digest == local.digest
    assert objects(store) == named(remote)
    artifact = Artifact.open(store, "tokens")
    assert artifact.file("data").read_bytes() == b"some content"
    assert artifact.files("d") == [artifact.file("data")]
    assert artifact.rows("d") == [3]
    assert artifact.verified(METRICS).read_text() == "{}\n"
    artifact.verify()
    assert artifact.as_parent().path == store
    assert [p for p in cache.staging(at(store)).rglob("*") if p.is_file()] == []


def test_the_endpoint_may_be_part_of_the_uri(
    store: str, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    uri = f"{store}?endpoint_override={endpoint.removeprefix('http://')}&scheme=http"
    manifest = make(uri)
    assert Artifact.open(uri).manifest == manifest
    assert Artifact.open(uri).file("data").read_bytes() == b"some content"


def test_a_file_is_fetched_once(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make(store)
    path = Artifact.open(store).file("data")
    monkeypatch.setattr(Remote, "blocks", None)
    assert Artifact.open(store).file("data") == path


def test_processes_fetch_a_file_once_together(store: str, tmp_path: Path) -> None:
    make(store, os.urandom(2**20))
    program = (
        "import sys; from smtkit.storage import remote; from smtkit.storage.artifact import "
        "Artifact\n"
        "read = remote.Remote.blocks\n"
        "def counted(self, name):\n"
        "    print('fetched'); return read(self, name)\n"
        "remote.Remote.blocks = counted\n"
        "path = Artifact.open(sys.argv[1]).file('data')\n"
        "assert path.stat().st_size == 2**20\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, store], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    fetched = [process.communicate(timeout=100)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(fetched) == ["", "fetched\n"]


# --- damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"some", "4 bytes, the manifest says 12"), (b"some content!", "13 bytes, the manifest says")],
)
def test_a_file_of_another_size_is_refused(store: str, content: bytes, message: str) -> None:
    entry = make(store).files[0]
    put(store, entry.name, content)
    with pytest.raises(ArtifactError, match=f"{store}/{entry.name}: {message}"):
        Artifact.open(store)


def test_a_missing_file_is_named(store: str) -> None:
    entry = make(store).files[0]
    artifact = Artifact.open(store)
    at(store).remove(entry.name)
    message = f"{store}/{entry.name}: missing, though the manifest names it"
    with pytest.raises(ArtifactError, match=message):
        Artifact.open(store)
    with pytest.raises(ArtifactError, match=message):
        artifact.file("data")


def test_a_damaged_file_is_not_cached(store: str, tmp_path: Path) -> None:
    entry = make(store).files[0]
    put(store, entry.name, b"some c0ntent")
    artifact = Artifact.open(store)
    for read in (lambda: artifact.file("data"), artifact.verify):
        with pytest.raises(ArtifactError, match=f"{store}/{entry.name}: damaged: 12 bytes, xxh3"):
            read()
    assert [p for p in (tmp_path / "cache" / "files").rglob("*") if p.is_file()] == []
    put(store, entry.name, b"some content")
    assert artifact.file("data").read_bytes() == b"some content"


def test_a_manifest_cannot_name_files_outside_the_artifact(store: str) -> None:
    manifest = json.loads(make(store).model_dump_json())
    for key, value in (("name", "run/.."), ("xxh3", "../../x")):
        changed = {**manifest["files"][0], key: value}
        put(store, MANIFEST, json.dumps({**manifest, "files": [changed]}).encode())
        with pytest.raises(ArtifactError, match=key):
            Artifact.open(store)


def test_missing_artifacts_and_stores_are_one_line(
    store: str, command: Command, endpoint: str
) -> None:
    result = command("inspect", store)
    assert (result.code, result.line()) == (2, f"{store}: no such artifact")
    put(store, "other", b"")
    result = command("inspect", store)
    assert result.code == 3
    assert result.line() == f"{store}: not a complete artifact: it holds no {MANIFEST}"
    result = command("inspect", "s3://nowhere/x")
    assert (result.code, result.line()) == (2, "s3://nowhere/x: no such artifact")
    result = command(
        "synthesize", "parity", "--out", "s3://nowhere/x", "--length=8", "--sequences=1"
    )
    assert result.code == 2
    assert result.line().startswith("s3://nowhere/x: no such bucket: nowhere")
    result = command("inspect", "s3://b/x?endpoint_override=127.0.0.1:9&scheme=http")
    assert result.code == 74
    assert result.line().startswith("s3://b/x")
    result = command("inspect", "s3://b/x?nonsense=1")
    assert result.code == 2
    assert "nonsense" in result.line()


# --- stages -------------------------------------------------------------------------------------


def test_all_stages_make_the_same_artifacts_at_uris(
    store: str, tmp_path: Path, command: Command
) -> None:
    """From tokenize to eval on the command line; digests are compared with those of local runs."""
    text = write_text(tmp_path / "text.txt", 800)
    short = "--max-steps=2"
    small = [
        "--set=encoder={slots = 2, slot_width = 8, width = 16, layers = 1, heads = 2}",
        "--set=decoder={width = 16, layers = 1, heads = 2}",
        "--set=cell.width=16",
        "--set=data.window=16",
        "--set=objective.uniformity_group=2",
        "--set=training={batch_size = 8, validation_windows = 8}",
    ]
    few, eight = ["--max-windows=40", "--set=shard_bytes=20000"], ["--windows=8"]
    small_rnn = ["--set=cell.width=16", "--set=training={batch_size = 8, validation_windows = 8}"]
    for root in (store, str(tmp_path)):
        tokens, encoder, labels, rnn, evaluation = (f"{root}/{name}" for name in NAMES)
        for line in (
            ["tokenize", text, "--out", tokens, "--tokenizer=byte"],
            ["train-encoder", tokens, "--out", encoder, short, *small],
            ["extract-labels", encoder, "--tokens", tokens, "--out", labels, *few],
            ["train-rnn", labels, "--out", rnn, "--method=smt", short, *small_rnn],
            ["eval", rnn, "--tokens", tokens, "--encoder", encoder, "--out", evaluation, *eight],
        ):
            result = command(*line)
            assert result.code == 0, result.stderr
    for name in NAMES:
        remote, local = read_manifest(at(f"{store}/{name}")), read_manifest(tmp_path / name)
        assert remote.digest == local.digest
        assert objects(f"{store}/{name}") == named(remote)
    assert [parent.path for parent in read_manifest(at(f"{store}/rnn")).parents] == [
        f"{store}/labels"
    ]
    assert f"from {store}/labels" in command("inspect", f"{store}/rnn", "--verify").stdout
    texts = [command("generate", f"{root}/rnn", "--seed=1").stdout for root in (store, tmp_path)]
    assert texts[0] == texts[1] != ""


def test_parts_on_machines_without_a_shared_disk_are_finalized(
    store: str, tmp_path: Path, pipeline: Pipeline, another_machine: Any
) -> None:
    inputs = (pipeline.encoder, pipeline.tokens)
    whole = extract_labels.run(SMALL_SHARDS, *inputs, tmp_path / "labels")
    counts = []
    for part in (1, 2):
        another_machine()
        counts.append(extract_labels.run_part(SMALL_SHARDS, *inputs, store, part, 2))
        assert not list(cache.staging(at(store)).rglob("*.arrow"))  # they were uploaded
        if part == 1:
            with pytest.raises(ArtifactError, match=r"shards \d+ are missing: train-00001.arrow"):
                extract_labels.run(SMALL_SHARDS, *inputs, store, finalize=True)
    assert sum(counts) == len(shards(tmp_path / "labels", "*"))
    another_machine()
    manifest = extract_labels.run(SMALL_SHARDS, *inputs, store, finalize=True)
    assert manifest.digest == whole.digest
    assert objects(store) == named(manifest)
    Artifact.open(store).verify()
    with pytest.raises(UsageError, match="exists"):
        extract_labels.run_part(SMALL_SHARDS, *inputs, store, 1, 2)


def test_resume_on_another_machine_does_not_extract_shards_again(
    store: str, pipeline: Pipeline, another_machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = (pipeline.encoder, pipeline.tokens)
    written: list[str] = []
    write = extract_labels.write_labels

    def until_the_third(path: Path, *arguments: Any) -> None:
        written.append(path.name)
        if len(written) == 3:
            raise KilledError
        write(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(extract_labels, "write_labels", until_the_third)
        with pytest.raises(KilledError):
            extract_labels.run(SMALL_SHARDS, *inputs, store)
    another_machine()
    with pytest.raises(UsageError, match="holds an unfinished run"):
        extract_labels.run(SMALL_SHARDS, *inputs, store)
    other = ExtractLabelsConfig(shard_bytes=20_000, max_windows=61)
    with pytest.raises(UsageError, match="cannot resume: max_windows was 60, is 61"):
        extract_labels.run(other, *inputs, store, resume=True)
    monkeypatch.setattr(
        extract_labels, "write_labels", lambda *a: (written.append(a[0].name), write(*a))
    )
    manifest = extract_labels.run(SMALL_SHARDS, *inputs, store, resume=True)
    files = [entry.logical_name for entry in manifest.files]
    assert sorted([*files, written[2]]) == sorted([*written, "model.safetensors", "tokenizer.json"])
    assert objects(store) == named(manifest)
    Artifact.open(store).verify()


def test_training_at_a_uri_resumes_exactly(store: str, pipeline: Pipeline) -> None:
    config = encoder_config()
    with pytest.raises(KilledError):
        train_encoder.run(config, pipeline.tokens, store, progress=Killer(6))
    train_encoder.run(config, pipeline.tokens, store, resume=True)
    assert Artifact.open(store).file("model.safetensors").read_bytes() == model_bytes(
        pipeline.encoder
    )
    assert objects(store) == named(read_manifest(at(store)))


def test_ranks_read_and_write_uris(store: str, pipeline: Pipeline, tmp_path: Path) -> None:
    config = rnn_config(training={"max_steps": 2})
    whole = extract_labels.run(SMALL_SHARDS, pipeline.encoder, pipeline.tokens, tmp_path / "labels")
    labels, rnn, evaluation = (f"{store}/{name}" for name in ("labels", "rnn", "evaluation"))
    on_ranks(
        2,
        ("extract_labels", SMALL_SHARDS, pipeline.encoder, pipeline.tokens, labels),
        ("train_rnn", config, labels, rnn),
        ("evaluate", evaluate_config(), rnn, pipeline.tokens, evaluation),
    )
    assert read_manifest(at(labels)).digest == whole.digest
    for uri in (labels, rnn, evaluation):
        assert objects(uri) == named(read_manifest(at(uri)))
        Artifact.open(uri).verify()


def test_a_server_that_never_answers_is_given_up_after_three_attempts(store: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connections wait in its backlog
        endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
        uri = f"s3://bucket/name?endpoint_override={endpoint}&scheme=http&region=us-east-1"
        with pytest.raises(InputOutputError, match="bucket/name/file"):
            at(uri).read("file")
        silent.setblocking(False)
        attempts = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                silent.accept()[0].close()
                attempts += 1
    assert attempts == 3


def test_options_of_a_uri_are_kept_with_fewer_retries(store: str, endpoint: str) -> None:
    host = endpoint.removeprefix("http://")
    options = "scheme=http&region=eu-west-2&allow_bucket_creation=true&tls_ca_file_path=/a.pem"
    files = at(f"{store}?endpoint_override={host}&{options}")._files.base_fs
    _, (found,) = files.__reduce__()
    assert (found["endpoint_override"], found["scheme"]) == (host, "http")
    assert (found["region"], found["allow_bucket_creation"]) == ("eu-west-2", True)
    assert found["tls_ca_file_path"] == "/a.pem"
