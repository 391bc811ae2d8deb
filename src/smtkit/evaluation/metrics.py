"""Means of nll and accuracy over the targets of windows: by position, distance and length.

B: windows, L: tokens per window, T: the window the RNN was trained on.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Scores of one predictor, each (B, L + 1); NaN where there is no target or no prediction.

    nll: in nats. correct: 1 where the target is the likeliest token, else 0; all NaN for a
    predictor that is not evaluated for it.
    """

    nll: FloatArray
    correct: FloatArray

    def __getitem__(self, index: Any) -> "Scores":
        return Scores(self.nll[index], self.correct[index])


def position_ranges(window: int, lengths: int = 4) -> list[tuple[str, int, int]]:
    """(name, first, last) of ranges of the target's position i, up to at least `lengths` windows:
    the halves of the window, then ranges that double."""
    ranges = [("1..T/2", 1, window // 2), ("T/2..T", window // 2 + 1, window)]
    times = 1
    while times < lengths:
        name = f"{times}T..{2 * times}T" if times > 1 else "T..2T"
        ranges.append((name, times * window + 1, 2 * times * window))
        times *= 2
    return ranges


def summarize(
    scores: Mapping[str, Scores], window: int, byte_lengths: IntArray | None
) -> list[dict[str, Any]]:
    """One record per predictor and range of positions in which it has scores.

    byte_lengths (B, L + 1): bytes of text that each target stands for; None if unknown.
    """
    return [
        {"predictor": predictor, "range": name, "first": first, "last": last, **measured}
        for predictor, values in scores.items()
        for name, first, last in position_ranges(window, math.ceil(values.nll.shape[1] / window))
        if (measured := _measure(values, byte_lengths, slice(first, last + 1)))
    ]


def summarize_overall(
    scores: Mapping[str, Scores], byte_lengths: IntArray | None
) -> list[dict[str, Any]]:
    """One record per predictor over the targets at all positions but 0; as `summarize`."""
    return [
        {"predictor": predictor, **measured}
        for predictor, values in scores.items()
        if (measured := _measure(values, byte_lengths, slice(1, None)))
    ]


def summarize_by_distance(scores: Mapping[str, Scores], distance: IntArray) -> list[dict[str, Any]]:
    """One record per predictor and range of distances: 0, 1, 2, 3-4, 5-8, ...

    distance (B, L + 1): tokens between each target and where its answer was written; -1, in no
    range, where it was not.
    """
    return [
        {"predictor": predictor, "range": name, "first": first, "last": last, **measured}
        for predictor, values in scores.items()
        for name, first, last in _distance_ranges(int(distance.max(initial=0)))
        if (measured := _mean(values[(first <= distance) & (distance <= last)]))
    ]


def summarize_by_length(scores: Mapping[str, Scores], length: IntArray) -> list[dict[str, Any]]:
    """One record per predictor and length of a row; length (B,)."""
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


def _measure(
    scores: Scores, byte_lengths: IntArray | None, columns: slice
) -> dict[str, float | int | None]:
    """All metrics of the scores in `columns`; empty if there are none."""
    measured = _mean(scores[:, columns])
    if not measured:
        return {}
    nll = scores.nll[:, columns]
    scored = ~np.isnan(nll)
    mean = float(nll[scored].mean())
    size = 0 if byte_lengths is None else int(byte_lengths[:, columns][scored].sum())
    return {
        "targets": measured["targets"],
        "nll": mean,
        "nll_standard_error": _standard_error(nll),
        "bits_per_token": mean / math.log(2),
        "bits_per_byte": float(nll[scored].sum()) / math.log(2) / size if size else None,
        "perplexity": math.exp(min(mean, 700)),
        "accuracy": measured["accuracy"],
    }


def _mean(scores: Scores) -> dict[str, float | int | None]:
    """Number of targets, mean nll and accuracy; empty if no target has a score."""
    scored = scores[~np.isnan(scores.nll)]
    if scored.nll.size == 0:
        return {}
    accuracy = float(scored.correct.mean())
    return {
        "targets": scored.nll.size,
        "nll": float(scored.nll.mean()),
        "accuracy": None if math.isnan(accuracy) else accuracy,
    }


def _standard_error(nll: FloatArray) -> float | None:
    """Standard error of the mean, from the spread of the windows' means: targets of one window are
    not independent."""
    rows = ~np.isnan(nll).all(1)
    if rows.sum() < 2:
        return None
    means = np.nanmean(nll[rows], axis=1)
    return float(means.std(ddof=1) / math.sqrt(len(means)))
