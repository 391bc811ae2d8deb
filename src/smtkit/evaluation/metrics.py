"""What is reported of predictions and memories: means by position, distance and length; drift.

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


def position_ranges(window: int, lengths: int = 4) -> list[tuple[str, int, int]]:
    """(name, first, last): ranges of the position i at which targets[i] is predicted, up to
    `lengths` times the window or more."""
    ranges = [("1..T/2", 1, window // 2), ("T/2..T", window // 2 + 1, window)]
    times = 1
    while times < lengths:
        name = f"{times}T..{2 * times}T" if times > 1 else "T..2T"
        ranges.append((name, times * window + 1, 2 * times * window))
        times *= 2
    return ranges


class Drift:
    """Mean |rolled - teacher|^2 at each position over the mean of |teacher - its mean|^2."""

    def __init__(self, window: int) -> None:
        self._squared_error = np.zeros(window)
        self._count = 0
        self._sum: NDArray[np.float64] | float = 0.0
        self._squared_sum = 0.0

    def add(self, rolled: Tensor, label: Tensor, first: int = 1) -> None:
        """Memories (B, n, K, D) at positions `first`, ... of the RNN, and of the teacher.

        Of a row, all positions 1..T must come, in one call or in several."""
        difference = (rolled - label).double().flatten(2).square().sum(2)
        last = first + label.shape[1]
        self._squared_error[first - 1 : last - 1] += difference.sum(0).cpu().numpy()
        self._count += len(label) * label.shape[1]
        flat = label.double().flatten(2).flatten(0, 1)
        self._sum = self._sum + flat.sum(0).cpu().numpy()
        self._squared_sum += float(flat.square().sum())

    def totals(self, numbers: int) -> NDArray[np.float64]:
        """All that was added, of memories of so many numbers: to be summed over processes."""
        total = np.broadcast_to(self._sum, numbers)
        return np.concatenate([self._squared_error, total, [self._count, self._squared_sum]])

    def take(self, totals: NDArray[np.float64]) -> None:
        """Goes on from `totals`, or from a sum of those of several."""
        window = len(self._squared_error)
        self._squared_error, self._sum = totals[:window], totals[window:-2]
        self._count, self._squared_sum = int(totals[-2]), float(totals[-1])

    def by_position(self) -> list[float] | None:
        """Drift at positions 1..T; None where no whole window was seen."""
        if self._count == 0:
            return None
        spread = self._squared_sum / self._count
        spread -= float(np.sum(np.square(self._sum / self._count)))
        rows = self._count / len(self._squared_error)
        return [float(value) for value in self._squared_error / rows / max(spread, 1e-12)]


def summarize(
    scores: Mapping[str, Scores], window: int, byte_lengths: IntArray | None
) -> list[dict[str, Any]]:
    """One record for each predictor and range of positions in which it scored a target.

    byte_lengths (B, L + 1): bytes of text that each target stands for; None where not known.
    """
    return [
        {"predictor": predictor, "range": name, "first": first, "last": last, **measured}
        for predictor, values in scores.items()
        for name, first, last in position_ranges(window, math.ceil(values.shape[1] / window))
        if (
            measured := _measure(
                values[:, first : last + 1],
                None if byte_lengths is None else byte_lengths[:, first : last + 1],
            )
        )
    ]


def summarize_overall(
    scores: Mapping[str, Scores], byte_lengths: IntArray | None
) -> list[dict[str, Any]]:
    """One record for each predictor, of all targets after the first, wherever they are.

    byte_lengths: as for `summarize`.
    """
    sizes = None if byte_lengths is None else byte_lengths[:, 1:]
    return [
        {"predictor": predictor, **measured}
        for predictor, values in scores.items()
        if (measured := _measure(values[:, 1:], sizes))
    ]


def summarize_by_distance(scores: Mapping[str, Scores], distance: IntArray) -> list[dict[str, Any]]:
    """One record for each predictor and range of distances: 0, 1, 2, 3-4, 5-8, ...

    distance (B, L + 1): tokens back to where each target was written; -1, in no range, where that
    is nowhere.
    """
    return [
        {"predictor": predictor, "range": name, "first": first, "last": last, **measured}
        for predictor, values in scores.items()
        for name, first, last in _distance_ranges(int(distance.max(initial=0)))
        if (measured := _mean(values[(first <= distance) & (distance <= last)]))
    ]


def summarize_by_length(scores: Mapping[str, Scores], length: IntArray) -> list[dict[str, Any]]:
    """One record for each predictor and length of a row; length (B,)."""
    return [
        {"predictor": predictor, "length": tokens, **measured}
        for predictor, values in scores.items()
        for tokens in np.unique(length).tolist()
        if (measured := _mean(values[length == tokens]))
    ]


def _distance_ranges(longest: int) -> list[tuple[str, int, int]]:
    ranges = [("0", 0, 0), ("1", 1, 1), ("2", 2, 2)]
    while ranges[-1][2] < longest:
        first, last = ranges[-1][2] + 1, 2 * ranges[-1][2]
        ranges.append((f"{first}-{last}", first, last))
    return ranges


def _measure(scores: Scores, byte_lengths: IntArray | None) -> dict[str, float | int | None]:
    """Metrics of the targets scored, or nothing where there are none."""
    measured = _mean(scores)
    if not measured:
        return {}
    nll = scores[..., 0]
    scored = ~np.isnan(nll)
    mean = float(nll[scored].mean())
    size = int(byte_lengths[scored].sum()) if byte_lengths is not None else 0
    return {
        "targets": measured["targets"],
        "nll": mean,
        "nll_standard_error": _standard_error(nll, scored),
        "bits_per_token": mean / math.log(2),
        "bits_per_byte": float(nll[scored].sum()) / math.log(2) / size if size else None,
        "perplexity": math.exp(min(mean, 700)),
        "accuracy": measured["accuracy"],
    }


def _mean(scores: Scores) -> dict[str, float | int | None]:
    """targets, nll and accuracy of scores (..., 2), or nothing where no target was scored."""
    told = scores[~np.isnan(scores[..., 0])]
    if len(told) == 0:
        return {}
    nll, correct = told.mean(0).tolist()
    return {"targets": len(told), "nll": nll, "accuracy": None if math.isnan(correct) else correct}


def _standard_error(nll: NDArray[np.float64], scored: NDArray[np.bool_]) -> float | None:
    """Of the mean, from the spread of the windows' means: targets of one window are not
    independent."""
    rows = scored.any(1)
    if rows.sum() < 2:
        return None
    means = np.nanmean(nll[rows], axis=1)
    return float(means.std(ddof=1) / math.sqrt(len(means)))
