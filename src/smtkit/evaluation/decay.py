"""Least-squares fits of how a positive quantity decays with distance: power law or exponential."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

FLOOR = 1e-30
"""Norms below this count as zero: they are close to the smallest float32 numbers."""
FLAT = 2.0
"""A fit is flat if it changes by less than this factor over all distances."""
_FEWEST_POINTS = 3  # a line goes through any two

Law = Literal["power law", "exponential", "flat"]


@dataclass(frozen=True)
class PowerLaw:
    """scale * d^-exponent; the quantity grows if the exponent is negative."""

    scale: float
    exponent: float
    residual: float  # root mean square, of log norms
    r_squared: float | None  # None if all norms are equal


@dataclass(frozen=True)
class Exponential:
    """scale * exp(-d / length); grows if the length is negative, is constant if it is None."""

    scale: float
    length: float | None
    residual: float
    r_squared: float | None


@dataclass(frozen=True)
class Decay:
    """Both fits and the better one; None if there are fewer than three norms to fit.

    left_out: number of norms below FLOOR at distances of 1 or more; no fit uses them.
    """

    power_law: PowerLaw | None
    exponential: Exponential | None
    better: Law | None
    left_out: int


def fit_decay(distances: Sequence[int], norms: Sequence[float]) -> Decay:
    """Fits the log norms at distances of 1 or more; log 0 does not exist."""
    distance, norm = np.asarray(distances, np.float64), np.asarray(norms, np.float64)
    used = (distance >= 1) & (norm >= FLOOR)
    left_out = int(((distance >= 1) & ~used).sum())
    if used.sum() < _FEWEST_POINTS:
        return Decay(None, None, None, left_out)
    distance, log_norm = distance[used], np.log(norm[used])
    power, exponential = _fit_line(np.log(distance), log_norm), _fit_line(distance, log_norm)
    best = min(power, exponential, key=lambda line: line.residual)
    law: Law = "power law" if best is power else "exponential"
    return Decay(
        PowerLaw(power.scale, -power.slope, power.residual, power.r_squared),
        Exponential(
            exponential.scale,
            -1 / exponential.slope if exponential.slope else None,
            exponential.residual,
            exponential.r_squared,
        ),
        "flat" if best.change < math.log(FLAT) else law,
        left_out,
    )


class _Line(NamedTuple):
    scale: float  # exp(intercept)
    slope: float
    change: float  # of y, between the ends
    residual: float
    r_squared: float | None


def _fit_line(x: NDArray[np.float64], y: NDArray[np.float64]) -> _Line:
    intercept, slope = map(float, np.polynomial.polynomial.polyfit(x, y, 1))
    slope = slope if abs(slope) > 1e-12 else 0.0  # rounding, for constant y
    unexplained, variance = float(np.square(y - intercept - slope * x).mean()), float(y.var())
    return _Line(
        math.exp(min(intercept, 700)),
        slope,
        abs(slope) * float(np.ptp(x)),
        math.sqrt(unexplained),
        1 - unexplained / variance if variance > 1e-24 else None,
    )
