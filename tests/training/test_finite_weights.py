"""Weights and labels that are not finite: never saved, refused when they are loaded, reported."""

import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from regression import Regression, trainer, training_config

from artifacts import edit_files
from conftest import Command, Pipeline, encoder_config, label_rows, shards
from smtkit.config import Config
from smtkit.errors import NonFiniteLossError
from smtkit.labels.codec import CODECS
from smtkit.labels.format import LabelShape
from smtkit.stages import train_encoder
from smtkit.storage.tensors import load_tensors, save_tensors

ONE_STEP = ("--max-steps", 1)
SPOILING = ("--set", "training.learning_rate=1e38", "--set", "training.warmup_steps=0")


@pytest.mark.parametrize("method", ["smt", "dmt", "bptt"])
def test_a_run_that_spoils_the_weights_at_its_last_step_saves_nothing(
    command: Command, pipeline: Pipeline, tmp_path: Path, method: str
) -> None:
    source, out = pipeline.tokens if method == "bptt" else pipeline.labels, tmp_path / "rnn"
    result = command(
        "train-rnn", source, "--method", method, *SPOILING, "--max-steps", 1, "--out", out
    )
    assert result.code == 5
    assert "step 0: after its update, weights are infinite" in result.stderr
    assert "the batch was of windows " in result.stderr
    assert not out.exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("steps", [3, 4, 5, 10])
def test_the_message_names_the_step_that_spoiled_the_weights(
    tmp_path: Path, value: float, steps: int
) -> None:
    method, config = Regression(), training_config(max_steps=steps, checkpoint_every=2)
    run = trainer(tmp_path, method, config)
    updates: list[int] = []

    def spoil(*_: object) -> None:
        updates.append(run.state.step)
        if run.state.step == 2:
            with torch.no_grad():
                method.network.weight[1, 2] = value

    run.state.optimizer.register_step_post_hook(spoil)
    with pytest.raises(NonFiniteLossError, match=r"step 2: after its update, .* of windows 2"):
        run.run()
    assert updates == [0, 1, 2]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == [
        "checkpoint-000000002.safetensors"
    ]


def test_large_finite_weights_are_no_error(tmp_path: Path) -> None:
    method = Regression(lambda step: 0.0)
    with torch.no_grad():
        method.network.weight.fill_(1e18)
    run = trainer(tmp_path, method, training_config(max_steps=1))
    assert float(run._network.non_finite()) == 0


def test_a_good_checkpoint_stays_until_a_newer_one_is_finite(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 4 to 8 spoil the weights between two checkpoints; the first can be resumed from."""
    step_of = train_encoder.Trainer._step

    def spoiled(self: train_encoder.Trainer, *arguments: object) -> None:
        step_of(self, *arguments)
        if self.state.step == 8:
            self._non_finite = torch.ones(())

    config: Config = encoder_config(training={"validate_every": 1000})
    monkeypatch.setattr(train_encoder.Trainer, "_step", spoiled)
    with pytest.raises(NonFiniteLossError, match="step 7: after its update"):
        train_encoder.run(config, pipeline.tokens, tmp_path)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.glob("run-*/checkpoint-*.safetensors")] == [
        "checkpoint-000000004.safetensors"
    ]
    train_encoder.run(config, pipeline.tokens, tmp_path, resume=True)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
@pytest.mark.parametrize("kind", ["encoder", "labels", "rnn"])
def test_weights_that_are_not_finite_are_refused(
    command: Command, pipeline: Pipeline, tmp_path: Path, kind: str, value: float
) -> None:
    artifact, out = shutil.copytree(getattr(pipeline, kind), tmp_path / kind), tmp_path / "out"
    (path,) = artifact.glob("run-*/model.safetensors")
    tensors, header = load_tensors(path)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[-1] = value
    save_tensors(path, tensors, header)
    edit_files(artifact)
    use = {
        "encoder": ("extract-labels", artifact, "--tokens", pipeline.tokens, "--out", out),
        "labels": ("train-rnn", artifact, "--max-steps", 1, "--out", out),
        "rnn": ("generate", artifact),
    }[kind]
    for arguments in (use, ("inspect", artifact, "--verify")):
        result = command(*arguments)
        assert result.code == 3
        assert result.line() == f"{path}: tensor {name!r}: infinite or not a number"
    assert not out.exists()


def _forge_label(path: Path, change: dict[str, float]) -> None:
    """Changes the first number of columns of row 0 of a shard, and its checksums."""
    content, row = path.read_bytes(), label_rows([path])[0]
    shape = LabelShape.of(pa.ipc.open_file(path).schema, path)
    forged = {name: np.array(values) for name, values in row.items()}
    forged["length"] = forged["length"].astype(np.int32)
    for name, value in change.items():
        forged[name].reshape(-1)[:1] = value
    sums = np.array(shape.checksums(forged), dtype=np.uint64)
    for name, values in {**{n: forged[n] for n in change}, "xxh3": sums}.items():
        before = np.ascontiguousarray(row[name]).tobytes()
        content = content.replace(before, values.astype(np.asarray(row[name]).dtype).tobytes(), 1)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory": math.nan}, "memory: infinite or not a number"),
        ({"memory": -math.inf}, "memory: infinite or not a number"),
        ({"tokens": 257}, "tokens: 257, allowed: 0 to 256"),
        ({"targets": -2}, "targets: -2, allowed: -1 to 256"),
        ({"targets": 999}, "targets: 999, allowed: -1 to 256"),
    ],
)
def test_labels_that_are_not_finite_or_out_of_range_are_refused(
    command: Command, pipeline: Pipeline, tmp_path: Path, change: dict[str, float], message: str
) -> None:
    labels, out = shutil.copytree(pipeline.labels, tmp_path / "labels"), tmp_path / "rnn"
    (path,) = shards(labels, "train")
    _forge_label(path, change)
    edit_files(labels)
    for arguments in (
        ("train-rnn", labels, *ONE_STEP, "--set", "training.batch_size=1024", "--out", out),
        ("inspect", labels, "--verify"),
    ):
        result = command(*arguments)
        assert result.code == 3
        assert f"{path}: row 0: {message}" in result.line()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_finite_numbers_are_told_from_others_bit_by_bit(dtype: str) -> None:
    kind = CODECS[dtype].tensor
    column = CODECS[dtype].columns(1, 1)["memory"]
    limits = torch.finfo(kind)
    for value in (0.0, -0.0, limits.max, limits.min, limits.tiny, math.inf, -math.inf, math.nan):
        for sign in (1, -1):
            tensor = torch.tensor([1.0, sign * value, -2.0], dtype=kind)
            content = memoryview(tensor.view(torch.uint8).numpy())
            assert column.is_finite(content) == bool(tensor.isfinite().all()), sign * value
