"""Sampling: sequences side by side, each from its own distribution."""

import math
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import (
    architecture,
    uniforms,
)
from smtkit.config import (
    CellConfig,
    DecoderConfig,
    ReadoutConfig,
)
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.networks.sampling import sample_each


def small_network(readout: str = "mlp") -> RecurrentNetwork:
    torch.manual_seed(0)
    network = RecurrentNetwork(
        architecture(
            vocabulary_size=5,
            slots=2,
            slot_width=4,
            cell=CellConfig(kind="mlp", width=16),
            readout=ReadoutConfig(kind=readout, hidden=16),
            decoder=DecoderConfig(width=16, layers=1, heads=2),
        )
    ).double()
    with torch.no_grad():
        network.empty_memory.copy_(torch.randn(2, 4))
    return network.eval()


@pytest.mark.parametrize("readout", ["mlp", "decoder"])
@pytest.mark.parametrize("given", [0, 1, 6])
def test_completions_side_by_side_are_those_of_one_sequence_each(readout: str, given: int) -> None:
    network = small_network(readout)
    prompts = torch.randint(5, (7, given))
    completed = network.complete(prompts, 9, temperature=0)
    assert completed.shape == (7, 9)
    for prompt, completion in zip(prompts.tolist(), completed.tolist(), strict=True):
        alone = islice(network.generate(prompt, temperature=0), 9)
        assert completion == list(alone)


def test_a_step_of_all_sequences_is_one_call() -> None:
    network, calls = small_network(), []
    network.transition.register_forward_pre_hook(lambda cell, inputs: calls.append(inputs[0].shape))
    network.complete(torch.zeros(50, 3, dtype=torch.int64), 4)
    assert set(calls) == {(50, 2, 4)}
    assert len(calls) <= 3 + 4


def test_no_steps_complete_nothing() -> None:
    assert small_network().complete(torch.zeros(2, 3, dtype=torch.int64), 0).shape == (2, 0)


def test_draws_side_by_side_differ_and_repeat_with_the_seed() -> None:
    network, prompts = small_network(), torch.zeros(20, 0, dtype=torch.int64)
    first, again, other = (
        network.complete(prompts, 12, uniforms=uniforms(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({tuple(row) for row in first.tolist()}) > 10


def frequencies(logits: Tensor, draws: int, **settings: Any) -> Tensor:
    """(N, V): how often each token is drawn from each row of logits (N, V)."""
    source = uniforms(3)
    many = logits.repeat(draws, 1)
    tokens = sample_each(many, uniforms=source, **settings).view(draws, len(logits))
    return torch.stack([(tokens == token).double().mean(0) for token in range(logits.shape[1])], 1)


LOGITS = torch.tensor([[1.0, 3.0, 0.0, 2.0, -1.0], [0.0, 0.0, 0.0, 0.0, 9.0], [0.5, -2, 1.5, 1, 0]])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_each_row_of_logits_is_drawn_from_its_own_softmax(temperature: float) -> None:
    draws = 20_000
    expected = (LOGITS.double() / temperature).softmax(-1)
    found = frequencies(LOGITS, draws, temperature=temperature)
    assert ((found - expected).abs() <= 4.5 * (expected * (1 - expected) / draws).sqrt()).all()


@pytest.mark.parametrize("settings", [{"top_k": 1}, {"top_k": 3}, {"top_p": 0.6}, {"top_p": 0.9}])
def test_each_row_of_logits_has_its_own_likeliest(settings: dict[str, Any]) -> None:
    draws = 20_000
    found = frequencies(LOGITS, draws, **settings)
    for row, logits in enumerate(LOGITS.tolist()):
        total = sum(math.exp(logit) for logit in logits)
        probability = {token: math.exp(logit) / total for token, logit in enumerate(logits)}
        kept, mass = [], 0.0
        for token in sorted(probability, key=lambda token: -logits[token]):
            if len(kept) == settings.get("top_k") or mass >= settings.get("top_p", 2):
                break
            kept.append(token)
            mass += probability[token]
        for token, p in probability.items():
            expected = p / mass if token in kept else 0.0
            spread = math.sqrt(expected * (1 - expected) / draws)
            assert abs(float(found[row, token]) - expected) <= 4.5 * spread


def test_temperature_zero_takes_the_likeliest_of_one_row() -> None:
    for row in LOGITS:
        assert int(sample_each(row[None], temperature=0)) == int(row.argmax())


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-40, 1e-50, 5e-324])
def test_temperatures_near_zero_take_the_likeliest_of_each_row(temperature: float) -> None:
    assert sample_each(LOGITS, temperature).tolist() == [1, 4, 2]
