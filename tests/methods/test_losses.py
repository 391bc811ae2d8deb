"""The losses, against closed forms and loops."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from smtkit import IGNORE
from smtkit.methods.losses import cross_entropy, dynamics, memory_health, uniformity


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_cross_entropy_sums_over_targets_that_are_not_ignored():
    logits = torch.randn(2, 3, 5)
    targets = torch.tensor([[4, IGNORE, 0], [IGNORE, IGNORE, 2]])
    expected = 0.0
    for row, column in [(0, 0), (0, 2), (1, 2)]:
        values = logits[row, column].tolist()
        normaliser = math.log(sum(math.exp(value) for value in values))
        expected += normaliser - values[targets[row, column]]

    assert float(cross_entropy(logits, targets)) == pytest.approx(expected, rel=1e-5)


def test_cross_entropy_of_equal_logits_is_the_logarithm_of_the_vocabulary():
    total = cross_entropy(torch.zeros(4, 256), torch.tensor([0, 9, 99, 255]))

    assert float(total) == pytest.approx(4 * math.log(256))


def test_cross_entropy_without_a_target_is_zero_with_zero_gradients():
    logits = torch.randn(6, 5, requires_grad=True)
    total = cross_entropy(logits, torch.full((6,), IGNORE))
    total.backward()

    assert total.item() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_cross_entropy_of_no_rows_is_zero():
    assert float(cross_entropy(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))) == 0


def test_dynamics_is_the_mean_squared_error_of_a_memory_summed_over_memories():
    predicted, memory = torch.randn(2, 4, 3, 5)
    expected = sum(
        sum(
            (float(predicted[n, k, d]) - float(memory[n, k, d])) ** 2
            for k in range(3)
            for d in range(5)
        )
        / 15
        for n in range(4)
    )

    assert float(dynamics(predicted, memory)) == pytest.approx(expected, rel=1e-5)


def test_dynamics_of_half_precision_labels_is_computed_in_full_precision():
    predicted, memory = torch.full((1, 2, 8), 1.0), torch.full((1, 2, 8), 1.0009765625)

    assert float(dynamics(predicted, memory.half())) == pytest.approx(0.0009765625**2, rel=1e-6)


def _naive_uniformity(memory: np.ndarray) -> float:
    """Of one group (N, K, D): a double loop over pairs, for each slot."""
    count, slots, _ = memory.shape
    per_slot = []
    for slot in range(slots):
        terms = []
        for a in range(count):
            for b in range(count):
                if a != b:
                    one, other = (memory[i, slot] / np.linalg.norm(memory[i, slot]) for i in (a, b))
                    terms.append(math.exp(-2 * float(((one - other) ** 2).sum())))
        per_slot.append(math.log(sum(terms) / len(terms)))
    return sum(per_slot) / slots


def test_uniformity_equals_a_double_loop_over_pairs():
    memory = torch.randn(3, 6, 2, 4, dtype=torch.float64)
    expected = [_naive_uniformity(group.numpy()) for group in memory]

    assert uniformity(memory).tolist() == pytest.approx(expected, rel=1e-4)


def test_uniformity_compares_no_memories_of_different_groups():
    memory = torch.randn(3, 6, 2, 4)
    other = memory.clone()
    other[1] = torch.randn(6, 2, 4)

    assert uniformity(memory)[[0, 2]].tolist() == uniformity(other)[[0, 2]].tolist()


def test_uniformity_of_equal_memories_is_zero():
    memory = torch.randn(1, 1, 3, 8).expand(1, 20, 3, 8)

    assert float(uniformity(memory)) == pytest.approx(0, abs=1e-5)


def test_uniformity_of_constant_but_different_slots_is_zero():
    # Pooled over slots, pairs of different slots would hide the collapse: about -1.35 for K = 4.
    slots = F.one_hot(torch.arange(4), 8).float()
    memory = slots.expand(1, 20, 4, 8)

    assert float(uniformity(memory)) == pytest.approx(0, abs=1e-5)


def test_uniformity_of_opposite_memories():
    memory = torch.tensor([[[[1.0, 0.0]], [[-1.0, 0.0]]]])

    assert float(uniformity(memory)) == pytest.approx(-8)


def test_uniformity_does_not_depend_on_the_length_of_a_slot():
    memory = torch.randn(1, 6, 2, 4)
    lengths = torch.rand(1, 6, 2, 1) + 0.1

    assert float(uniformity(memory * lengths)) == pytest.approx(float(uniformity(memory)), rel=1e-4)


def test_uniformity_falls_along_its_gradient():
    memory = torch.randn(1, 6, 2, 4, requires_grad=True)
    before = uniformity(memory).sum()
    before.backward()

    assert uniformity(memory - 0.01 * memory.grad).sum().item() < before.item()


def _along_axes(lengths: list[float], width: int = 24) -> torch.Tensor:
    """Memories +-length e_k for each axis k: covariance with eigenvalues length^2."""
    rows = torch.zeros(2 * len(lengths), width)
    for axis, length in enumerate(lengths):
        rows[2 * axis, axis] = length
        rows[2 * axis + 1, axis] = -length
    return rows.view(-1, 3, width // 3)


@pytest.mark.parametrize("rank", [1, 2, 5, 12])
def test_effective_rank_of_equal_eigenvalues_is_their_number(rank):
    health = memory_health(_along_axes([2.0] * rank) + 3)

    assert health["effective_rank"] == pytest.approx(rank, rel=1e-3)


def test_effective_rank_is_the_exponential_of_the_entropy_of_the_eigenvalues():
    lengths = [1.0, 2.0, 3.0]
    shares = [length**2 / 14 for length in lengths]
    entropy = -sum(share * math.log(share) for share in shares)
    health = memory_health(_along_axes(lengths))

    assert health["effective_rank"] == pytest.approx(math.exp(entropy), rel=1e-4)


def test_variance_is_the_mean_over_numbers_of_their_variance():
    memory = torch.randn(10, 3, 4) + 7
    expected = memory.flatten(1).numpy().astype(np.float64).var(axis=0).mean()

    assert memory_health(memory)["variance"] == pytest.approx(expected, rel=1e-4)


def test_the_health_of_collapsed_memories():
    health = memory_health(torch.randn(1, 3, 4).expand(10, 3, 4))

    assert health["uniformity"] == pytest.approx(0, abs=1e-5)
    assert health["variance"] == pytest.approx(0, abs=1e-10)
    assert health["effective_rank"] < 1.5


def test_the_health_of_spread_memories():
    health = memory_health(torch.randn(500, 3, 4))

    assert health["uniformity"] < -1.5
    assert health["variance"] == pytest.approx(1, rel=0.1)
    assert health["effective_rank"] > 11


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_the_health_of_memories_that_are_not_finite(value):
    memory = torch.randn(10, 3, 4)
    memory[3, 1, 2] = value

    assert all(map(math.isnan, memory_health(memory).values()))
