"""Batches that threads read ahead are those that are read when needed."""

import threading
import time

import pytest
import torch

from conftest import model_bytes, numbered_labels, rnn_config, tensor_fields
from smtkit.config import (
    RolloutConfig,
    TransitionObjectiveConfig,
)
from smtkit.errors import ArtifactError
from smtkit.labels.reader import LabelShards
from smtkit.methods.dmt import RolloutSampler
from smtkit.methods.smt import TransitionSampler
from smtkit.stages import train_rnn
from smtkit.training.prefetch import Prefetch

READERS = [0, 1, 2, 3, 8]
LENGTHS = [6, 6, 1, 5, 3, 2, 6, 4, 6, 6, 5]


def _samplers(labels: LabelShards) -> list:
    objective = TransitionObjectiveConfig(kl_weight=1.0, kl_positions=2, noise=1.0)
    settings = {"batch_size": 4, "seed": 3}
    return [
        TransitionSampler(labels, objective, positions=2, **settings),
        TransitionSampler(labels, objective, positions=9, **settings),
        RolloutSampler(labels, objective, rollout=RolloutConfig(depth=3), **settings),
    ]


def _content(batch: object) -> dict[str, torch.Tensor]:
    """Copies of all tensors that a method can read from a batch."""
    return {name: getattr(batch, name).clone() for name in tensor_fields(batch)}


def _assert_equal(found: object, expected: dict[str, torch.Tensor]) -> None:
    for name, value in _content(found).items():
        assert torch.equal(value, expected[name]), name


def _no_threads() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


@pytest.mark.parametrize("readers", READERS)
@pytest.mark.parametrize("kind", [0, 1, 2], ids=["pairs", "whole windows", "rollout"])
def test_batches_are_the_same_for_any_number_of_readers(tmp_path, kind, readers):
    labels = numbered_labels(tmp_path / "train-00000.arrow", LENGTHS)
    alone = _samplers(labels)[kind]
    with Prefetch(_samplers(labels)[kind], readers) as sampler:
        for step in range(40):
            # So a buffer that is written too early would show.
            _assert_equal(sampler.batch(step), _content(alone.batch(step)))


@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_parts_of_any_number_make_the_same_batches(tmp_path, parts, readers):
    labels = numbered_labels(tmp_path / "train-00000.arrow", [6] * 11)
    for kind in range(3):
        alone = _samplers(labels)[kind]
        with Prefetch(_samplers(labels)[kind], readers) as sampler:
            for step in range(10):
                slices = [sampler.batch(step, part, parts) for part in range(parts)]
                for name in ("before", "start", "after", "target", "initial_target"):
                    whole = getattr(alone.batch(step), name, None)
                    if whole is not None:
                        assert torch.equal(torch.cat([getattr(s, name) for s in slices]), whole)


def test_steps_may_be_read_in_any_order(tmp_path):
    labels = numbered_labels(tmp_path / "train-00000.arrow", LENGTHS)
    (alone, *_), (read_ahead, *_) = _samplers(labels), _samplers(labels)
    with Prefetch(read_ahead, 2) as sampler:
        for step in (7, 8, 3, 3, 9, 10, 100, 0, 2):
            _assert_equal(sampler.batch(step), _content(alone.batch(step)))


@pytest.mark.parametrize("readers", [0, 1, 2, 3, 8])
def test_an_rnn_is_the_same_for_any_number_of_readers(pipeline, tmp_path, readers):
    config = rnn_config(data={"positions": 8, "readers": readers})
    train_rnn.run(config, pipeline.labels, tmp_path / "rnn")

    assert model_bytes(tmp_path / "rnn") == model_bytes(pipeline.rnn)
    # And a finished run is the same run.
    again = rnn_config(data={"positions": 8, "readers": readers + 1})
    assert train_rnn.run(again, pipeline.labels, tmp_path / "rnn", resume=True)


class _Slow:
    """A sampler that records the steps it is called for, and fails at one of them."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.steps: list[int] = []
        self._fails_at = fails_at

    def windows_of(self, step: int) -> list[int]:
        return [step]

    def batch(self, step: int, part: int = 0, parts: int = 1) -> int:
        self.steps.append(step)
        if step == self._fails_at:
            raise ArtifactError(f"step {step} is damaged")
        return step


@pytest.mark.parametrize("readers", [1, 2, 3])
def test_no_more_steps_are_read_ahead_than_there_are_readers(readers):
    slow = _Slow()
    with Prefetch(slow, readers) as sampler:
        for step in range(6):
            assert sampler.batch(step) == step
            time.sleep(0.02)
            assert max(slow.steps) <= step + readers
    assert sorted(slow.steps) == list(range(6 + readers))
    assert _no_threads()


def test_what_a_reader_raises_is_raised_at_its_step():
    with Prefetch(_Slow(fails_at=4), 3) as sampler:
        for step in range(4):
            assert sampler.batch(step) == step
        with pytest.raises(ArtifactError, match="step 4 is damaged"):
            sampler.batch(4)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_readers_end_with_whatever_ends_the_training(error):
    def interrupted() -> None:
        with Prefetch(_Slow(), 3) as sampler:
            sampler.batch(0)
            raise error

    with pytest.raises(error):
        interrupted()
    assert _no_threads()
