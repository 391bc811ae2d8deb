"""Rows of segments: where the memories before and after a token are stored, and read from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smtkit.config import RolloutConfig, TransitionObjectiveConfig
from smtkit.corpus.windows import Windows
from smtkit.errors import ArtifactError
from smtkit.labels.format import LabelShape
from smtkit.labels.reader import LabelShards
from smtkit.labels.writer import write_labels
from smtkit.methods.dmt import RolloutSampler
from smtkit.methods.smt import TransitionSampler

WINDOW, CONTEXT = 11, 4
LENGTHS = [11, 3, 4, 5, 8, 11, 1, 9]


def _listed(length: int, context: int) -> list[tuple[int, int]]:
    """Segment and position of each memory of a row."""
    return [
        (first // context, position)
        for first in range(0, length, context)
        for position in range(first, min(first + context, length) + 1)
    ]


@given(st.integers(1, 40), st.integers(1, 50))
def test_memories_lie_segment_by_segment(length, context):
    shape, listed = LabelShape(length, 2, 3, 10, "float32", context), _listed(length, context)
    for i, index in enumerate(shape.before(np.arange(length)).tolist()):
        assert listed[index] == (i // context, i)
        assert listed[index + 1] == (i // context, i + 1)
    for part in range(1, length + 1):
        assert shape.stored(part) == len(_listed(part, context))
    assert shape.memories == len(listed)


def test_without_a_context_memories_lie_at_their_positions():
    shape = LabelShape(5, 2, 3, 10, "float32")
    assert shape.before(np.arange(5)).tolist() == list(range(5))
    assert (shape.stored(3), shape.memories) == (4, 6)
    assert b"context" not in shape.schema().metadata[b"smtkit"]


@pytest.fixture
def labels(tmp_path: Path) -> LabelShards:
    """Token i of row r is 100 r + i; the memory after i tokens is 100 r + i, and half more where it
    is that of the RNN at a border."""
    shape = LabelShape(WINDOW, 2, 3, 10_000, "float32", CONTEXT)
    listed = np.array(_listed(WINDOW, CONTEXT))
    number = listed[:, 1] + 0.5 * ((listed[:, 1] == CONTEXT * listed[:, 0]) & (listed[:, 0] > 0))
    row = 100 * np.arange(len(LENGTHS))
    memory = np.broadcast_to(
        (row[:, None] + number)[..., None, None], (len(row), len(number), 2, 3)
    )
    tokens = row[:, None] + np.arange(WINDOW)
    windows = Windows(tokens, row[:, None] + np.arange(WINDOW + 1), np.array(LENGTHS))
    write_labels(tmp_path / "labels.arrow", shape, windows, memory, np.arange(len(row)))
    return LabelShards([tmp_path / "labels.arrow"])


def _check(token: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> None:
    position = token % 100
    border = (position % CONTEXT == 0) & (position > 0)
    assert border.any()
    assert (before[:, 0, 0] == token + 0.5 * border).all()
    assert (after[:, 0, 0] == token + 1).all()


@pytest.mark.parametrize("positions", [2, 30])
def test_one_step_training_reads_both_memories_of_a_border(labels, positions):
    sampler = TransitionSampler(
        labels, TransitionObjectiveConfig(), batch_size=8, seed=0, positions=positions
    )
    for step in range(3):
        batch = sampler.batch(step)
        _check(batch.token, batch.before, batch.after)
        assert (batch.target == batch.token + 1).all()


@pytest.mark.parametrize("kind", ["segments", "sequential", "jacobi"])
def test_rollouts_read_both_memories_of_a_border(labels, kind):
    settings = {"depth": 3} if kind == "segments" else {}
    rollout = RolloutConfig(kind=kind, **settings)
    sampler = RolloutSampler(
        labels, TransitionObjectiveConfig(), batch_size=8, seed=0, rollout=rollout
    )
    for step in range(3):
        batch = sampler.batch(step)
        tokens = batch.tokens.flatten()[batch.loss_steps]
        _check(tokens, batch.memory.decode(batch.index), batch.after)
        assert sorted(tokens.tolist()) == [
            100 * row + i for row, length in enumerate(LENGTHS) for i in range(length)
        ]
        steps, chains = batch.tokens.flatten(), batch.chain_index
        _check(steps, batch.memory.decode(chains).flatten(0, 1), batch.after_steps.flatten(0, 1))


def test_shards_with_another_context_are_refused(labels, tmp_path):
    shape = LabelShape(WINDOW, 2, 3, 10_000, "float32", CONTEXT + 1)
    other = tmp_path / "other.arrow"
    tokens = np.zeros((1, WINDOW), dtype=np.int64)
    windows = Windows(tokens, np.zeros((1, WINDOW + 1), dtype=np.int64), np.array([WINDOW]))
    memory = np.zeros((1, shape.memories, 2, 3), dtype=np.float32)
    write_labels(other, shape, windows, memory, np.arange(1))
    with pytest.raises(ArtifactError, match="shape is"):
        LabelShards([tmp_path / "labels.arrow", other])
