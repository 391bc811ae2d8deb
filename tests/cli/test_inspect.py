"""`smtkit inspect`."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from conftest import Command, KilledError, Killer, Pipeline, rnn_config
from smtkit.config import GenerateConfig, TrainRnnConfig
from smtkit.stages import train_rnn
from smtkit.storage.artifact import Artifact
from smtkit.storage.locks import DirectoryLock
from smtkit.storage.manifest import MANIFEST
from smtkit.storage.run import Run
from smtkit.storage.tensors import MODEL, load_tensors


@pytest.mark.parametrize("start", ["--init", "--init-from-labels"])
def test_inspect_shows_the_network_that_was_trained(
    command: Command, pipeline: Pipeline, tmp_path: Path, start: str
) -> None:
    """Though nothing of it was described; and the run goes on where it stopped."""
    out, flags = tmp_path / "out", [start, *([pipeline.rnn] if start == "--init" else [])]
    arguments = ("train-rnn", pipeline.labels, "--out", out, "--max-steps", 1, *flags)
    assert command(*arguments, "--set", "training.batch_size=4").code == 0
    manifest = json.loads(command("inspect", out, "--json").stdout)["manifest"]
    config, header = manifest["config"], load_tensors(Artifact.open(out).file(MODEL))[1]

    assert config["cell"]["width"] == 16
    assert config["memory"] == {"slots": 2, "slot_width": 8}
    for section in ("cell", "readout", "decoder"):
        assert config[section] == header[section]
    assert manifest["identity"]["cell.width"] == TrainRnnConfig.model_fields["cell"].default.width
    assert TrainRnnConfig(**config).cell.width == 16
    before = (out / "manifest.json").read_bytes()
    assert command(*arguments, "--set", "training.batch_size=4", "--resume").code == 0
    assert (out / "manifest.json").read_bytes() == before


def test_inspect_shows_kind_digest_and_parents(
    command: Command, tokens: Path, tmp_path: Path
) -> None:
    parent = Artifact.open(tokens)
    out = tmp_path / "encoder"
    with Run(out, "encoder", GenerateConfig(), [parent]) as run:
        (run.directory / "data").write_text("12345")
        run.add("data")
        digest = run.commit({"answer": 42}).digest
    result = command("inspect", out)
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{out}: encoder {digest[:12]}\n")
    assert "answer: 42" in result.stdout
    assert "1 files, 5 bytes" in result.stdout
    assert f"from {tokens}: tokens {parent.manifest.digest[:12]}" in result.stdout


def test_inspect_prints_the_manifest_as_json(command: Command, tokens: Path) -> None:
    result = command("inspect", tokens, "--json")
    assert (result.code, result.stderr) == (0, "")
    content = json.loads(result.stdout)
    assert content["manifest"] == json.loads((tokens / MANIFEST).read_text())
    assert set(content) == {"manifest", "counts", "rows"}


@pytest.mark.parametrize("is_running", [False, True])
def test_an_unfinished_artifact_says_how_far_it_is(
    command: Command, pipeline: Pipeline, tmp_path: Path, is_running: bool
) -> None:
    out = tmp_path / "rnn"
    with pytest.raises(KilledError):
        train_rnn.run(rnn_config(), pipeline.labels, out, progress=Killer(10))
    lock = DirectoryLock(out) if is_running else None
    for result in (command("inspect", out), command("generate", out)):
        state = "another process is writing it, " if is_running else "unfinished, "
        hint = "" if is_running else " (go on with smtkit train-rnn --resume)"
        expected = f"{out}: not a complete artifact: {state}step 8 of 12{hint}"
        assert (result.code, result.line()) == (3, expected)
    if lock:
        lock.release()


def test_the_path_of_a_manifest_names_its_artifact(command: Command, pipeline: Pipeline) -> None:
    expected = command("inspect", pipeline.rnn)
    found = command("inspect", pipeline.rnn / MANIFEST)
    assert found.code == 0
    assert found.stdout.splitlines()[1:] == expected.stdout.splitlines()[1:]
    assert command("generate", pipeline.rnn / MANIFEST, "--max-tokens", 3).code == 0
    assert command("inspect", pipeline.rnn / "manifest.jsonl").code == 2


def test_what_is_not_known_is_not_shown(
    command: Command, parity: Path, pipeline: Pipeline, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("a")
    command("tokenize", tmp_path / "a.txt", "--out", tmp_path / "tokens")
    np.save(tmp_path / "a.npy", np.eye(4)[None])
    flags = ("--tokenizer", "pixel", "--out", tmp_path / "images")
    command("tokenize", tmp_path / "a.npy", *flags)
    artifacts = [tmp_path / "tokens", tmp_path / "images", parity, *vars(pipeline).values()]
    for artifact in artifacts:
        result = command("inspect", artifact)
        assert (result.code, "None" in result.stdout) == (0, False)


def test_verification_finds_a_flipped_bit(command: Command, tokens: Path) -> None:
    assert command("inspect", tokens, "--verify").code == 0
    shard = Artifact.open(tokens).files("train-")[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    result = command("inspect", tokens, "--verify")
    assert result.code == 3
    assert result.line().startswith(f"{shard}: damaged")


def test_inspect_finds_a_file_cut_short(command: Command, tokens: Path) -> None:
    shard = Artifact.open(tokens).files("train-")[0]
    os.truncate(shard, 100)
    result = command("inspect", tokens)
    assert result.code == 3
    assert result.line().startswith(f"{shard}: 100 bytes")
