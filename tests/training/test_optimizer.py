"""The learning rate of each step, and which weights decay."""

import math

import pytest
import torch
from regression import (
    Regression,
    reported,
    trainer,
    training_config,
)

from smtkit.training.optimizer import schedule


def test_the_constant_schedule_is_constant_after_warmup():
    config = training_config(warmup_steps=4, schedule="constant")
    factors = [schedule(config, step, step / 10) for step in range(8)]

    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])


def test_the_cosine_schedule_falls_to_zero():
    config = training_config(warmup_steps=0, schedule="cosine")
    shares = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5]
    expected = [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0, 0]

    assert [schedule(config, 7, share) for share in shares] == pytest.approx(expected)


def test_warm_up_multiplies_the_cosine():
    config = training_config(warmup_steps=4, schedule="cosine")

    assert schedule(config, 1, 0.5) == pytest.approx(0.5 * 0.5)


def test_the_learning_rate_of_each_step_follows_the_schedule(tmp_path):
    config = training_config(max_steps=5, schedule="cosine", warmup_steps=2)
    trainer(tmp_path, Regression(), config).run()
    rates = [record["learning_rate"] for record in reported(tmp_path, "train")]
    expected = [
        0.1 * min(1, (step + 1) / 2) * 0.5 * (1 + math.cos(math.pi * step / 5)) for step in range(5)
    ]

    assert rates == pytest.approx(expected)


def test_only_matrices_decay(tmp_path):
    method = Regression(lambda step: 0.0)
    weight, bias = (p.detach().clone() for p in method.network.parameters())
    config = training_config(learning_rate=0.1, weight_decay=0.5, max_steps=3)
    trainer(tmp_path, method, config).run()

    torch.testing.assert_close(method.network.weight.detach(), weight * (1 - 0.1 * 0.5) ** 3)
    assert torch.equal(method.network.bias, bias)


def test_frozen_weights_do_not_change(tmp_path):
    method = Regression()
    method.network.bias.requires_grad_(False)
    before = method.network.bias.clone()
    trainer(tmp_path, method, training_config(weight_decay=0.5)).run()

    assert torch.equal(method.network.bias, before)
