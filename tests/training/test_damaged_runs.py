"""Runs whose files were damaged or forged before they are resumed: refused, or bit-equal."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash

from artifacts import flip_byte
from conftest import Command, KilledError, Killer, Pipeline, Recorder, model_bytes, rnn_config
from smtkit.errors import ArtifactError, UsageError
from smtkit.stages import train_rnn
from smtkit.storage.manifest import METRICS
from smtkit.storage.tensors import load_tensors, save_tensors

CONFIG = rnn_config()


@pytest.fixture(scope="module")
def killed_run(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed after its checkpoint at step 8. Read only."""
    out = tmp_path_factory.mktemp("killed") / "rnn"
    with pytest.raises(KilledError):
        train_rnn.run(CONFIG, pipeline.labels, out, progress=Killer(10))
    return out


@pytest.fixture
def killed(killed_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(killed_run, tmp_path / "rnn")


def found(out: Path, name: str) -> Path:
    (path,) = out.glob(f"run-*/{name}")
    return path


def resume(pipeline: Pipeline, out: Path) -> Recorder:
    seen = Recorder()
    train_rnn.run(CONFIG, pipeline.labels, out, resume=True, progress=seen)
    return seen


def test_no_flipped_bit_of_a_run_changes_its_result(
    pipeline: Pipeline, killed_run: Path, tmp_path: Path
) -> None:
    draw = np.random.default_rng(0)
    refused = []
    for name in ("checkpoint.json", "checkpoint-*.safetensors", METRICS, "run.json"):
        for number in range(10):
            out = shutil.copytree(killed_run, tmp_path / f"{name}-{number}")
            path = found(out, name)
            content = bytearray(path.read_bytes())
            content[int(draw.integers(len(content)))] ^= 1 << int(draw.integers(8))
            path.write_bytes(content)
            try:
                resume(pipeline, out)
            except (ArtifactError, UsageError):
                refused.append(name)
            else:
                assert model_bytes(out) == model_bytes(pipeline.rnn)
    assert METRICS not in refused
    assert len(refused) >= 15


def test_a_digit_of_the_metrics_that_changed_is_told(pipeline: Pipeline, killed: Path) -> None:
    path = found(killed, METRICS)
    path.write_text(path.read_text().replace('"loss": ', '"loss": 1', 1))
    seen = resume(pipeline, killed)
    assert any("others may be lost or changed" in line for line in seen.warnings)
    assert model_bytes(killed) == model_bytes(pipeline.rnn)


def test_damaged_lines_of_the_metrics_are_left_out(pipeline: Pipeline, killed: Path) -> None:
    path = found(killed, METRICS)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[0] = b'\xff{"step": 2\n'
    lines[1] = b"[1]\n"
    path.write_bytes(b"".join([*lines, b'{"step": 9, "spl']))
    seen = resume(pipeline, killed)
    assert any("metrics.jsonl: damaged: 2 lines are left out" in line for line in seen.warnings)
    assert model_bytes(killed) == model_bytes(pipeline.rnn)
    records = [json.loads(line) for line in found(killed, METRICS).read_text().splitlines()]
    assert max(record["step"] for record in records) == CONFIG.training.max_steps


def forge(out: Path, **changes: Any) -> None:
    """Changes fields of `checkpoint.json`, and its checksum."""
    path = found(out, "checkpoint.json")
    record = json.loads(path.read_text()) | changes
    fields = {name: value for name, value in record.items() if name != "checksum"}
    text = json.dumps(fields, sort_keys=True)
    record["checksum"] = xxhash.xxh3_128_hexdigest(text.encode())
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", -5),
        ("step", True),
        ("step", 59.5),
        ("step", 10**9),
        ("step", "8"),
        ("step", 9),
        ("tokens", -1),
        ("seconds", float("nan")),
        ("seconds", -1.0),
        ("seconds", None),
        ("file", "../outside.safetensors"),
        ("file", "/etc/passwd"),
        ("file", "checkpoint-000000008.safetensors/../x"),
        ("bytes", 3),
        ("more", 1),
    ],
)
def test_a_forged_record_is_refused(
    command: Command, pipeline: Pipeline, killed: Path, key: str, value: Any
) -> None:
    shutil.copy(found(killed, "checkpoint-*.safetensors"), killed.parent / "outside.safetensors")
    forge(killed, **{key: value})
    with pytest.raises(ArtifactError, match=r"checkpoint(-000000008)?\.") as caught:
        resume(pipeline, killed)
    assert "\n" not in str(caught.value)


def test_a_changed_step_is_found_by_the_checksum(pipeline: Pipeline, killed: Path) -> None:
    path = found(killed, "checkpoint.json")
    path.write_text(path.read_text().replace('"step": 8', '"step": 9'))
    with pytest.raises(ArtifactError, match="damaged: checksum"):
        resume(pipeline, killed)


def _of_another_shape(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if name.startswith("network."))
    tensors[name] = torch.zeros(3)


def _missing(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[next(name for name in tensors if name.startswith("network."))]


def _unknown(tensors: dict[str, torch.Tensor]) -> None:
    tensors["another.part"] = torch.zeros(3)


def _of_no_parameter(tensors: dict[str, torch.Tensor]) -> None:
    tensors["optimizer.999.exp_avg"] = torch.zeros(3)


def _moments_of_another_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["optimizer.0.exp_avg"] = torch.zeros(1, 2, 3)


def _infinite(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if name.startswith("network."))
    tensors[name].view(-1)[0] = torch.inf


def _of_no_term(tensors: dict[str, torch.Tensor]) -> None:
    tensors["sum.task"] = torch.zeros(())


def _counts_of_another_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["count.loss"] = torch.zeros(2, dtype=torch.int64)


def _counts_of_another_type(tensors: dict[str, torch.Tensor]) -> None:
    tensors["count.loss"] = torch.zeros(())


@pytest.mark.parametrize(
    "change",
    [
        _of_no_term,
        _counts_of_another_shape,
        _counts_of_another_type,
        _of_another_shape,
        _missing,
        _unknown,
        _of_no_parameter,
        _moments_of_another_shape,
        _infinite,
    ],
)
def test_forged_tensors_are_refused(pipeline: Pipeline, killed: Path, change: Any) -> None:
    path = found(killed, "checkpoint-*.safetensors")
    tensors, header = load_tensors(path)
    change(tensors)
    save_tensors(path, tensors, header)
    forge(killed, bytes=path.stat().st_size, xxh3=xxhash.xxh3_128_hexdigest(path.read_bytes()))
    with pytest.raises(ArtifactError, match=r"checkpoint-000000008\.safetensors: tensor"):
        resume(pipeline, killed)


@pytest.mark.parametrize(
    "name", ["checkpoint.json", "checkpoint-*.safetensors", METRICS, "run.json"]
)
@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_links_and_fifos_in_a_run_are_refused(
    pipeline: Pipeline, killed: Path, name: str, kind: str
) -> None:
    path, outside = found(killed, name), killed.parent / "outside"
    path.rename(outside)
    before = outside.read_bytes()
    if kind == "link":
        path.symlink_to(outside)
    else:
        os.mkfifo(path)
    with pytest.raises(ArtifactError, match="a regular file"):
        resume(pipeline, killed)
    assert outside.read_bytes() == before


def test_metrics_are_not_written_through_a_link(pipeline: Pipeline, killed: Path) -> None:
    path, outside = found(killed, METRICS), killed.parent / "outside"
    path.unlink()
    path.symlink_to(outside)  # which does not exist yet
    with pytest.raises(ArtifactError, match="a regular file"):
        resume(pipeline, killed)
    assert not outside.exists()


def test_a_flipped_byte_of_the_checkpoint_names_the_file(
    command: Command, pipeline: Pipeline, killed: Path
) -> None:
    path = found(killed, "checkpoint-*.safetensors")
    flip_byte(path, path.stat().st_size // 2)
    found_is = r"000000008\.safetensors: damaged: xxh3 is [0-9a-f]{32}, checkpoint.json says "
    with pytest.raises(ArtifactError, match=found_is):
        resume(pipeline, killed)


def test_a_missing_checkpoint_is_one_that_its_record_names(
    pipeline: Pipeline, killed: Path
) -> None:
    found(killed, "checkpoint-*.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"tensors: missing, though checkpoint\.json names it"):
        resume(pipeline, killed)
