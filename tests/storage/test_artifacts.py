"""Manifests, the commit protocol, shards and checkpoints: what lies on disk, whole or damaged."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from smtkit.config import Config
from smtkit.errors import ArtifactError, InputOutputError, LockedError, UsageError
from smtkit.storage.artifact import Artifact, read_manifest
from smtkit.storage.manifest import MANIFEST, METRICS, Manifest
from smtkit.storage.run import RUN_RECORD, Run
from smtkit.storage.shards import read_shard, shard_writer
from smtkit.storage.tensors import load_tensors, save_tensors
from smtkit.training.checkpoint import TrainingState


class Settings(Config):
    """A schema with one key that matters to the result and one that does not."""

    width: int = 1
    device: str = "cpu"


def make(
    out: Path,
    content: bytes = b"some content",
    *,
    kind: Any = "tokens",
    config: Config | None = None,
    metrics: str | None = None,
    **options: Any,
) -> Manifest:
    """An artifact of one file, `data`, and perhaps metrics."""
    with Run(out, kind, config or Settings(), **options) as run:
        if run.finished:
            return run.finished
        (run.directory / "data").write_bytes(content)
        run.add("data", rows=3)
        if metrics is not None:
            (run.directory / METRICS).write_text(metrics)
            run.add(METRICS)
        return run.commit({"answer": 42})


def interrupt(
    out: Path, content: str = "half", *, config: Config | None = None, **options: Any
) -> Path:
    """A run that stops after it kept something; returns its folder."""
    run = Run(out, "tokens", config or Settings(), **options)
    with suppress(KeyboardInterrupt), run:
        (run.directory / "work").write_text(content)
        run.keep()
        raise KeyboardInterrupt
    return run.directory


def everything_below(directory: Path) -> dict[str, bytes | None]:
    """All files with their content, and all directories, hidden ones too."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


def flip_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def edit_manifest(out: Path, **changes: Any) -> None:
    content = json.loads((out / MANIFEST).read_text())
    (out / MANIFEST).write_text(json.dumps(content | changes))


def bytes_of(tensor: torch.Tensor) -> bytes:
    """Bit for bit, so that NaN equals NaN and 0.0 differs from -0.0."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()


# Manifest and digest


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


# What is wrong with an artifact


def test_a_path_that_does_not_exist_is_a_mistake_of_the_user(tmp_path: Path) -> None:
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


def test_a_file_the_artifact_does_not_have_is_named(tmp_path: Path) -> None:
    make(tmp_path / "out")
    with pytest.raises(ArtifactError, match=r"tokens artifact without tokenizer\.json"):
        Artifact.open(tmp_path / "out").file("tokenizer.json")


# The commit protocol


def test_nothing_is_an_artifact_before_the_commit(tmp_path: Path) -> None:
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


def test_a_failed_overwrite_leaves_the_old_artifact_and_no_litter(tmp_path: Path) -> None:
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


def test_files_that_no_manifest_names_are_collected(tmp_path: Path) -> None:
    make(tmp_path / "out", b"old")
    with Run(tmp_path / "out", "tokens", Settings(), overwrite=True) as run:
        (run.directory / "data").write_bytes(b"new")
        (run.directory / "scratch").write_bytes(b"not added")
        run.add("data")
        run.commit({})
    name = f"{run.directory.name}/data"
    assert set(everything_below(tmp_path / "out")) == {MANIFEST, run.directory.name, name}


def test_a_folder_that_cannot_be_collected_does_not_cost_the_new_artifact(tmp_path: Path) -> None:
    old = make(tmp_path / "out", b"old").files[0].name.partition("/")[0]
    (tmp_path / "out" / old / "notes").mkdir()
    (tmp_path / "out" / old / "notes" / "mine").write_text("a user's")
    make(tmp_path / "out", b"new", overwrite=True)
    assert Artifact.open(tmp_path / "out").verified("data").read_bytes() == b"new"


def test_an_error_after_the_commit_does_not_cost_the_artifact(tmp_path: Path) -> None:
    with suppress(ZeroDivisionError), Run(tmp_path / "out", "tokens", Settings()) as run:
        (run.directory / "data").write_bytes(b"whole")
        run.add("data")
        run.commit({})
        raise ZeroDivisionError
    Artifact.open(tmp_path / "out").verify()


def test_an_interrupt_while_files_are_collected_does_not_cost_the_artifact(
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


# The lock, and what is refused


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
        pass  # the lock went with the first run


def test_the_lock_holds_between_processes_and_ends_with_the_one_that_held_it(
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


def test_a_file_in_place_of_the_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(UsageError, match="not a directory"):
        make(tmp_path / "file", overwrite=True)
    with pytest.raises(UsageError, match="not a directory"):
        make(tmp_path / "file" / "out")
    assert (tmp_path / "file").read_text() == "text"


# Resume


def test_resume_of_a_complete_artifact_has_nothing_to_do(tmp_path: Path) -> None:
    first = make(tmp_path / "out")
    before = everything_below(tmp_path)
    with Run(tmp_path / "out", "tokens", Settings(), resume=True) as run:
        assert run.finished == first
    assert everything_below(tmp_path) == before


def test_resume_where_there_is_nothing_starts(tmp_path: Path) -> None:
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


def test_resume_and_overwrite_make_anew_what_differs(tmp_path: Path) -> None:
    make(tmp_path / "out", b"old", config=Settings(width=1))
    make(tmp_path / "out", b"new", config=Settings(width=2), resume=True, overwrite=True)
    artifact = Artifact.open(tmp_path / "out")
    assert artifact.file("data").read_bytes() == b"new"
    assert artifact.manifest.config["width"] == 2


def test_resume_and_overwrite_keep_what_is_the_same(tmp_path: Path) -> None:
    first = make(tmp_path / "out", b"old")
    again = make(tmp_path / "out", b"new", resume=True, overwrite=True)
    assert again == first


def test_resume_goes_on_in_the_folder_of_the_unfinished_run(tmp_path: Path) -> None:
    folder = interrupt(tmp_path / "out", "half")
    with Run(tmp_path / "out", "tokens", Settings(), resume=True) as run:
        assert run.finished is None
        assert run.directory == folder
        assert (run.directory / "work").read_text() == "half"


def test_a_resumed_run_keeps_the_time_it_was_first_started(tmp_path: Path) -> None:
    folder = interrupt(tmp_path / "out")
    record = json.loads((folder / RUN_RECORD).read_text())
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


def test_an_unfinished_run_is_not_thrown_away_unasked(tmp_path: Path) -> None:
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


def test_an_interrupted_overwrite_goes_on_while_the_old_artifact_stays(tmp_path: Path) -> None:
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


def test_a_run_killed_before_it_did_anything_is_in_nobodys_way(tmp_path: Path) -> None:
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


# Tensors


def test_tensors_and_header_come_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    weird = torch.tensor([0.0, -0.0, float("inf"), float("nan"), 1e-45])
    tensors = {
        "float32": weird,
        "float16": weird.half(),
        "bfloat16": weird.bfloat16(),
        "int64": torch.tensor([-(2**63), 2**63 - 1]),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "transposed": torch.arange(6).reshape(2, 3).T,
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    header = {"width": 3, "names": ["a", "\N{SNOWMAN}"], "nested": {"x": None}}
    save_tensors(path, tensors, header)
    loaded, found = load_tensors(path)
    assert found == header
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert bytes_of(loaded[name]) == bytes_of(tensor), name


def test_slices_of_one_tensor_can_be_saved(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    save_tensors(tmp_path / "t.safetensors", {"first": whole[:3], "second": whole[3:]}, {})
    loaded, _ = load_tensors(tmp_path / "t.safetensors")
    assert loaded["first"].tolist() == [0, 1, 2]
    assert loaded["second"].tolist() == [3, 4, 5]


def test_weights_are_a_plain_safetensors_file_and_leave_no_litter(tmp_path: Path) -> None:
    save_tensors(tmp_path / "t.safetensors", {"a": torch.ones(2)}, {"x": 1})
    assert load_file(tmp_path / "t.safetensors")["a"].tolist() == [1, 1]
    assert set(everything_below(tmp_path)) == {"t.safetensors"}


def test_the_same_tensors_make_the_same_file(tmp_path: Path) -> None:
    header = {"b": 1, "a": 2}
    save_tensors(tmp_path / "1", {"x": torch.ones(2), "y": torch.zeros(3)}, header)
    save_tensors(
        tmp_path / "2", {"y": torch.zeros(3), "x": torch.ones(2)}, dict(reversed(header.items()))
    )
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_a_pickle_is_refused_without_being_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"weights": Trap()}, tmp_path / "model.safetensors")
    with pytest.raises(ArtifactError, match=r"model\.safetensors: not weights"):
        load_tensors(tmp_path / "model.safetensors")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("length", [0, 4, 8, 60, -1])
def test_weights_cut_short_are_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.safetensors"
    save_tensors(path, {"a": torch.ones(100)}, {"x": 1})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        load_tensors(path)


def test_weights_without_our_header_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ArtifactError, match=r"foreign\.safetensors"):
        load_tensors(tmp_path / "foreign.safetensors")


def test_weights_that_cannot_be_written_are_an_input_output_error(tmp_path: Path) -> None:
    with pytest.raises(InputOutputError, match=r"model\.safetensors"):
        save_tensors(tmp_path / "missing" / "model.safetensors", {"a": torch.ones(2)}, {})


# Training state


def training_state(seed: int = 0) -> TrainingState:
    torch.manual_seed(seed)
    network = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    return TrainingState(network, torch.optim.AdamW(network.parameters(), lr=0.1))


def train(state: TrainingState, steps: int) -> None:
    """Updates whose data are a function of the step."""
    for _ in range(steps):
        generator = torch.Generator().manual_seed(state.step)
        loss = state.network(torch.randn(8, 3, generator=generator)).square().sum()
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        state.step += 1
        state.tokens += 8
        state.seconds += 0.1


def bits(state: TrainingState) -> dict[str, bytes]:
    tensors = dict(state.network.state_dict())
    for index, values in state.optimizer.state_dict()["state"].items():
        tensors |= {f"{index}.{name}": tensor for name, tensor in values.items()}
    return {name: bytes_of(tensor) for name, tensor in tensors.items()}


def test_training_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state, loaded = training_state(), training_state(seed=1)
    train(state, 3)
    state.save(tmp_path)
    assert bits(loaded) != bits(state)
    assert loaded.load(tmp_path)
    assert bits(loaded) == bits(state)
    assert (loaded.step, loaded.tokens, loaded.seconds) == (3, 24, state.seconds)


def test_training_goes_on_after_loading_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    straight, stopped, resumed = training_state(), training_state(), training_state(seed=1)
    train(straight, 7)
    train(stopped, 3)
    stopped.save(tmp_path)
    resumed.load(tmp_path)
    train(resumed, 4)
    assert bits(resumed) == bits(straight)


def test_a_directory_without_a_checkpoint_loads_nothing(tmp_path: Path) -> None:
    state = training_state()
    before = bits(state)
    assert not state.load(tmp_path)
    assert bits(state) == before


def test_a_later_checkpoint_replaces_the_earlier(tmp_path: Path) -> None:
    state = training_state()
    for _ in range(3):
        train(state, 1)
        state.save(tmp_path)
    assert set(everything_below(tmp_path)) == {
        "checkpoint.json",
        "checkpoint-000000003.safetensors",
    }


def test_a_checkpoint_that_could_not_be_written_leaves_the_earlier_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = training_state()
    train(state, 1)
    state.save(tmp_path)
    saved = bits(state)
    train(state, 1)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("smtkit.storage.tensors.save_file", full)
    with pytest.raises(InputOutputError, match="No space left"):
        state.save(tmp_path)
    loaded = training_state(seed=1)
    assert loaded.load(tmp_path)
    assert loaded.step == 1
    assert bits(loaded) == saved


def damage_by_flipping(directory: Path) -> None:
    path = directory / "checkpoint-000000002.safetensors"
    flip_byte(path, path.stat().st_size - 3)


def damage_by_cutting(directory: Path) -> None:
    os.truncate(directory / "checkpoint-000000002.safetensors", 100)


def damage_by_removing(directory: Path) -> None:
    (directory / "checkpoint-000000002.safetensors").unlink()


def damage_the_record(directory: Path) -> None:
    (directory / "checkpoint.json").write_text("{")


def empty_the_record(directory: Path) -> None:
    (directory / "checkpoint.json").write_text("{}")


@pytest.mark.parametrize(
    "damage",
    [
        damage_by_flipping,
        damage_by_cutting,
        damage_by_removing,
        damage_the_record,
        empty_the_record,
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: Any) -> None:
    state = training_state()
    train(state, 2)
    state.save(tmp_path)
    damage(tmp_path)
    loaded = training_state(seed=1)
    before = bits(loaded)
    with pytest.raises(ArtifactError) as caught:
        loaded.load(tmp_path)
    assert str(tmp_path / "checkpoint") in str(caught.value)
    assert bits(loaded) == before


# Shards

SCHEMA = pa.schema([pa.field("number", pa.int64(), nullable=False)])


def batch(*numbers: int) -> pa.RecordBatch:
    return pa.record_batch([pa.array(numbers, pa.int64())], schema=SCHEMA)


def test_a_shard_reads_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "shard.arrow"
    with shard_writer(path, SCHEMA) as writer:
        writer.write_batch(batch(1, 2, 3))
        writer.write_batch(batch(4))
    assert read_shard(path).read_all()["number"].to_pylist() == [1, 2, 3, 4]
    with path.open("rb") as file:  # and as any other program reads it
        assert pa.ipc.open_file(file).read_all()["number"].to_pylist() == [1, 2, 3, 4]


def test_a_shard_reaches_numpy_without_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "shard.arrow"
    with shard_writer(path, SCHEMA) as writer:
        writer.write_batch(batch(*range(1000)))
    before = pa.total_allocated_bytes()
    numbers = read_shard(path).get_batch(0).column("number").to_numpy(zero_copy_only=True)
    assert pa.total_allocated_bytes() <= before
    np.testing.assert_array_equal(numbers, np.arange(1000))


def test_a_shard_appears_only_when_whole(tmp_path: Path) -> None:
    path = tmp_path / "shard.arrow"
    with shard_writer(path, SCHEMA) as writer:
        writer.write_batch(batch(1))
        assert not path.exists()
    assert set(everything_below(tmp_path)) == {"shard.arrow"}


def test_a_shard_writer_leaves_nothing_on_error(tmp_path: Path) -> None:
    with (
        suppress(ZeroDivisionError),
        shard_writer(tmp_path / "shard.arrow", SCHEMA) as writer,
    ):
        writer.write_batch(batch(1))
        raise ZeroDivisionError
    assert everything_below(tmp_path) == {}


def test_a_shard_writer_that_fails_keeps_the_shard_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "shard.arrow"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), shard_writer(path, SCHEMA):
        raise ZeroDivisionError
    assert everything_below(tmp_path) == {"shard.arrow": b"old"}


def test_a_shard_that_cannot_be_written_is_an_input_output_error(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "shard.arrow"
    with pytest.raises(InputOutputError, match=r"shard\.arrow"), shard_writer(path, SCHEMA):
        pass


@pytest.mark.parametrize("content", [b"", b"ARROW1", b"not a shard at all" * 100])
def test_a_file_that_is_no_shard_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "shard.arrow"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"shard\.arrow"):
        read_shard(path)


def test_a_shard_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"shard\.arrow"):
        read_shard(tmp_path / "shard.arrow")


@pytest.fixture(scope="module")
def whole_shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shards") / "whole.arrow"
    with shard_writer(path, SCHEMA) as writer:
        writer.write_batch(batch(*range(100)))
        writer.write_batch(batch(*range(50)))
    return path


@settings(max_examples=60)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_shard_cut_short_anywhere_is_refused(whole_shard: Path, share: float) -> None:
    content = whole_shard.read_bytes()
    path = whole_shard.with_name("short.arrow")
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ArtifactError, match=r"short\.arrow"):
        read_shard(path)
