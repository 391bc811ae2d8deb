"""Drift against its definition."""

import numpy as np
import pytest
import torch

from conftest import WINDOW
from evaluations import naive_drift, naive_drift_between_sequences
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
    memories = rolled.flatten(2).numpy(), label.flatten(2).numpy()

    assert drift.by_position() == pytest.approx(naive_drift(*memories), rel=1e-4)
    between = naive_drift_between_sequences(*memories)
    assert drift.between_sequences() == pytest.approx(between, rel=1e-4)


def test_pieces_of_a_window_give_the_drift_of_the_whole():
    torch.manual_seed(0)
    rolled, label = torch.randn(2, 5, 7, 2, 3)
    whole, pieces = Drift(7, 6), Drift(7, 6)
    whole.add(rolled, label)
    for first, last in ((1, 3), (4, 4), (5, 7)):
        pieces.add(rolled[:, first - 1 : last], label[:, first - 1 : last], first)

    assert pieces.by_position() == pytest.approx(whole.by_position())
    assert pieces.between_sequences() == pytest.approx(whole.between_sequences())


def test_the_teacher_has_no_drift():
    drift = Drift(4, 6)
    label = torch.randn(5, 4, 2, 3)
    drift.add(label, label)

    assert drift.by_position() == [0, 0, 0, 0]
    assert drift.between_sequences() == [0, 0, 0, 0]


def test_the_mean_memory_has_a_drift_of_one():
    torch.manual_seed(0)
    label = torch.randn(50, 4, 2, 3, dtype=torch.float64)
    drift = Drift(4, 6)
    drift.add(label.mean((0, 1)).expand_as(label), label)

    assert np.mean(drift.by_position()) == pytest.approx(1)


def test_the_mean_memory_of_a_position_has_a_drift_of_one_between_sequences():
    """However far the positions are apart, which hides the same error from the other drift."""
    torch.manual_seed(0)
    label = torch.randn(50, 4, 2, 3, dtype=torch.float64)
    label += 100 * torch.arange(4)[:, None, None]
    drift = Drift(4, 6)
    drift.add(label.mean(0).expand_as(label), label)

    assert drift.between_sequences() == pytest.approx([1, 1, 1, 1])
    assert max(drift.by_position()) < 1e-3


@pytest.mark.parametrize("rows", [1, 5])
def test_where_memories_are_the_same_in_all_sequences_there_is_no_drift_between_them(rows):
    torch.manual_seed(0)
    rolled, label = torch.randn(2, rows, 4, 2, 3)
    label[:, 1] = 1 / 3
    drift = Drift(4, 6)
    drift.add(rolled, label)
    found = drift.between_sequences()

    assert [value is None for value in found] == [rows == 1, True, rows == 1, rows == 1]
    assert all(value > 0 for value in drift.by_position())


def test_without_windows_there_is_no_drift():
    assert Drift(4, 6).by_position() is None
    assert Drift(4, 6).between_sequences() is None


class _TwoRanks:
    """Adds what one rank shares to what the other shared before."""

    def __init__(self) -> None:
        self._before: list[torch.Tensor] | None = None

    def sum_tensors(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        if self._before is None:
            self._before = tensors
            return tensors
        return [one + other for one, other in zip(tensors, self._before, strict=True)]


def test_ranks_share_the_drift_of_all_windows():
    torch.manual_seed(0)
    rolled, label = torch.randn(2, 7, 4, 2, 3)
    ranks, parts = _TwoRanks(), (Drift(4, 6), Drift(4, 6))
    for part, rows in zip(parts, (slice(0, 3), slice(3, 7)), strict=True):
        part.add(rolled[rows], label[rows])
        part.share(ranks)
    memories = rolled.flatten(2).numpy(), label.flatten(2).numpy()

    assert parts[1].by_position() == pytest.approx(naive_drift(*memories), rel=1e-4)
    expected = naive_drift_between_sequences(*memories)
    assert parts[1].between_sequences() == pytest.approx(expected, rel=1e-4)


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

    memories = np.array(rolled), np.array(label)
    assert evaluation["drift"] == pytest.approx(naive_drift(*memories), rel=1e-3)
    between = naive_drift_between_sequences(*memories)
    assert evaluation["drift_between_sequences"] == pytest.approx(between, rel=1e-3)
