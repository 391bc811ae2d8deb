"""Gradients on several ranks: DDP and FSDP against sums made by hand and against one rank."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from torch import Tensor

from conftest import encoder_config, model_bytes, on_ranks, rnn_config
from smtkit.config import Config
from subprocesses import python

Results = dict[tuple[int, str, int], list[Any]]


def torchrun(ranks: int, out: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    process = python(*launcher, toy.__file__, out)
    assert process.returncode == 0, process.stderr


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    """What each rank computed, by (ranks, sharding, accumulation)."""
    found: Results = {}
    for ranks in (1, 2, 3):
        out = tmp_path_factory.mktemp("toy")
        if ranks == 1:
            with pytest.MonkeyPatch.context() as patch:
                for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
                    patch.setenv(name, value)
                toy.main(out)
        else:
            torchrun(ranks, out)
        by_rank = [torch.load(out / f"{rank}.pt") for rank in range(ranks)]
        for case in toy.CASES:
            found[ranks, *case] = [results[case] for results in by_rank]
    return found


def gradients_by_hand() -> dict[str, Tensor]:
    """First gradient of 2 * mean squared error of the counted rows + 0.5 * mean squared output."""
    network = toy.Network()
    batch = toy.RowSampler().batch(0)
    errors, sizes = [], []
    for inputs, outputs, counted in zip(batch.inputs, batch.outputs, batch.counted, strict=True):
        hidden = torch.tanh(network.used[0].weight @ inputs + network.used[0].bias)
        predicted = network.used[1].weight @ hidden + network.used[1].bias
        predicted = predicted * network.scale + network.frozen
        sizes.append(predicted.square().sum())
        if counted:
            errors.append((predicted - outputs).square().sum())
    loss = 2 * sum(errors) / len(errors) + 0.5 * sum(sizes) / len(sizes)
    names, parameters = zip(
        *((n, p) for n, p in network.named_parameters() if p.requires_grad), strict=True
    )
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {n: g for n, g in zip(names, found, strict=True) if g is not None}


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize(("sharding", "accumulation"), toy.CASES)
def test_gradients_are_those_of_the_whole_batch_on_every_rank(
    results, ranks, sharding, accumulation
):
    """Counts differ between ranks and parts, and some parts count nothing."""
    expected = gradients_by_hand()
    for gradients, _ in results[ranks, sharding, accumulation]:
        for name, gradient in expected.items():
            torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize(("sharding", "accumulation"), toy.CASES)
def test_the_same_parameters_have_a_gradient_as_on_one_rank(results, ranks, sharding, accumulation):
    """No gradient is missing; parameters of no term have none, so that AdamW skips them."""
    ((alone, alone_weights),) = results[1, "none", accumulation]
    for gradients, weights in results[ranks, sharding, accumulation]:
        assert len(gradients) == len(alone) == toy.STEPS
        for found, expected in zip(gradients, alone, strict=True):
            assert found.keys() == expected.keys()
            assert not any(name.startswith(("unused", "frozen")) for name in found)
            assert not found["weight_zero.weight"].any()
            for name, gradient in expected.items():
                torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
        for name, weight in alone_weights.items():
            torch.testing.assert_close(weights[name], weight, rtol=1e-5, atol=1e-6)


def test_resume_is_bit_equal_on_three_ranks(pipeline, tmp_path):
    """From three ranks on, the order in which gradients are added changes their sum."""
    stages: list[tuple[str, Callable[..., Config], Path]] = [
        ("train_encoder", encoder_config, pipeline.tokens),
        ("train_rnn", rnn_config, pipeline.labels),
    ]
    jobs, pairs = [], []
    for sharding in ("none", "fsdp"):
        training = {"batch_size": 12, "checkpoint_every": 1000, "sharding": sharding}
        for stage, config, source in stages:
            straight, stopped = (tmp_path / f"{stage}-{sharding}-{end}" for end in "ab")
            job = stage, config(training=training), source
            jobs.append((*job, straight))
            jobs.append((*job, stopped, {"stop_at": 5}))
            jobs.append((*job, stopped, {"resume": True}))
            pairs.append((straight, stopped))
    printed = on_ranks(3, *jobs)

    assert printed.count("stopped by SIGTERM; saved at step 5") == 3 * len(pairs)
    for straight, stopped in pairs:
        assert model_bytes(stopped) == model_bytes(straight)
