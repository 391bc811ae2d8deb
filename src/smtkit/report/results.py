"""Sections about evaluations: the ladder of predictors, lengths, distance, sufficiency, drift."""

import math
from collections.abc import Sequence

from smtkit.evaluation.predictors import (
    BASELINES,
    FREE_RUNNING,
    ONE_STEP,
    TEACHER_DECODER,
    TEACHER_READOUT,
)
from smtkit.report.content import Cell, Section, Table
from smtkit.report.drawing import Line, dot_figure, line_figure, thinned
from smtkit.report.runs import Evaluation, ReportRun, Runs, Score, finite

_LADDER = (*BASELINES, TEACHER_DECODER, TEACHER_READOUT, ONE_STEP, FREE_RUNNING)
_DASHES = {
    FREE_RUNNING: "solid",
    ONE_STEP: "dashed",
    TEACHER_DECODER: "dashed",
    TEACHER_READOUT: "dotted",
}
_EVAL = "smtkit eval RNN --tokens TOKENS --encoder ENCODER --out DIR"


def ladder(runs: Runs) -> Section:
    """From the unigram over the teacher and one step to free-running, with the gaps."""
    found = runs.of("evaluation")
    if not found:
        return Section("ladder", "Ladder", missing=[_EVAL])
    unit = _unit([score for run in found for score in run.evaluation.overall])
    lines, rows, names = [], list[list[Cell]](), [n for n in _LADDER if _has(found, n)]
    for run in found:
        steps = _compared(run.evaluation, names)
        lines.append(
            Line(
                run.label,
                [names.index(step.predictor) for step in steps],
                finite([_value(step, unit) for step in steps]),
                run.color,
                error=[_error(step, unit) for step in steps],
            )
        )
        previous: float | None = None
        for step in steps:
            value = _value(step, unit)
            gap = None if previous is None or value is None else value - previous
            rows.append([run.label, step.predictor, value, _error(step, unit), gap, step.accuracy])
            previous = value
    label = unit.replace("_", " ")
    head = ["run", "predictor", label, "standard error", "gap to the row above", "accuracy"]
    text = (
        "Mean over the second half of the window of training, where all predictors have context, "
        "or over whole rows. One step: the RNN moves one step from the teacher's memory; "
        "free-running: it has only its own. Bars are two standard errors."
    )
    figure = dot_figure("ladder", "Ladder", names, lines, label)
    missing = [] if _has(found, ONE_STEP) else [f"teacher and one step: {_EVAL}"]
    return Section("ladder", "Ladder", text, [figure], [Table(head, rows)], missing=missing)


def lengths(runs: Runs) -> Section:
    """Nll by position, with the trained length marked; for rows, by length of the row."""
    found = runs.of("evaluation")
    if not found:
        return Section("length", "Length", missing=[_EVAL])
    unit = _unit([score for run in found for score in run.evaluation.results])
    windows = sorted({run.evaluation.window for run in found})
    marks = [(float(window), f"T = {window}") for window in windows]
    figures = []
    for name, title, rows, place, label in (
        ("position", "Nll by position", "results", "last", "position, up to"),
        ("length", "Nll by length of the row", "by_length", "length", "tokens per row"),
    ):
        lines = []
        for run in found:
            for predictor in _LADDER[3:]:
                own = [s for s in getattr(run.evaluation, rows) or [] if s.predictor == predictor]
                if own:
                    x = [float(getattr(score, place)) for score in own]
                    y = finite([_value(score, unit) for score in own])
                    errors = [_error(score, unit) for score in own] if place == "last" else []
                    lines.append(_of_predictor(run, predictor, x, y, errors))
        if lines:
            labels = label, unit.replace("_", " ")
            ticks = sorted({x for line in lines for x in line.x})[:12]
            figures.append(
                line_figure(
                    f"nll_by_{name}", title, lines, labels, log_x=True, marks=marks, ticks=ticks
                )
            )
    text = "Each point is the mean over the positions since the point before. T: trained length."
    return Section("length", "Length", text, figures)


def distance(runs: Runs) -> Section:
    """Accuracy by the distance from an answer to where it was written."""
    lines = []
    for run in runs.of("evaluation"):
        records = run.evaluation.by_distance or []
        for predictor in _LADDER[3:]:
            own = [s for s in records if s.predictor == predictor and s.accuracy is not None]
            if own:
                y = finite([score.accuracy for score in own])
                lines.append(_of_predictor(run, predictor, [float(s.last) for s in own], y))
    if not lines:
        why = "tasks only: smtkit synthesize retrieval, and then smtkit eval"
        return Section("distance", "Accuracy by distance", missing=[why])
    labels = "tokens between, up to", "accuracy"
    figure = line_figure("accuracy_by_distance", "Accuracy by distance", lines, labels, log_x=True)
    return Section("distance", "Accuracy by distance", "", [figure])


def sufficiency(runs: Runs) -> Section:
    """What the teacher's memory alone loses against its full context, by offset."""
    found = [run for run in runs.of("evaluation") if run.evaluation.sufficiency]
    if not found:
        return Section("sufficiency", "Sufficiency", missing=[_EVAL])
    lines, gaps = [], []
    for run in found:
        records = run.evaluation.sufficiency or []
        x = [float(record.offset) for record in records]
        for key, label, dash in (
            ("nll", "from the memory", "solid"),
            ("full_context_nll", "full context", "dashed"),
        ):
            y = finite([getattr(record, key) for record in records])
            lines.append(Line(f"{run.label}, {label}", x, y, run.color, dash, marker=True))
        y = finite([record.gap for record in records])
        gaps.append(Line(run.label, x, y, run.color, marker=True))
    ticks = sorted({x for line in lines for x in line.x})[:12]
    labels = "offset from memory to target, in tokens", "nats per target"
    figures = [
        line_figure("sufficiency", "Nll by offset", lines, labels, log_x=True, ticks=ticks),
        line_figure("sufficiency_gap", "Gap by offset", gaps, labels, log_x=True, ticks=ticks),
    ]
    text = (
        "Nll of a target from the teacher's memory so many tokens before it and these tokens, "
        "beside that with full context. A gap of zero at all offsets: the memory holds all that "
        "the teacher knows."
    )
    return Section("sufficiency", "Sufficiency", text, figures)


def drift(runs: Runs) -> Section:
    """How far the free-running memories are from the teacher's, by position."""
    figures = []
    for name, key, title in (
        ("drift", "drift", "Over the variance of all memories"),
        ("drift_between", "drift_between_sequences", "Over the variance at one position"),
    ):
        lines = []
        for run in runs.of("evaluation"):
            values = getattr(run.evaluation, key)
            if values:
                some = thinned(len(values))
                x = [float(i) for i in range(1, len(values) + 1)][some]
                lines.append(Line(run.label, x, finite(values)[some], run.color))
        if lines:
            figures.append(line_figure(name, title, lines, ("position", "drift")))
    if not figures:
        return Section("drift", "Drift", missing=[_EVAL])
    text = "0: the memories are the teacher's; 1: no nearer than the mean memory."
    return Section("drift", "Drift", text, figures)


def _compared(evaluation: Evaluation, names: Sequence[str]) -> list[Score]:
    """Scores in the range of positions where every predictor has context, in order of `names`."""
    half = [score for score in evaluation.results if score.range == "T/2..T"]
    chosen = half if evaluation.by_distance is None and half else evaluation.overall
    by_name = {score.predictor: score for score in chosen}
    return [by_name[name] for name in names if name in by_name]


def _has(runs: Sequence[ReportRun], predictor: str) -> bool:
    return any(s.predictor == predictor for run in runs for s in _compared(run.evaluation, _LADDER))


def _of_predictor(
    run: ReportRun,
    predictor: str,
    x: Sequence[float],
    y: Sequence[float | None],
    errors: Sequence[float | None] = (),
) -> Line:
    """The RNN in full colour, its teacher faint."""
    return Line(
        f"{run.label}: {predictor}",
        x,
        y,
        run.color,
        _DASHES[predictor],
        marker=True,
        faint=predictor not in (ONE_STEP, FREE_RUNNING),
        error=errors if predictor == FREE_RUNNING else (),
    )


def _unit(scores: Sequence[Score]) -> str:
    """Bits per byte where all have them, else per token."""
    per_byte = all(score.bits_per_byte is not None for score in scores)
    return "bits_per_byte" if per_byte else "bits_per_token"


def _value(score: Score, unit: str) -> float | None:
    found = getattr(score, unit)
    return score.nll / math.log(2) if found is None else found


def _error(score: Score, unit: str) -> float | None:
    """Standard error in the unit."""
    value, error = _value(score, unit), score.nll_standard_error
    if value is None or error is None or not math.isfinite(error):
        return None
    return error * (value / score.nll if score.nll else 1 / math.log(2))
