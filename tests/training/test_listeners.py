"""Listeners receive what the metrics log holds: TensorBoard, Weights & Biases, and one's own."""

import json
import struct
import sys
import time
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from conftest import Command, KilledError, Killer, Pipeline, rnn_config
from smtkit.networks.loading import load_rnn
from smtkit.stages import train_rnn
from smtkit.storage.artifact import Artifact
from smtkit.storage.manifest import METRICS
from smtkit.training.listeners import TensorBoard, WeightsAndBiases

CONFIG = rnn_config(training={"sample_every": 6})


class Ear:
    """A listener that remembers what it heard."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.records: list[dict[str, Any]] = []
        self.weights: dict[int, Mapping[str, np.ndarray]] = {}

    def start(self, step: int) -> None:
        self.starts.append(step)

    def record(self, record: Mapping[str, Any]) -> None:
        self.records.append(dict(record))

    def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        self.weights[step] = {name: value.copy() for name, value in values.items()}

    def close(self) -> None:
        pass


def log_of(artifact: Path) -> list[dict[str, Any]]:
    lines = Artifact.open(artifact).file(METRICS).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_a_listener_hears_the_log_and_the_weights(pipeline: Pipeline, tmp_path: Path) -> None:
    ear = Ear()
    train_rnn.run(CONFIG, pipeline.labels, tmp_path / "rnn", listeners=[ear])
    assert ear.starts == [0]
    assert ear.records == log_of(tmp_path / "rnn")
    assert {record["split"] for record in ear.records} == {"train", "validation", "sample"}
    assert list(ear.weights) == [6, 12]
    network = load_rnn(Artifact.open(tmp_path / "rnn"))
    for name, weight in network.named_parameters():
        assert np.array_equal(ear.weights[12][name], weight.numpy()), name


def test_what_it_hears_changes_nothing(pipeline: Pipeline, tmp_path: Path) -> None:
    digests = [
        train_rnn.run(CONFIG, pipeline.labels, tmp_path / name, listeners=listeners).digest
        for name, listeners in (("heard", [Ear()]), ("alone", []))
    ]
    assert digests[0] == digests[1]


def test_after_a_resume_it_starts_at_the_checkpoint(pipeline: Pipeline, tmp_path: Path) -> None:
    out = tmp_path / "rnn"
    with pytest.raises(KilledError):
        train_rnn.run(CONFIG, pipeline.labels, out, progress=Killer(10), listeners=[Ear()])
    ear = Ear()
    train_rnn.run(CONFIG, pipeline.labels, out, resume=True, listeners=[ear])
    assert ear.starts == [8]
    assert ear.records == [record for record in log_of(out) if record["step"] > 8]


def events_of(directory: Path) -> dict[str, list[tuple[int, Any]]]:
    """Steps and values of each tag, read from the event files record by record."""
    event_pb2 = pytest.importorskip("tensorboard.compat.proto.event_pb2")
    found: dict[str, list[tuple[int, Any]]] = {}
    for path in sorted(directory.glob("events.*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            for value in event.summary.value:
                if value.HasField("histo"):
                    shown: Any = (value.histo.num, value.histo.sum)
                elif value.HasField("tensor"):
                    shown = value.tensor.string_val[0].decode()
                else:
                    shown = value.simple_value
                found.setdefault(value.tag, []).append((event.step, shown))
    return found


def test_tensorboard_holds_the_log(command: Command, pipeline: Pipeline, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    out, board = tmp_path / "rnn", tmp_path / "board"
    sizes = ("--set", "training.batch_size=8", "--set", "cell.width=16")
    every = ("--set", "training.log_every=2", "--set", "training.sample_every=4")
    arguments = ("train-rnn", pipeline.labels, "--out", out, "--max-steps", 4, *sizes, *every)
    assert command(*arguments, "--tensorboard", board).code == 0
    found = events_of(board)
    for record in log_of(out):
        for name, value in record.items():
            tag = f"{record['split']}/{name}"
            if name in ("step", "split", "text"):
                assert tag not in found
            else:
                shown = dict(found[tag])
                assert shown[record["step"]] == pytest.approx(value, rel=1e-6), tag
    (sample,) = [record["text"] for record in log_of(out) if record["split"] == "sample"]
    text = "\n".join(f"    {line}" for line in sample.splitlines())
    assert found["sample/text_summary"] == [(4, text)]
    network = load_rnn(Artifact.open(out))
    for name, weight in network.named_parameters():
        ((step, (count, total)),) = found[f"weights/{name}"]
        assert (step, count) == (4, weight.numel())
        assert total == pytest.approx(float(weight.double().sum()), abs=1e-4)


class Stub(ModuleType):
    """The part of wandb's interface that is used."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.started: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.finished = 0

    def init(self, **settings: Any) -> "Stub":
        self.started = settings
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1

    def Settings(self, **settings: Any) -> dict[str, Any]:  # noqa: N802
        return settings

    def Html(self, text: str) -> str:  # noqa: N802
        return text

    def Histogram(self, values: np.ndarray) -> int:  # noqa: N802
        return values.size


def test_weights_and_biases_is_given_the_log(
    command: Command, pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = Stub()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    monkeypatch.setenv("WANDB_PROJECT", "trees")
    out = tmp_path / "rnn"
    every = ("--set", "training.log_every=2", "--set", "training.batch_size=8")
    arguments = ("train-rnn", pipeline.labels, "--out", out, "--max-steps", 4, *every)
    assert command(*arguments, "--wandb").code == 0
    shown = (stub.started["project"], stub.started["name"], stub.started["group"])
    assert shown == ("trees", "rnn", str(out))
    assert stub.started["config"]["training"]["max_steps"] == 4
    assert stub.finished == 1
    metrics = [each for each in stub.logged if not any("weights/" in name for name in each[1])]
    assert metrics == [
        (r["step"], {f"{r['split']}/{n}": v for n, v in r.items() if n not in ("step", "split")})
        for r in log_of(out)
    ]


def test_samples_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = Stub()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    listener = WeightsAndBiases("rnn", {})
    listener.start(0)
    listener.record({"step": 1, "split": "sample", "text": "<script>"})
    assert stub.logged == [(1, {"sample": "<pre>&lt;script&gt;</pre>"})]


def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package itself takes the calls, and writes to this machine alone."""
    pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    listener = WeightsAndBiases("rnn", {"seed": 1})
    listener.start(0)
    listener.record({"step": 1, "split": "train", "loss": 2.0})
    listener.record({"step": 1, "split": "sample", "text": "once"})
    listener.histograms(1, {"w": np.ones((2, 3), dtype=np.float32)})
    listener.close()
    (written,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    # A process of wandb's writes the file, and may still do so after `finish`.
    for _ in range(300):
        if b"train/loss" in written.read_bytes():
            return
        time.sleep(0.1)
    pytest.fail("the record was not written")


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_missing_package_is_one_line(
    package: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    flag = ("--tensorboard", "board") if package == "tensorboard" else ("--wandb",)
    result = command("train-encoder", "tokens", "--out", "x", "--max-steps", 1, *flag)
    assert result.code == 2
    install = f"pip install 'smtkit[{package}]'"
    assert result.line() == f"--{package}: {package} is not installed ({install})"


def test_a_listener_that_never_started_is_closed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    TensorBoard(str(tmp_path / "board")).close()
    assert not (tmp_path / "board").exists()
