"""What is reported of predictions and memories: means by ranges of positions, and drift.

B: windows, L: tokens a window, T: the window that was trained on.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

IntArray = NDArray[np.int64]
Scores = NDArray[np.float64]
"""(B, L + 1, 2): of every target its nll in nats, and 1 where it was the likeliest token, else 0.
NaN where nothing is asked or said."""


def position_ranges(window: int) -> list[tuple[str, int, int]]:
    """(name, first, last): ranges of the position i at which targets[i] is predicted."""
    return [
        ("1..T/2", 1, window // 2),
        ("T/2..T", window // 2 + 1, window),
        ("T..2T", window + 1, 2 * window),
        ("2T..4T", 2 * window + 1, 4 * window),
    ]


class Drift:
    """Mean |rolled - teacher|^2 at each position over the mean of |teacher - its mean|^2."""

    def __init__(self, window: int) -> None:
        self._squared_error = np.zeros(window)
        self._rows = 0
        self._sum: NDArray[np.float64] | float = 0.0
        self._squared_sum = 0.0

    def add(self, rolled: Tensor, label: Tensor) -> None:
        """Memories (B, T, K, D) at positions 1..T: of the RNN, and of the teacher."""
        difference = (rolled - label).double().flatten(2).square().sum(2)
        self._squared_error += difference.sum(0).cpu().numpy()
        self._rows += len(label)
        flat = label.double().flatten(2).flatten(0, 1)
        self._sum = self._sum + flat.sum(0).cpu().numpy()
        self._squared_sum += float(flat.square().sum())

    def by_position(self) -> list[float] | None:
        """Drift at positions 1..T; None where no whole window was seen."""
        if self._rows == 0:
            return None
        count = self._rows * len(self._squared_error)
        spread = self._squared_sum / count - float(np.sum(np.square(self._sum / count)))
        return [float(value) for value in self._squared_error / self._rows / max(spread, 1e-12)]


def summarize(
    scores: Mapping[str, Scores], window: int, byte_lengths: IntArray | None
) -> list[dict[str, Any]]:
    """One record for each predictor and range of positions in which it scored a target.

    byte_lengths (B, L + 1): bytes of text that each target stands for; None where not known.
    """
    return [
        {"predictor": predictor, "range": name, "first": first, "last": last, **measured}
        for predictor, values in scores.items()
        for name, first, last in position_ranges(window)
        if (
            measured := _measure(
                values[:, first : last + 1],
                None if byte_lengths is None else byte_lengths[:, first : last + 1],
            )
        )
    ]


def _measure(scores: Scores, byte_lengths: IntArray | None) -> dict[str, float | int | None]:
    """Metrics of the targets scored, or nothing where there are none."""
    nll, correct = scores[..., 0], scores[..., 1]
    scored = ~np.isnan(nll)
    count = int(scored.sum())
    if count == 0:
        return {}
    total = float(nll[scored].sum())
    mean = total / count
    size = int(byte_lengths[scored].sum()) if byte_lengths is not None else 0
    return {
        "targets": count,
        "nll": mean,
        "nll_standard_error": _standard_error(nll, scored),
        "bits_per_token": mean / math.log(2),
        "bits_per_byte": total / math.log(2) / size if size else None,
        "perplexity": math.exp(min(mean, 700)),
        "accuracy": None if np.isnan(correct[scored]).any() else float(correct[scored].mean()),
    }


def _standard_error(nll: NDArray[np.float64], scored: NDArray[np.bool_]) -> float | None:
    """Of the mean, from the spread of the windows' means: targets of one window are not
    independent."""
    rows = scored.any(1)
    if rows.sum() < 2:
        return None
    means = np.nanmean(nll[rows], axis=1)
    return float(means.std(ddof=1) / math.sqrt(len(means)))
