"""What validation says of an RNN on its own; and when training stops, by its own clock."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import architecture, encoder_config, label_rows, numbered_labels, rnn_config, shards
from smtkit import IGNORE
from smtkit.config import (
    CellConfig,
    DecoderConfig,
    ExtractLabelsConfig,
    ReadoutConfig,
    SynthesizeConfig,
    TrainingConfig,
    TrainRnnConfig,
)
from smtkit.corpus.windows import open_windows
from smtkit.evaluation.free_running import FreeRunning
from smtkit.methods.bptt import BackpropagationThroughTime, SequenceBatch, SequenceSampler
from smtkit.networks.loading import load_teacher
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.stages import extract_labels, synthesize, train_encoder, train_rnn
from smtkit.storage.artifact import Artifact
from smtkit.storage.manifest import METRICS
from smtkit.training.loop import Trainer
from smtkit.training.protocols import Validation

VOCABULARY = 11


def sequences(*lengths: int, width: int = 80) -> SequenceBatch:
    random = np.random.default_rng(0)
    tokens = random.integers(0, VOCABULARY, (len(lengths), width))
    targets = random.integers(-1, VOCABULARY, (len(lengths), width + 1))
    for row, length in enumerate(lengths):
        tokens[row, length:], targets[row, length + 1 :] = 0, IGNORE
    return SequenceBatch(*map(torch.from_numpy, (tokens, targets, np.array(lengths))))


@pytest.mark.parametrize("normalize", ["slot", "none"])
@pytest.mark.parametrize("kind", ["mlp", "gru", "lstm"])
def test_means_are_those_of_a_loop_over_targets(kind, normalize):
    torch.manual_seed(0)
    network = RecurrentNetwork(
        architecture(
            VOCABULARY,
            2,
            4,
            CellConfig(kind=kind, width=8, normalize=normalize),
            ReadoutConfig(),
            DecoderConfig(width=8, heads=2),
        )
    )
    batch = sequences(80, 33, 1)
    nll, right, asked = 0.0, 0, 0
    with torch.no_grad():
        for row, length in enumerate(batch.length.tolist()):
            memory = network.start(1)
            for i in range(length + 1):
                target = int(batch.targets[row, i])
                if target != IGNORE:
                    logits = network.readout(memory)[0]
                    nll -= float(logits.log_softmax(-1)[target])
                    right += int(int(logits.argmax()) == target)
                    asked += 1
                if i < length:
                    memory = network.step(memory, batch.tokens[row, i : i + 1])
    measure = FreeRunning.of_network(network)
    found = measure.losses(batch)
    assert measure.counts(batch) == {"free_running_nll": asked, "free_running_accuracy": asked}
    assert math.isclose(float(found["free_running_nll"]), nll, rel_tol=1e-5)
    assert int(found["free_running_accuracy"]) == right


def test_labels_give_the_tokens_and_targets_of_their_windows(tmp_path):
    labels = numbered_labels(tmp_path / "labels.arrow", [4, 2, 4], window=6)
    batch = SequenceSampler(labels, batch_size=3, seed=0).batch(0)
    assert sorted(zip(batch.tokens.tolist(), batch.length.tolist(), strict=True)) == [
        ([100 * row + i for i in range(4)], length) for row, length in enumerate([4, 2, 4])
    ]
    assert torch.equal(batch.targets[:, :4], batch.tokens + 50)


@pytest.fixture(scope="module")
def parity(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("parity") / "tokens"
    settings = {"sequences": 64, "validation_sequences": 16, "test_sequences": 16}
    synthesize.run(SynthesizeConfig(task="parity", lengths=[4, 9], **settings), out)
    return out


def bptt_config(**training) -> TrainRnnConfig:
    tiny = {"batch_size": 8, "max_steps": 12, "validate_every": 6, "validation_windows": 16}
    return TrainRnnConfig(
        method="bptt", cell={"kind": "gru", "width": 16}, training={**tiny, **training}
    )


def validations(artifact: Path) -> list[dict]:
    manifest = Artifact.open(artifact, json.loads((artifact / "manifest.json").read_text())["kind"])
    lines = manifest.file(METRICS).read_text(encoding="utf-8").splitlines()
    return [record for line in lines if (record := json.loads(line))["split"] == "validation"]


def test_every_training_stage_says_how_the_rnn_does_on_its_own(tmp_path, parity):
    encoder, labels, smt, bptt = (tmp_path / name for name in ("encoder", "labels", "smt", "bptt"))
    train_encoder.run(encoder_config(data={"window": None}), parity, encoder)
    extract_labels.run(ExtractLabelsConfig(), encoder, parity, labels)
    train_rnn.run(rnn_config(), labels, smt)
    train_rnn.run(bptt_config(), parity, bptt)
    for artifact in (encoder, smt, bptt):
        last = validations(artifact)[-1]
        assert 0 <= last["free_running_accuracy"] <= 1
        assert last["free_running_nll"] > 0
    # What bptt minimises is the nll of the RNN on its own.
    last = validations(bptt)[-1]
    assert last["free_running_nll"] == pytest.approx(last["readout"], rel=1e-5)


def test_of_the_teacher_it_is_the_cotrained_cell_from_the_empty_memory(tmp_path, parity):
    train_encoder.run(encoder_config(data={"window": None}), parity, tmp_path / "encoder")
    teacher = load_teacher(Artifact.open(tmp_path / "encoder", "encoder"))
    batch = SequenceBatch(
        torch.tensor([[1, 0, 1]]), torch.tensor([[-1, 1, 1, 0]]), torch.tensor([3])
    )
    memory = teacher.encoder(batch.tokens)[:, 0]
    nll = 0.0
    for i in range(3):
        memory = teacher.transition(memory, batch.tokens[:, i])
        nll -= float(teacher.read(memory).log_softmax(-1)[0, batch.targets[0, i + 1]])
    found = FreeRunning.of_teacher(teacher).losses(batch)
    assert float(found["free_running_nll"]) == pytest.approx(nll, rel=1e-5)


def test_labels_of_short_rows_are_those_of_the_rows_alone(tmp_path, parity):
    """Padding is neither encoded nor read: whatever else is in the batch."""
    encoder, labels = tmp_path / "encoder", tmp_path / "labels"
    train_encoder.run(encoder_config(data={"window": None}), parity, encoder)
    extract_labels.run(ExtractLabelsConfig(batch_size=5, dtype="float32"), encoder, parity, labels)
    teacher = load_teacher(Artifact.open(encoder, "encoder"))
    for row in label_rows(shards(labels, "train")):
        length = int(row["length"])
        tokens = torch.from_numpy(row["tokens"][:length].astype(np.int64))
        np.testing.assert_allclose(
            row["memory"][: length + 1], teacher.encoder(tokens[None])[0], atol=1e-5
        )


def test_stops_at_the_first_validation_that_reaches_the_goal(tmp_path, parity):
    config = bptt_config(max_steps=2000, validate_every=5, stop_at_accuracy=0.7, learning_rate=0.02)
    manifest = train_rnn.run(config, parity, tmp_path / "rnn")
    *before, last = [record["free_running_accuracy"] for record in validations(tmp_path / "rnn")]
    assert last >= 0.7
    assert all(accuracy < 0.7 for accuracy in before)
    assert manifest.statistics["steps"] == 5 * (len(before) + 1) < 2000
    assert manifest.statistics["validation"]["free_running_accuracy"] == last


class TimedSampler:
    """Batches of whole windows; each batch that is read advances the clocks."""

    def __init__(self, sampler: SequenceSampler, advance: Callable[[], None]) -> None:
        self._sampler, self._advance = sampler, advance

    def batch(self, step: int, part: int = 0, parts: int = 1) -> SequenceBatch:
        self._advance()
        return self._sampler.batch(step, part, parts)


def timed_steps(tokens: Path, out: Path, training: TrainingConfig) -> Trainer[SequenceBatch]:
    """Trains with bptt: a step takes 1 s of CPU time and 10 s of wall time, a validation 1000 s."""
    now = {"cpu": 0.0, "wall": 0.0}

    def advance(cpu: float, wall: float) -> None:
        now["cpu"], now["wall"] = now["cpu"] + cpu, now["wall"] + wall

    windows = open_windows(Artifact.open(tokens, "tokens"), "train", None)
    sampler = SequenceSampler(windows, batch_size=training.batch_size, seed=0)
    network = RecurrentNetwork(
        architecture(5, 2, 4, CellConfig(kind="gru"), ReadoutConfig(), DecoderConfig())
    )
    method = BackpropagationThroughTime(network, None)
    validation = Validation(method, TimedSampler(sampler, partial(advance, 1000, 1000)), 1)
    out.mkdir()
    trainer = Trainer(
        method,
        TimedSampler(sampler, partial(advance, 1, 10)),
        [validation],
        training,
        out,
        clocks={name: partial(now.get, name) for name in now},
    )
    trainer.run()
    return trainer


@pytest.mark.parametrize(("clock", "steps"), [("cpu", 20), ("wall", 2)])
def test_max_seconds_are_of_training_on_the_chosen_clock(tmp_path, parity, clock, steps):
    config = TrainingConfig(batch_size=8, max_seconds=20, clock=clock, validate_every=1)
    statistics = timed_steps(parity, tmp_path / "run", config).statistics()
    assert statistics["steps"] == steps
    assert statistics["seconds"] == 20


def test_validate_seconds_are_seconds_of_training(tmp_path, parity):
    config = TrainingConfig(
        batch_size=8, max_steps=12, clock="cpu", validate_seconds=4.5, validate_every=1
    )
    timed_steps(parity, tmp_path / "run", config)
    lines = (tmp_path / "run" / METRICS).read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [r["step"] for r in records if r["split"] == "validation"] == [5, 10, 12]
