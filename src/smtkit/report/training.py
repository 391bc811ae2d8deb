"""Sections about training: loss curves, cost and lineage."""

from collections.abc import Sequence

from smtkit.report.content import Cell, Figure, Lineage, Section, Table
from smtkit.report.drawing import Line, line_figure, thinned
from smtkit.report.runs import ReportRun, Runs, finite
from smtkit.storage.manifest import Manifest, Parent

_AXES = {
    "steps": "updates",
    "tokens": "tokens read",
    "seconds": "seconds of training",
    "sequential": "sequential steps",
}
_TERMS = {
    "loss": "Weighted loss",
    "decoding": "Decoder, from one memory",
    "dense": "Readout of the encoder's memory",
    "readout": "Readout of the predicted memory",
    "dynamics": "Squared error of the predicted memory",
    "kl": "KL of the predicted memory",
    "uniformity": "Uniformity",
    "gradient_norm": "Norm of the gradient",
    "memory_effective_rank": "Effective rank of memory",
}
_FREE_RUNNING = "free_running_nll"


def curves(runs: Runs) -> Section:
    """Nll over steps, tokens, seconds and sequential steps; and each term of the loss."""
    trained = [run for run in runs.of("encoder", "rnn") if run.records]
    figures = [figure for axis in _AXES if (figure := _nll_over(axis, trained))]
    figures += [figure for term in _TERMS if (figure := _term(term, trained))]
    text = (
        "Validation: the network runs freely, from its empty memory; of an encoder, the cell that "
        "is trained with it. Faint: training, one step from a label, or along the rollout of the "
        "method. Sequential steps are the longest chain of dependent calls of a layer or cell."
    )
    missing = [] if trained else ["name encoder or rnn artifacts: smtkit report encoder rnn ..."]
    return Section("training", "Training", text if figures else "", figures, missing=missing)


def _points(
    run: ReportRun, split: str, term: str, axis: str
) -> tuple[list[float], list[float | None]]:
    """x and y of a metric of a run, thinned; empty where it has none."""
    per_step = run.sequential_steps if axis == "sequential" else 1.0
    key = {"steps": "step", "sequential": "step"}.get(axis, axis)
    if per_step is None:
        return [], []
    found = [r for r in run.records if r["split"] == split and term in r and key in r]
    found = found[thinned(len(found))]
    return [r[key] * per_step for r in found], finite([r[term] for r in found])


def _nll_over(axis: str, runs: Sequence[ReportRun]) -> Figure | None:
    lines = []
    for run in runs:
        for split, term, faint in (
            ("train", "readout", True),
            ("validation", _FREE_RUNNING, False),
        ):
            x, y = _points(run, split, term, axis)
            if x:
                label = f"{run.label}, {'training' if faint else 'free-running'}"
                lines.append(Line(label, x, y, run.color, marker=not faint, faint=faint))
    if not lines:
        return None
    title = f"Nll over {_AXES[axis]}"
    return line_figure(f"nll_by_{axis}", title, lines, (_AXES[axis], "nats per target"))


def _term(term: str, runs: Sequence[ReportRun]) -> Figure | None:
    lines = []
    for run in runs:
        x, y = _points(run, "train", term, "steps")
        if x:
            lines.append(Line(run.label, x, y, run.color))
    if not lines:
        return None
    values = [value for line in lines for value in line.y if value is not None]
    log = term in ("dynamics", "gradient_norm", "kl") and min(values, default=0) > 0
    return line_figure(f"term_{term}", _TERMS[term], lines, ("updates", term), log_y=log)


def cost(runs: Runs) -> Section:
    """What training took, and, where it was measured, inference."""
    rows: list[list[Cell]] = []
    for run in runs.of("encoder", "rnn"):
        found, per_step = run.training, run.sequential_steps
        speed = found.tokens / found.seconds if found.seconds else None
        total = None if per_step is None else round(per_step * found.steps)
        rows.append(
            [
                run.label,
                run.kind,
                found.parameters,
                found.steps,
                found.tokens,
                found.seconds,
                speed and round(speed),
                total,
            ]
        )
    head = [
        "run",
        "kind",
        "parameters",
        "updates",
        "tokens",
        "seconds",
        "tokens per second",
        "sequential steps",
    ]
    tables = [Table(head, rows, "Training")] if rows else []
    figures = [figure] if (figure := _inference(runs)) else []
    missing = []
    if not figures:
        missing.append("inference: smtkit eval RNN --tokens TOKENS --out DIR --cost")
    return Section("cost", "Cost", figures=figures, tables=tables, missing=missing)


def _inference(runs: Runs) -> Figure | None:
    """Time of the next token over the number of tokens before it."""
    lines = []
    for run in runs.of("evaluation"):
        records = run.evaluation.cost or []
        for predictor in dict.fromkeys(record.predictor for record in records):
            own = [record for record in records if record.predictor == predictor]
            y = [None if r.seconds_per_token is None else 1000 * r.seconds_per_token for r in own]
            dash = "solid" if predictor.startswith("rnn") else "dashed"
            x = [float(r.tokens) for r in own]
            lines.append(
                Line(f"{run.label}: {predictor}", x, finite(y), run.color, dash, marker=True)
            )
    if not lines:
        return None
    labels = "tokens read before", "milliseconds per token"
    return line_figure("inference", "Time of the next token", lines, labels, log_x=True, log_y=True)


def lineage(runs: Runs) -> Section:
    """Each artifact with its command, and all that it was made from."""
    trees = []
    for run in runs:
        manifest = run.artifact.manifest
        details = {
            "command": manifest.command,
            "digest": manifest.digest,
            "seed": "none" if manifest.seed is None else str(manifest.seed),
            "finished": manifest.finished,
            "smtkit": _version(manifest),
            "packages": ", ".join(f"{name} {v}" for name, v in manifest.packages.items()),
        }
        title = f"{run.artifact.directory}: {manifest.kind}"
        trees.append(Lineage(title, details, [_ancestor(p) for p in manifest.parents]))
    return Section("lineage", "Lineage", lineage=trees)


def _ancestor(parent: Parent) -> Lineage:
    title = f"{parent.path}: {parent.kind} {parent.digest[:12]}"
    return Lineage(title, {}, [_ancestor(each) for each in parent.parents])


def _version(manifest: Manifest) -> str:
    revision = manifest.git_revision
    return manifest.smtkit_version + (f", revision {revision[:12]}" if revision else "")
