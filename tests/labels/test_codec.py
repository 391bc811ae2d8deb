"""Codecs: what each type of stored memory keeps, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from made_labels import made, normal

from conftest import rnn_config
from smtkit.config import (
    ExtractLabelsConfig,
    RolloutConfig,
    TrainRnnConfig,
    TransitionObjectiveConfig,
)
from smtkit.errors import ArtifactError
from smtkit.labels.codec import CODECS
from smtkit.labels.reader import LabelShards
from smtkit.methods.dmt import RolloutSampler
from smtkit.methods.smt import TransitionSampler
from smtkit.stages import extract_labels, train_rnn

DTYPES = list(CODECS)
# Largest relative error of a number: half of its last bit.
SHARE = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 0.0}
finite = st.floats(-(2.0**15), 2.0**15, width=32).filter(lambda x: x == 0 or abs(x) > 1e-30)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@given(memory=arrays(np.float32, array_shapes(min_dims=3, max_dims=3), elements=finite))
def test_floats_come_back_to_half_of_their_last_bit(dtype, memory):
    columns = CODECS[dtype].encode(torch.from_numpy(memory))
    back = CODECS[dtype].decode(columns).numpy()

    assert columns.keys() == {"memory"}
    smallest = 2.0**-25 if dtype == "float16" else 0.0  # half of a subnormal's last bit
    assert (
        np.abs(back.astype(np.float64) - memory) <= SHARE[dtype] * np.abs(memory) + smallest
    ).all()


@given(memory=arrays(np.float32, array_shapes(min_dims=3, max_dims=3), elements=finite))
def test_int8_is_off_by_no_more_than_half_a_step_of_its_slot(memory):
    columns = CODECS["int8"].encode(torch.from_numpy(memory))
    back = CODECS["int8"].decode(columns).numpy()
    step = columns["scale"].numpy().astype(np.float64)[..., None]

    largest = np.abs(memory).max(-1, keepdims=True).astype(np.float64)
    np.testing.assert_allclose(step, largest / 127, rtol=1e-6)
    assert (np.abs(back.astype(np.float64) - memory) <= step / 2 * (1 + 1e-4)).all()


@given(
    steps=arrays(np.int8, (3, 2, 5), elements=st.integers(-127, 127)),
    exponent=st.integers(-60, 60),
    factor=st.integers(1, 2**15),
)
def test_int8_is_exact_on_its_grid(steps, exponent, factor):
    steps[..., 0] = 127
    memory = (steps * (factor * 2.0**exponent)).astype(np.float32)
    columns = CODECS["int8"].encode(torch.from_numpy(memory))

    assert (columns["memory"].numpy() == steps).all()
    assert (CODECS["int8"].decode(columns).numpy() == memory).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_batches_carry_the_numbers_as_they_are_stored(tmp_path, dtype):
    labels = made(tmp_path / "train-00000.arrow", normal(8, 7, 2, 3), dtype)
    for sampler in _samplers(labels):
        batch = sampler.batch(0)
        columns = batch.memory.columns
        assert columns["memory"].dtype == getattr(torch, dtype)
        assert batch.after.dtype == torch.float32
        if dtype == "int8":
            assert columns["scale"].shape == columns["memory"].shape[:2]
        else:
            assert columns.keys() == {"memory"}


@pytest.fixture(scope="module", params=DTYPES)
def extracted(request, pipeline, tmp_path_factory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("labels") / request.param
    extract_labels.run(
        ExtractLabelsConfig(dtype=request.param), pipeline.encoder, pipeline.tokens, out
    )
    return request.param, out


@pytest.mark.parametrize("method", ["smt", "dmt"])
def test_an_rnn_is_trained_from_labels_of_each_type(pipeline, extracted, tmp_path, method):
    dtype, labels = extracted
    settings = rnn_config().model_dump(exclude_unset=True)
    settings = {**settings, "method": method, "data": {}}
    found, expected = (
        train_rnn.run(TrainRnnConfig(**settings), source, tmp_path / name).statistics["validation"]
        for name, source in (("found", labels), ("float16", pipeline.labels))
    )

    for name in ("dynamics", "readout"):
        assert found[name] == pytest.approx(expected[name], rel=0.02), dtype


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        ("float16", 70_000.0, "holds 70000.0, which float16 cannot represent"),
        ("float16", float("nan"), "not finite"),
        ("bfloat16", float("inf"), "not finite"),
        ("bfloat16", 3.4e38, "which bfloat16 cannot represent"),
        ("float32", float("nan"), "not finite"),
        ("int8", float("-inf"), "not finite"),
        ("int8", float("nan"), "not finite"),
    ],
)
def test_a_memory_that_does_not_fit_is_refused_and_named(tmp_path, dtype, value, message):
    memory = normal(4, 7, 2, 3)
    memory[2, 5, 1, 0] = value
    with pytest.raises(
        ArtifactError, match=f"train-00000.arrow: row 2: the window at token 2 .*{message}"
    ):
        made(tmp_path / "train-00000.arrow", memory, dtype)
    assert list(tmp_path.iterdir()) == []


def test_extraction_leaves_nothing_half_written_of_an_encoder_that_overflows(
    pipeline, tmp_path, monkeypatch
):
    of_encoder = extract_labels._Extraction._memories
    monkeypatch.setattr(
        extract_labels._Extraction, "_memories", lambda *given: 1e5 * of_encoder(*given)
    )
    with pytest.raises(ArtifactError, match="row 0: the window at token 0") as e:
        extract_labels.run(
            ExtractLabelsConfig(), pipeline.encoder, pipeline.tokens, tmp_path / "out"
        )
    assert "`dtype`" in str(e.value.hint)
    assert not (tmp_path / "out").exists()


def _samplers(labels: LabelShards) -> list:
    objective = TransitionObjectiveConfig(kl_weight=1.0, kl_positions=2, noise=1.0)
    settings = {"batch_size": 4, "seed": 3}
    return [
        TransitionSampler(labels, objective, positions=2, **settings),
        TransitionSampler(labels, objective, positions=9, **settings),
        RolloutSampler(labels, objective, rollout=RolloutConfig(depth=3), **settings),
    ]
