"""Manifests and digests; opening an artifact, complete or damaged."""

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import xxhash

from artifacts import Settings, edit_manifest, flip_byte, make
from smtkit.errors import ArtifactError, UsageError
from smtkit.storage.artifact import Artifact, read_manifest
from smtkit.storage.manifest import MANIFEST
from smtkit.storage.run import Run


def test_the_manifest_reads_back_as_it_was_committed(tmp_path: Path) -> None:
    committed = make(tmp_path / "out")
    assert read_manifest(tmp_path / "out") == committed
    assert Artifact.open(tmp_path / "out", "tokens").manifest == committed


def test_the_manifest_describes_its_files(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000  # more than one block of the hash
    (entry,) = make(tmp_path / "out", content).files
    assert entry.logical_name == "data"
    assert entry.bytes == len(content)
    assert entry.rows == 3
    assert entry.xxh3 == xxhash.xxh3_128_hexdigest(content)
    assert (tmp_path / "out" / entry.name).read_bytes() == content


def test_an_artifact_finds_its_files_by_their_logical_names(tmp_path: Path) -> None:
    with Run(tmp_path / "out", "tokens", Settings()) as run:
        for name, rows in (("train-1", 5), ("test-0", 2), ("train-0", 7)):
            (run.directory / name).write_text(name)
            run.add(name, rows)
        run.commit({})
    artifact = Artifact.open(tmp_path / "out")
    assert [path.read_text() for path in artifact.files("train-")] == ["train-0", "train-1"]
    assert artifact.rows("train-") == [7, 5]
    assert artifact.file("test-0").read_text() == "test-0"


def test_the_digest_depends_on_content_alone(tmp_path: Path) -> None:
    first = make(tmp_path / "here", config=Settings(device="cpu"), metrics="took 1 s")
    second = make(tmp_path / "else" / "where", config=Settings(device="cuda"), metrics="took 2 s")
    assert first.files[0].name != second.files[0].name
    assert first.digest == second.digest


@pytest.mark.parametrize(
    "change", [{"content": b"some Content"}, {"kind": "labels"}], ids=["one bit", "kind"]
)
def test_the_digest_changes_with_content_and_kind(tmp_path: Path, change: dict[str, Any]) -> None:
    assert make(tmp_path / "a").digest != make(tmp_path / "b", **change).digest


def test_the_digest_changes_when_two_files_swap_names(tmp_path: Path) -> None:
    digests = set()
    for first, second in (("one", "two"), ("two", "one")):
        with Run(tmp_path / first, "tokens", Settings()) as run:
            (run.directory / "a").write_text(first)
            (run.directory / "b").write_text(second)
            run.add("a")
            run.add("b")
            digests.add(run.commit({}).digest)
    assert len(digests) == 2


def test_a_parent_carries_its_whole_lineage(tmp_path: Path) -> None:
    make(tmp_path / "tokens", b"t")
    tokens = Artifact.open(tmp_path / "tokens")
    make(tmp_path / "encoder", b"e", kind="encoder", parents=[tokens])
    encoder = Artifact.open(tmp_path / "encoder")
    rnn = make(tmp_path / "rnn", b"r", kind="rnn", parents=[encoder])
    assert rnn.parents[0].digest == encoder.manifest.digest
    found = rnn.ancestor("tokens")
    assert found is not None
    assert found.digest == tokens.manifest.digest
    assert rnn.ancestor("labels") is None


def test_rounds_of_training_do_not_double_the_lineage(tmp_path: Path) -> None:
    """Labels of an RNN, and the RNN that goes on with both."""
    make(tmp_path / "encoder", b"e", kind="encoder")
    encoder, sizes, previous = Artifact.open(tmp_path / "encoder"), [], []
    for number in range(8):
        content = bytes([number])
        made = {}
        for kind in ("labels", "rnn"):
            parents = [made["labels"] if kind == "rnn" else encoder, *previous]
            make(tmp_path / f"{kind}{number}", content, kind=kind, parents=parents)
            made[kind] = Artifact.open(tmp_path / f"{kind}{number}")
        previous = [made["rnn"]]
        sizes.append(made["rnn"].manifest.model_dump_json().count('"digest"'))
        found = made["rnn"].manifest.ancestor("encoder")
        assert found is not None
        assert found.digest == encoder.manifest.digest
    assert len({later - size for size, later in pairwise(sizes[1:])}) == 1

    level, digests = list(made["rnn"].manifest.parents), set()
    for parent in level:
        digests.add(parent.digest)
        level.extend(parent.parents)
    assert len(digests) == 2 * 8  # the encoder, 8 labels, 7 RNNs


def test_a_path_that_does_not_exist_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such artifact") as caught:
        Artifact.open(tmp_path / "nothing")
    assert str(tmp_path / "nothing") in str(caught.value)


def test_a_directory_without_a_manifest_is_not_an_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no manifest\.json") as caught:
        Artifact.open(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_file_is_not_an_artifact(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(ArtifactError, match="not a complete artifact"):
        Artifact.open(tmp_path / "file")


def test_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "out", kind="tokens")
    with pytest.raises(ArtifactError, match="kind is tokens, expected labels or rnn") as caught:
        Artifact.open(tmp_path / "out", "labels", "rnn")
    assert str(tmp_path / "out") in str(caught.value)


@pytest.mark.parametrize("version", [0, 2, "one", None])
def test_another_format_version_is_refused(tmp_path: Path, version: Any) -> None:
    make(tmp_path / "out")
    edit_manifest(tmp_path / "out", format_version=version)
    with pytest.raises(ArtifactError, match=f"format version is {version}") as caught:
        Artifact.open(tmp_path / "out")
    assert str(tmp_path / "out" / MANIFEST) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"null", b"3", b'{"format_version": 1}'],
    ids=["empty", "cut short", "not text", "a list", "null", "a number", "no fields"],
)
def test_a_garbage_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        Artifact.open(tmp_path)
    assert str(tmp_path / MANIFEST) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "key"),
    [({"kind": "model"}, "kind"), ({"files": [{"name": 3}]}, "files.0.name"), ({"x": 1}, "x")],
    ids=["kind", "files", "unknown field"],
)
def test_a_wrong_field_of_the_manifest_is_named(
    tmp_path: Path, change: dict[str, Any], key: str
) -> None:
    make(tmp_path / "out")
    edit_manifest(tmp_path / "out", **change)
    with pytest.raises(ArtifactError) as caught:
        Artifact.open(tmp_path / "out")
    assert f"{MANIFEST}: {key}: " in str(caught.value)


def test_a_missing_file_is_found_when_opened(tmp_path: Path) -> None:
    entry = make(tmp_path / "out").files[0]
    (tmp_path / "out" / entry.name).unlink()
    with pytest.raises(ArtifactError, match="missing") as caught:
        Artifact.open(tmp_path / "out")
    assert str(tmp_path / "out" / entry.name) in str(caught.value)


def test_a_file_cut_short_is_found_when_opened(tmp_path: Path) -> None:
    entry = make(tmp_path / "out", b"0123456789").files[0]
    os.truncate(tmp_path / "out" / entry.name, 9)
    with pytest.raises(ArtifactError, match="9 bytes, the manifest says 10") as caught:
        Artifact.open(tmp_path / "out")
    assert str(tmp_path / "out" / entry.name) in str(caught.value)


@pytest.mark.parametrize("check", ["verify", "verified"])
def test_a_flipped_bit_is_found_by_the_checksum(tmp_path: Path, check: str) -> None:
    entry = make(tmp_path / "out").files[0]
    flip_byte(tmp_path / "out" / entry.name, 5)
    artifact = Artifact.open(tmp_path / "out")
    with pytest.raises(ArtifactError, match="damaged") as caught:
        artifact.verify() if check == "verify" else artifact.verified("data")
    assert str(tmp_path / "out" / entry.name) in str(caught.value)


def test_a_whole_artifact_passes_verification(tmp_path: Path) -> None:
    make(tmp_path / "out")
    artifact = Artifact.open(tmp_path / "out")
    artifact.verify()
    assert artifact.verified("data").read_bytes() == b"some content"


def test_an_unknown_logical_name_is_an_error(tmp_path: Path) -> None:
    make(tmp_path / "out")
    with pytest.raises(ArtifactError, match=r"tokens artifact without tokenizer\.json"):
        Artifact.open(tmp_path / "out").file("tokenizer.json")
