"""Samples of tokens, against the probabilities they are drawn from."""

import math
from collections import Counter

import pytest
import torch

from conftest import uniforms
from smtkit.networks.sampling import sample_each


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


LOGITS = [1.0, 3.0, 0.0, 2.0, -1.0]


def _sample(**settings) -> int:
    return int(sample_each(torch.tensor([LOGITS]), **settings))


def _softmax(logits: list[float]) -> list[float]:
    exponentials = [math.exp(logit) for logit in logits]
    return [value / sum(exponentials) for value in exponentials]


def _kept(probabilities: list[float], tokens: set[int]) -> list[float]:
    total = sum(probabilities[token] for token in tokens)
    return [p / total if token in tokens else 0.0 for token, p in enumerate(probabilities)]


# softmax(LOGITS) is about 0.086, 0.636, 0.032, 0.234, 0.012
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, _softmax(LOGITS)),
        ({"temperature": 2.0}, _softmax([logit / 2 for logit in LOGITS])),
        ({"temperature": 0.5}, _softmax([logit * 2 for logit in LOGITS])),
        ({"top_k": 1}, _kept(_softmax(LOGITS), {1})),
        ({"top_k": 3}, _kept(_softmax(LOGITS), {0, 1, 3})),
        ({"top_k": 99}, _softmax(LOGITS)),
        ({"top_p": 0.1}, _kept(_softmax(LOGITS), {1})),
        ({"top_p": 0.6}, _kept(_softmax(LOGITS), {1})),
        ({"top_p": 0.65}, _kept(_softmax(LOGITS), {1, 3})),
        ({"top_p": 0.9}, _kept(_softmax(LOGITS), {0, 1, 3})),
        ({"top_p": 1.0}, _softmax(LOGITS)),
        # Among the two likeliest alone, token 1 has probability 0.73.
        ({"top_k": 2, "top_p": 0.7}, _kept(_softmax(LOGITS), {1})),
    ],
)
def test_samples_follow_their_distribution(settings, expected):
    draws = 3000
    source = uniforms(1)
    counts = Counter(_sample(uniforms=source, **settings) for _ in range(draws))

    for token, probability in enumerate(expected):
        deviation = math.sqrt(probability * (1 - probability) / draws)
        assert abs(counts[token] / draws - probability) <= 4 * deviation


def test_a_temperature_of_zero_takes_the_likeliest():
    assert {_sample(temperature=0) for _ in range(20)} == {1}


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-40])
def test_a_temperature_near_zero_takes_the_likeliest(temperature):
    assert {_sample(temperature=temperature) for _ in range(20)} == {1}


def test_each_token_takes_one_number() -> None:
    """In the order of the vocabulary; a number at the very end, or a token that is left out, is
    never one of probability zero."""
    logits = torch.tensor([[0.25, 0.5, 0.25, 0.0]]).log()
    for number, token in (
        (0.0, 0),
        (0.2499, 0),
        (0.2501, 1),
        (0.7499, 1),
        (0.7501, 2),
        (0.9999, 2),
    ):
        drawn = sample_each(logits, uniforms=lambda count, u=number: torch.tensor([u]).double())
        assert int(drawn) == token
        only = sample_each(
            logits, top_k=1, uniforms=lambda count, u=number: torch.tensor([u]).double()
        )
        assert int(only) == 1


def test_rows_take_their_numbers_in_order() -> None:
    logits = torch.zeros(4, 8)
    numbers = torch.tensor([0.9, 0.1, 0.5, 0.0]).double()
    assert sample_each(logits, uniforms=lambda count: numbers[:count]).tolist() == [7, 0, 4, 0]
