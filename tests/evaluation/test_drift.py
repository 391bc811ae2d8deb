"""Drift against its definition."""

import numpy as np
import pytest
import torch

from conftest import WINDOW
from evaluations import naive_drift
from smtkit.evaluation.drift import Drift
from smtkit.networks.loading import load_rnn, load_teacher
from smtkit.storage.artifact import Artifact


def test_drift_equals_its_definition():
    torch.manual_seed(0)
    rolled, label = torch.randn(2, 10, 4, 2, 3)
    label += 2
    drift = Drift(4, 6)
    drift.add(rolled[:3], label[:3])
    drift.add(rolled[3:], label[3:])
    expected = naive_drift(rolled.flatten(2).numpy(), label.flatten(2).numpy())

    assert drift.by_position() == pytest.approx(expected, rel=1e-4)


def test_pieces_of_a_window_give_the_drift_of_the_whole():
    torch.manual_seed(0)
    rolled, label = torch.randn(2, 5, 7, 2, 3)
    whole, pieces = Drift(7, 6), Drift(7, 6)
    whole.add(rolled, label)
    for first, last in ((1, 3), (4, 4), (5, 7)):
        pieces.add(rolled[:, first - 1 : last], label[:, first - 1 : last], first)

    assert pieces.by_position() == pytest.approx(whole.by_position())


def test_the_teacher_has_no_drift():
    drift = Drift(4, 6)
    label = torch.randn(5, 4, 2, 3)
    drift.add(label, label)

    assert drift.by_position() == [0, 0, 0, 0]


def test_the_mean_memory_has_a_drift_of_one():
    torch.manual_seed(0)
    label = torch.randn(50, 4, 2, 3, dtype=torch.float64)
    drift = Drift(4, 6)
    drift.add(label.mean((0, 1)).expand_as(label), label)

    assert np.mean(drift.by_position()) == pytest.approx(1)


@torch.no_grad()
def test_drift_is_measured_on_the_windows(pipeline, evaluation, windows):
    teacher = load_teacher(Artifact.open(pipeline.encoder))
    network = load_rnn(Artifact.open(pipeline.rnn))
    rolled, label = [], []
    for window in windows:
        label.append(teacher.encoder(torch.tensor([window[:WINDOW]]))[0, 1:].flatten(1).numpy())
        memory, rolled_here = network.empty_memory[None], []
        for token in window[:WINDOW]:
            memory = network.step(memory, torch.tensor([token]))
            rolled_here.append(memory.flatten().numpy())
        rolled.append(rolled_here)

    expected = naive_drift(np.array(rolled), np.array(label))
    assert evaluation["drift"] == pytest.approx(expected, rel=1e-3)
