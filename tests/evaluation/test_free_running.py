"""Nll and accuracy of the RNN's own rollout, against a loop of steps."""

import math

import numpy as np
import pytest
import torch

from conftest import architecture, encoder_config, rnn_config, validation_records
from smtkit import IGNORE
from smtkit.config import (
    CellConfig,
    DecoderConfig,
    ExtractLabelsConfig,
    ReadoutConfig,
    TrainRnnConfig,
)
from smtkit.evaluation.free_running import FreeRunning
from smtkit.methods.bptt import SequenceBatch
from smtkit.networks.loading import load_teacher
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.stages import extract_labels, train_encoder, train_rnn
from smtkit.storage.artifact import Artifact

VOCABULARY = 11
TRAINING = {"batch_size": 8, "max_steps": 12, "validate_every": 6, "validation_windows": 16}


def sequences(*lengths: int, width: int = 80) -> SequenceBatch:
    random = np.random.default_rng(0)
    tokens = random.integers(0, VOCABULARY, (len(lengths), width))
    targets = random.integers(-1, VOCABULARY, (len(lengths), width + 1))
    for row, length in enumerate(lengths):
        tokens[row, length:], targets[row, length + 1 :] = 0, IGNORE
    return SequenceBatch(*map(torch.from_numpy, (tokens, targets, np.array(lengths))))


@pytest.mark.parametrize("normalize", ["slot", "none"])
@pytest.mark.parametrize("kind", ["mlp", "gru", "lstm"])
@pytest.mark.parametrize("readout", ["mlp", "decoder"])
@pytest.mark.parametrize("starts", [True, False])
def test_sums_and_counts_equal_a_loop_over_targets(kind, normalize, readout, starts):
    """Also where no row has a target at position 0, as in all tasks."""
    torch.manual_seed(0)
    network = RecurrentNetwork(
        architecture(
            VOCABULARY,
            2,
            4,
            CellConfig(kind=kind, width=8, normalize=normalize),
            ReadoutConfig(kind=readout),
            DecoderConfig(width=8, heads=2),
        )
    )
    batch = sequences(80, 33, 1)
    if not starts:
        batch.targets[:, 0] = IGNORE
    nll, correct, count = 0.0, 0, 0
    with torch.no_grad():
        for row, length in enumerate(batch.length.tolist()):
            memory = network.start(1)
            for i in range(length + 1):
                target = int(batch.targets[row, i])
                if target != IGNORE:
                    logits = network.readout(memory)[0]
                    nll -= float(logits.log_softmax(-1)[target])
                    correct += int(int(logits.argmax()) == target)
                    count += 1
                if i < length:
                    memory = network.step(memory, batch.tokens[row, i : i + 1])
    measure = FreeRunning.of_network(network)
    found = measure.losses(batch)
    assert measure.counts(batch) == {"free_running_nll": count, "free_running_accuracy": count}
    assert math.isclose(float(found["free_running_nll"]), nll, rel_tol=1e-5)
    assert int(found["free_running_accuracy"]) == correct


def test_every_training_stage_validates_the_free_running_rnn(tmp_path, parity):
    encoder, labels, smt, bptt = (tmp_path / name for name in ("encoder", "labels", "smt", "bptt"))
    config = TrainRnnConfig(method="bptt", cell={"kind": "gru", "width": 16}, training=TRAINING)
    train_encoder.run(encoder_config(data={"window": None}), parity, encoder)
    extract_labels.run(ExtractLabelsConfig(), encoder, parity, labels)
    train_rnn.run(rnn_config(), labels, smt)
    train_rnn.run(config, parity, bptt)
    for artifact in (encoder, smt, bptt):
        last = validation_records(artifact)[-1]
        assert 0 <= last["free_running_accuracy"] <= 1
        assert last["free_running_nll"] > 0
    # bptt minimises the nll of the free-running RNN.
    last = validation_records(bptt)[-1]
    assert last["free_running_nll"] == pytest.approx(last["readout"], rel=1e-5)


def test_the_cotrained_cell_starts_from_the_encoders_empty_memory(tmp_path, parity):
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
