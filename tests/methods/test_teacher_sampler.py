"""The positions that the teacher is trained at."""

import numpy as np
import pytest
import torch

from conftest import write_stream
from smtkit.config import PredictiveStateConfig
from smtkit.corpus.shards import TokenShards
from smtkit.corpus.windows import TextWindows
from smtkit.methods.predictive_state import TeacherSampler


def _stream(directory, length: int) -> tuple[TokenShards, list[int]]:
    # No zeros, so that padding cannot be taken for a token.
    tokens = [1 + (7 * i) % 250 for i in range(length)]
    half = length // 2
    return write_stream(directory, [[tokens[:half]], [tokens[half:]]]), tokens


def _sampler(stream: TokenShards, batch_size: int = 6, **changes: object) -> TeacherSampler:
    counts = {"anchors": 3, "dynamics_positions": 5, "uniformity_positions": 4}
    objective = PredictiveStateConfig(**{"future_length": 2, **counts, **changes})
    return TeacherSampler(TextWindows(stream, 8, 2), objective, batch_size=batch_size, seed=1)


@pytest.mark.parametrize("length", [3, 9, 41])
def test_positions_of_a_teacher_batch_lie_in_its_rows(tmp_path, length):
    stream, _ = _stream(tmp_path, length)
    for step in range(20):
        batch = _sampler(stream).batch(step)
        assert batch.length.min() >= 1
        assert batch.length.max() <= 8
        for positions, last in (
            (batch.anchors, batch.length),
            (batch.uniformity_positions, batch.length),
            (batch.dynamics_positions, batch.length - 1),
        ):
            assert positions.min() >= 0
            assert (positions <= last[:, None]).all()


def test_slices_of_a_teacher_batch_make_the_whole(tmp_path):
    sampler = _sampler(_stream(tmp_path, 100)[0])
    whole = sampler.batch(4)
    slices = [sampler.batch(4, part, 3) for part in range(3)]

    for name in vars(whole):
        joined = np.concatenate([getattr(piece, name).numpy() for piece in slices])
        assert (joined == getattr(whole, name).numpy()).all(), name


def test_a_teacher_batch_does_not_depend_on_what_was_read_before(tmp_path):
    stream, _ = _stream(tmp_path, 100)
    fresh, used = _sampler(stream), _sampler(stream)
    for step in range(5):
        used.batch(step)

    for name, values in vars(fresh.batch(5)).items():
        assert (values == getattr(used.batch(5), name)).all(), name


def test_anchors_and_uniformity_positions_are_drawn_apart_where_their_numbers_differ(tmp_path):
    stream, _ = _stream(tmp_path, 100)
    some = _sampler(stream, anchors=3, uniformity_positions=4).batch(0)
    others = _sampler(stream, anchors=4, uniformity_positions=3).batch(0)

    assert (some.anchors != others.uniformity_positions).any()
    assert (others.anchors != some.uniformity_positions).any()


def test_aligned_windows_draw_the_same_uniformity_positions_also_in_parts(tmp_path):
    stream, _ = _stream(tmp_path, 100)
    aligned = {"uniformity_pairs": "aligned", "uniformity_group": 4}
    sampler = _sampler(stream, batch_size=8, uniformity_positions=3, **aligned)
    differ = False
    for step in range(10):
        batch = sampler.batch(step)
        drawn = batch.uniformity_positions
        halves = [
            half[length == 8]
            for half, length in zip(drawn.chunk(2), batch.length.chunk(2), strict=False)
        ]
        for half in halves:
            assert (half == half[0]).all()
        differ |= bool((halves[0][0] != halves[1][0]).any())
        parts = [sampler.batch(step, part, 2).uniformity_positions for part in range(2)]
        assert torch.equal(torch.cat(parts), drawn)

    assert differ


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("length", [3, 9, 100])
def test_as_many_positions_as_anchors_are_the_anchors(tmp_path, length, count):
    sampler = _sampler(
        _stream(tmp_path, length)[0],
        anchors=count,
        dynamics_positions=count,
        uniformity_positions=count,
    )
    last = 0
    for step in range(20):
        batch = sampler.batch(step)
        assert (batch.uniformity_positions == batch.anchors).all()
        ends = batch.anchors == batch.length[:, None]
        last += int(ends.sum())
        assert (batch.dynamics_positions[~ends] == batch.anchors[~ends]).all()
        assert (batch.dynamics_positions[ends] == batch.anchors[ends] - 1).all()

    assert last > 0
