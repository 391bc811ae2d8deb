"""Attention, rotary positions and convolution, against slow second ways to the same numbers."""

import cmath
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from smtkit.networks.transformer import (
    Attention,
    CausalConvolution,
    GatedMlp,
    Transformer,
    rotary,
    rotate,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _differs(one: torch.Tensor, other: torch.Tensor) -> bool:
    return not torch.allclose(one, other, rtol=0, atol=1e-9)


def test_products_of_rotated_vectors_depend_on_their_distance_alone():
    query, key = torch.randn(2, 8, dtype=torch.float64)
    rotation = rotary(20, 8, torch.device("cpu"), torch.float64)
    queries, keys = (rotate(vector.expand(1, 1, 20, -1), rotation)[0, 0] for vector in (query, key))
    products = queries @ keys.T

    for distance in range(-10, 11):
        diagonal = products.diagonal(distance)
        # The angles are computed in float32.
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-4)
    assert _differs(products.diagonal(0)[:10], products.diagonal(1)[:10])


def _rotated(vector: list[float], position: int) -> list[complex]:
    """Pairs (first half, second half) as complex numbers, turned by their angles."""
    half = len(vector) // 2
    return [
        complex(vector[k], vector[half + k])
        * cmath.exp(1j * position / 10_000 ** (2 * k / len(vector)))
        for k in range(half)
    ]


def _naive_attention(attention: Attention, inputs: np.ndarray, *, causal: bool) -> np.ndarray:
    """Attention of one sequence (L, C), one head and one pair of positions at a time."""
    length, width = inputs.shape
    head_width = width // attention.heads
    weight = attention.query_key_value.weight.detach().numpy()
    query, key, value = ((inputs @ weight.T)[:, n * width : (n + 1) * width] for n in range(3))
    mixed = np.zeros((length, width))
    for head in range(attention.heads):
        own = slice(head * head_width, (head + 1) * head_width)
        for i in range(length):
            turned = _rotated(query[i, own].tolist(), i)
            seen = range(i + 1) if causal else range(length)
            scores = [
                sum(
                    (q * k.conjugate()).real
                    for q, k in zip(turned, _rotated(key[j, own].tolist(), j), strict=True)
                )
                / math.sqrt(head_width)
                for j in seen
            ]
            shares = np.exp(scores) / np.exp(scores).sum()
            mixed[i, own] = sum(
                share * value[j, own] for share, j in zip(shares, seen, strict=True)
            )
    return mixed @ attention.output.weight.detach().numpy().T


@pytest.mark.parametrize("causal", [True, False])
def test_attention_equals_a_loop_over_pairs_of_positions(causal):
    attention = Attention(16, 2, causal=causal).double()
    inputs = torch.randn(2, 6, 16, dtype=torch.float64)
    rotation = rotary(6, 8, inputs.device, inputs.dtype)
    mixed = attention(inputs, rotation).detach().numpy()

    for row in range(2):
        expected = _naive_attention(attention, inputs[row].numpy(), causal=causal)
        np.testing.assert_allclose(mixed[row], expected, atol=1e-5)


def test_a_transformer_tells_the_order_of_its_inputs():
    transformer = Transformer(16, 1, 2, causal=False).double()
    inputs = torch.randn(1, 5, 16, dtype=torch.float64)
    reversed_twice = transformer(inputs.flip(1)).flip(1)

    assert _differs(transformer(inputs), reversed_twice)


@pytest.mark.parametrize("kernel", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 3, 9])
def test_the_causal_convolution_is_a_grouped_convolution(kernel, length):
    convolution = CausalConvolution(16, kernel).double()
    inputs = torch.randn(2, length, 16, dtype=torch.float64)
    padded = F.pad(inputs.transpose(1, 2), (kernel - 1, 0))
    expected = F.conv1d(padded, convolution.weight.T[:, None], groups=16).transpose(1, 2)

    torch.testing.assert_close(convolution(inputs), expected)


def test_an_mlp_of_two_thirds_has_as_many_weights_as_one_of_four_widths():
    weights = sum(parameter.numel() for parameter in GatedMlp(96).parameters())

    assert weights == 2 * 96 * 4 * 96


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("missing", [0, 1, 4])
@pytest.mark.parametrize("convolution", [0, 3])
def test_masked_inputs_change_no_other_output(causal, missing, convolution):
    transformer = Transformer(16, 2, 2, causal=causal, convolution=convolution).double()
    inputs = torch.randn(3, 6, 16, dtype=torch.float64)
    mask = torch.arange(6).expand(3, -1) >= missing

    padded, alone = transformer(inputs, mask), transformer(inputs[:, missing:])
    torch.testing.assert_close(padded[:, missing:], alone)
    assert padded.isfinite().all()
