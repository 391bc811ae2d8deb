"""Which memories `memory_health` is computed from."""

import pytest
import torch

from conftest import WINDOW, arrow_columns, shards
from evaluations import evaluated
from smtkit.evaluation import memory_sample
from smtkit.methods.losses import memory_health
from smtkit.networks.loading import load_rnn, load_teacher
from smtkit.storage.artifact import Artifact


@torch.no_grad()
def test_few_memories_are_all_used(pipeline, evaluation, windows):
    network = load_rnn(Artifact.open(pipeline.rnn))
    teacher = load_teacher(Artifact.open(pipeline.encoder))
    read = torch.tensor([window[:WINDOW] for window in windows])
    assert len(windows) * WINDOW < 4096
    expected = {
        "teacher": memory_health(teacher.encoder(read)[:, 1:].flatten(0, 1)),
        "rnn, free-running": memory_health(network.rollout(read)[:, 1:].flatten(0, 1)),
    }

    assert evaluation["memory"].keys() == expected.keys()
    for name, health in expected.items():
        assert evaluation["memory"][name] == pytest.approx(health, rel=1e-3)


def test_many_memories_are_sampled(pipeline, tmp_path, monkeypatch):
    sizes = []

    def health(memory):
        sizes.append(len(memory))
        return {"variance": 1.0}

    monkeypatch.setattr(memory_sample, "_MEMORIES", 11)
    monkeypatch.setattr(memory_sample, "memory_health", health)
    evaluation = evaluated(pipeline, tmp_path)

    assert sizes == [11, 11]
    assert evaluation["memory"]["teacher"] == {"variance": 1.0}


@torch.no_grad()
def test_no_memory_is_padding_or_used_twice(task_pipeline, tmp_path, monkeypatch):
    """Rows of two lengths, few enough that every memory of each row is used."""
    found = []
    monkeypatch.setattr(memory_sample, "memory_health", lambda memory: found.append(memory) or {})
    evaluated(task_pipeline, tmp_path, batch_size=20)
    network = load_rnn(Artifact.open(task_pipeline.rnn))
    teacher = load_teacher(Artifact.open(task_pipeline.encoder))
    rows = arrow_columns(shards(task_pipeline.tokens, "test"))["tokens"]
    assert len({len(row) for row in rows}) == 2
    for memory, encode in zip(found, (teacher.encoder, network.rollout), strict=True):
        expected = torch.cat([encode(torch.tensor([row]))[0, 1:] for row in rows]).flatten(1)
        assert len(memory) == len(expected) == sum(map(len, rows))
        apart = torch.cdist(memory.flatten(1).double(), expected.double())
        assert apart.min(1).values.max() < 1e-5
        assert apart.min(0).values.max() < 1e-5
