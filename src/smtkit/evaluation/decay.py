"""How a positive quantity decays with distance: as a power law, exponentially, or not at all."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FLOOR = 1e-30
"""Norms below it are taken for zero: near the end of float32 nothing is left to measure."""
FLAT = 2.0
"""Flat: a fit that changes by less than this factor over all distances."""
_FEWEST = 3  # points; a line goes through any two

Law = Literal["power law", "exponential", "flat"]


@dataclass(frozen=True)
class PowerLaw:
    """scale * d^-exponent; a negative exponent grows."""

    scale: float
    exponent: float
    residual: float  # root mean square, of log norms
    r_squared: float | None  # None: the norms are all the same


@dataclass(frozen=True)
class Exponential:
    """scale * exp(-d / length); a negative length grows, None does neither."""

    scale: float
    length: float | None
    residual: float
    r_squared: float | None


@dataclass(frozen=True)
class Decay:
    """Both fits, by least squares on log norms; None where fewer than three could be used.

    `left_out`: norms at distances of 1 or more that were below FLOOR, and are in no fit.
    """

    power_law: PowerLaw | None
    exponential: Exponential | None
    better: Law | None
    left_out: int


def fit_decay(distances: Sequence[int], norms: Sequence[float]) -> Decay:
    """Fits the norms at distances of 1 or more; neither law is asked about distance 0."""
    distance = np.asarray(distances, dtype=np.float64)
    norm = np.asarray(norms, dtype=np.float64)
    apart = distance >= 1
    used = apart & (norm >= FLOOR)
    left_out = int((apart & ~used).sum())
    if used.sum() < _FEWEST:
        return Decay(None, None, None, left_out)
    distance, log_norm = distance[used], np.log(norm[used])
    power, exponential = _line(np.log(distance), log_norm), _line(distance, log_norm)
    best = min(power, exponential, key=lambda line: line.residual)
    law: Law = "power law" if best is power else "exponential"
    return Decay(
        PowerLaw(_exp(power.intercept), -power.slope, power.residual, power.r_squared),
        Exponential(
            _exp(exponential.intercept),
            -1 / exponential.slope if abs(exponential.slope) > 1e-12 else None,
            exponential.residual,
            exponential.r_squared,
        ),
        "flat" if best.change < math.log(FLAT) else law,
        left_out,
    )


@dataclass(frozen=True)
class _Line:
    intercept: float
    slope: float
    change: float  # between the first point and the last
    residual: float
    r_squared: float | None


def _line(x: NDArray[np.float64], y: NDArray[np.float64]) -> _Line:
    """Least squares."""
    from_mean = x - x.mean()
    slope = float(from_mean @ (y - y.mean()) / (from_mean @ from_mean))
    intercept = float(y.mean() - slope * x.mean())
    unexplained = float(np.square(y - intercept - slope * x).mean())
    variance = float(y.var())
    return _Line(
        intercept,
        slope,
        abs(slope) * float(np.ptp(x)),
        math.sqrt(unexplained),
        1 - unexplained / variance if variance > 1e-24 else None,
    )


def _exp(value: float) -> float:
    return math.exp(min(value, 700))
