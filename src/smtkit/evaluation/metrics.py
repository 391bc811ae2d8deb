"""Means of nll and accuracy over the targets of windows: by position, distance and length.

Scores of a predictor are float64 (2, B, L + 1): its nll in nats, and 1 where the target is the
likeliest token, else 0. NaN where there is no target or no prediction; n-gram models have no
accuracy, so that their second part is all NaN.

B: windows, L: tokens per window, T: the window the RNN was trained on.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smtkit.corpus.seeded import IntArray

FloatArray = NDArray[np.float64]
Records = list[dict[str, Any]]
Scores = Mapping[str, FloatArray]
"""The scores of each predictor."""


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


def summarize(scores: Scores, window: int, byte_lengths: IntArray | None) -> Records:
    """One record per predictor and range of positions in which it has scores.

    byte_lengths (B, L + 1): bytes of text that each target stands for, -1 where unknown: bits per
    byte are then over the other targets. None: no target's are known.
    """
    columns = max(values.shape[-1] for values in scores.values())
    ranges = position_ranges(window, math.ceil(columns / window))
    groups = [(_labels(*each), np.s_[:, each[1] : each[2] + 1]) for each in ranges]
    return _records(scores, groups, partial(_all_metrics, byte_lengths=byte_lengths))


def summarize_overall(scores: Scores, byte_lengths: IntArray | None) -> Records:
    """One record per predictor over the targets at all positions but 0; as `summarize`."""
    return _records(scores, [({}, np.s_[:, 1:])], partial(_all_metrics, byte_lengths=byte_lengths))


def summarize_by_distance(scores: Scores, distance: IntArray) -> Records:
    """One record per predictor and range of distances: 0, 1, 2, 3-4, 5-8, ...

    distance (B, L + 1): tokens from where the answer was written to each target; -1, in no range,
    where it was not written.
    """
    ranges = [("0", 0, 0), ("1", 1, 1), ("2", 2, 2)]
    while ranges[-1][2] < distance.max(initial=0):
        first, last = ranges[-1][2] + 1, 2 * ranges[-1][2]
        ranges.append((f"{first}-{last}", first, last))
    groups = [(_labels(*each), (each[1] <= distance) & (distance <= each[2])) for each in ranges]
    return _records(scores, groups, _means)


def summarize_by_length(scores: Scores, length: IntArray) -> Records:
    """One record per predictor and length of a row; length (B,)."""
    groups = [({"length": tokens}, length == tokens) for tokens in np.unique(length).tolist()]
    return _records(scores, groups, _means)


def _labels(name: str, first: int, last: int) -> dict[str, Any]:
    return {"range": name, "first": first, "last": last}


def _records(
    scores: Scores,
    groups: Sequence[tuple[dict[str, Any], Any]],
    metrics: Callable[[FloatArray, Any], dict[str, Any]],
) -> Records:
    """Metrics of each predictor on each group of targets (labels, index) where it has scores."""
    return [
        {"predictor": predictor, **labels, **found}
        for predictor, values in scores.items()
        for labels, index in groups
        if (found := metrics(values, index))
    ]


def _means(scores: FloatArray, index: Any) -> dict[str, Any]:
    """Number of targets, mean nll and accuracy; empty if no target has a score."""
    nll, correct = (part[index] for part in scores)
    scored = ~np.isnan(nll)
    if not scored.any():
        return {}
    accuracy = float(correct[scored].mean())
    return {
        "targets": int(scored.sum()),
        "nll": float(nll[scored].mean()),
        "accuracy": None if math.isnan(accuracy) else accuracy,
    }


def _all_metrics(scores: FloatArray, index: Any, byte_lengths: IntArray | None) -> dict[str, Any]:
    """All metrics of the targets in some columns; empty if none has a score."""
    means = _means(scores, index)
    if not means:
        return {}
    nll = scores[0][index]
    bits = means["nll"] / math.log(2)
    in_bytes = None
    if byte_lengths is not None:
        sizes = byte_lengths[index]
        known = ~np.isnan(nll) & (sizes >= 0)
        if size := int(sizes[known].sum()):
            in_bytes = float(nll[known].sum()) / math.log(2) / size
    return {
        **means,
        "nll_standard_error": _standard_error(nll),
        "bits_per_token": bits,
        "bits_per_byte": in_bytes,
        "perplexity": math.exp(min(means["nll"], 700)),
    }


def _standard_error(nll: FloatArray) -> float | None:
    """Standard error of the mean, from the spread of the windows' means: targets of one window are
    not independent."""
    rows = ~np.isnan(nll).all(1)
    if rows.sum() < 2:
        return None
    means = np.nanmean(nll[rows], axis=1)
    return float(means.std(ddof=1) / math.sqrt(len(means)))
