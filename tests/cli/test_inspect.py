"""`smtkit inspect`."""

import json
import os
from pathlib import Path

import pytest

from conftest import Command, Pipeline
from smtkit.config import GenerateConfig, TrainRnnConfig
from smtkit.storage.artifact import Artifact
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
