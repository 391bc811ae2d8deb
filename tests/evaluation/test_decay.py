"""Fits of decay, against curves with a given law."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtkit.evaluation.decay import FLAT, FLOOR, fit_decay

DISTANCES = [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]


def _power(exponent: float, scale: float = 2.0) -> list[float]:
    return [scale * max(d, 0.5) ** -exponent for d in DISTANCES]


def _exponential(length: float, scale: float = 2.0) -> list[float]:
    return [scale * math.exp(-d / length) for d in DISTANCES]


@given(st.floats(0.3, 6) | st.floats(-6, -0.3), st.floats(1e-3, 1e3))
def test_a_power_law_is_found(exponent, scale):
    decay = fit_decay(DISTANCES, _power(exponent, scale))

    assert decay.better == "power law"
    assert decay.left_out == 0
    assert decay.power_law.exponent == pytest.approx(exponent)
    assert decay.power_law.scale == pytest.approx(scale)
    assert decay.power_law.r_squared == pytest.approx(1)
    assert decay.power_law.residual == pytest.approx(0, abs=1e-9)
    assert decay.exponential.residual > 1e-3


@given(st.floats(1, 60) | st.floats(-60, -1), st.floats(1e-3, 1e3))
def test_an_exponential_is_found(length, scale):
    decay = fit_decay(DISTANCES, _exponential(length, scale))

    assert decay.better == "exponential"
    assert decay.exponential.length == pytest.approx(length)
    assert decay.exponential.scale == pytest.approx(scale)
    assert decay.exponential.r_squared == pytest.approx(1)
    assert decay.power_law.residual > decay.exponential.residual


@pytest.mark.parametrize("seed", range(5))
def test_noise_does_not_hide_the_law(seed):
    noise = np.exp(np.random.default_rng(seed).normal(0, 0.1, len(DISTANCES)))
    power = fit_decay(DISTANCES, (_power(1.5) * noise).tolist())
    exponential = fit_decay(DISTANCES, (_exponential(8) * noise).tolist())

    assert (power.better, exponential.better) == ("power law", "exponential")
    assert power.power_law.exponent == pytest.approx(1.5, rel=0.1)
    assert exponential.exponential.length == pytest.approx(8, rel=0.1)
    assert 0.95 < power.power_law.r_squared < 1
    assert 0.01 < power.power_law.residual < 0.3


def test_fits_are_least_squares():
    """Compared with the normal equations, on norms that follow neither law."""
    norms = np.random.default_rng(0).uniform(0.1, 10, len(DISTANCES))
    distance, log_norm = np.array(DISTANCES[1:]), np.log(norms[1:])
    decay = fit_decay(DISTANCES, norms.tolist())

    def line(x, y):
        matrix = np.array([[np.sum(x * x), np.sum(x)], [np.sum(x), len(x)]])
        return np.linalg.solve(matrix, [np.sum(x * y), np.sum(y)])

    slope, intercept = line(np.log(distance), log_norm)
    left = log_norm - intercept - slope * np.log(distance)
    rate, _ = line(distance, log_norm)

    assert decay.power_law.exponent == pytest.approx(-slope)
    assert decay.power_law.scale == pytest.approx(math.exp(intercept))
    assert decay.power_law.residual == pytest.approx(np.sqrt(np.mean(left**2)))
    assert decay.power_law.r_squared == pytest.approx(1 - np.var(left) / np.var(log_norm))
    assert decay.exponential.length == pytest.approx(-1 / rate)


def test_a_constant_is_flat():
    decay = fit_decay(DISTANCES, [0.25] * len(DISTANCES))

    assert decay.better == "flat"
    assert decay.power_law.exponent == 0
    assert decay.exponential.length is None
    assert decay.exponential.scale == pytest.approx(0.25)
    assert decay.exponential.r_squared is None


@pytest.mark.parametrize(("factor", "flat"), [(0.9 * FLAT, True), (1.1 * FLAT, False)])
def test_a_fit_is_flat_below_a_factor_between_its_ends(factor, flat):
    exponent = math.log(factor) / math.log(DISTANCES[-1])

    assert (fit_decay(DISTANCES, _power(exponent)).better == "flat") is flat


def test_noise_around_a_constant_is_flat():
    noise = np.exp(np.random.default_rng(0).normal(0, 0.05, len(DISTANCES)))

    assert fit_decay(DISTANCES, noise.tolist()).better == "flat"


def test_distance_zero_is_not_fitted():
    norms = _power(1.0)

    assert fit_decay(DISTANCES, [1e9, *norms[1:]]) == fit_decay(DISTANCES, norms)


def test_norms_below_the_floor_are_left_out_and_counted():
    norms = _exponential(2)
    decay = fit_decay(DISTANCES, [*norms[:-3], FLOOR / 2, 0, 0])

    assert decay.left_out == 3
    assert decay.better == "exponential"
    assert decay.exponential.length == pytest.approx(2)


@pytest.mark.parametrize("norms", [[0.0] * 5, [1.0, 0.5, 0.2, 0, 0], []])
def test_fewer_than_three_norms_are_not_fitted(norms):
    decay = fit_decay(range(len(norms)), norms)

    assert (decay.power_law, decay.exponential, decay.better) == (None, None, None)
    assert decay.left_out == sum(norm == 0 for norm in norms[1:])
