"""What the command line shows: progress on stderr, results on stdout."""

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from smtkit.corpus.pictures import shades
from smtkit.stages.inspect import Answers, Inspection, Picture
from smtkit.storage.manifest import Manifest, Parent

_LINE_SECONDS = 5.0


class Terminal:
    """The listener of a stage: a bar with ETA on a terminal, else a plain line now and then."""

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self._json = json
        self._quiet = quiet
        self._log = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar = _bar(self._log) if self._log.is_terminal and not quiet else None
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, float] = {}
        self._last_line = 0.0

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(
        self, task: str, completed: float, total: float | None, **metrics: float | str
    ) -> None:
        if self._quiet:
            return
        shown = "  ".join(f"{name} {_short(name, value)}" for name, value in metrics.items())
        if self._bar:
            if task not in self._tasks:
                self._tasks[task] = self._bar.add_task(task, total=total, metrics="")
            self._bar.update(
                self._tasks[task], completed=completed, total=total, metrics=_unbroken(shown)
            )
        else:
            self._line(task, completed, total, shown)

    def warn(self, message: str) -> None:
        self._log.print(Text(f"warning: {message}", style="yellow"))

    def show(self, manifest: Manifest, path: str, *, lineage: bool = False) -> None:
        """The result of a stage: as JSON, as a table, or as a few lines."""
        if self._json:
            print(manifest.model_dump_json(indent=2))
            return
        if self._quiet:
            return
        print(f"{path}: {manifest.kind} {manifest.digest[:12]}")
        if manifest.kind == "evaluation":
            _print_evaluation(manifest.statistics)
        else:
            _print_statistics(manifest.statistics)
        if lineage:
            size = sum(entry.bytes for entry in manifest.files)
            print(f"  {len(manifest.files)} files, {size:,} bytes, finished {manifest.finished}")
            print(f"  $ {manifest.command}")
            _print_lineage(manifest.parents, "  ")

    def show_part(self, path: str, part: int, parts: int, shards: int) -> None:
        """What one of several jobs has written."""
        if self._json:
            print(json.dumps({"part": part, "parts": parts, "shards": shards}))
        elif not self._quiet:
            print(f"{path}: part {part} of {parts}: {shards} shards")

    def inspect(self, inspection: Inspection, path: str, *, draw: bool) -> None:
        """An artifact, its counts, and the rows that were drawn; images only with `draw`."""
        if self._json:
            content = {
                "manifest": inspection.manifest.model_dump(mode="json"),
                "counts": inspection.counts,
                "rows": [_plain(row) for row in inspection.rows],
            }
            print(json.dumps(content, indent=2))
            return
        self.show(inspection.manifest, path, lineage=True)
        for split, counts in inspection.counts.items():
            print(f"{split}: {_joined(counts)}")
        for number, row in enumerate(inspection.rows, start=1):
            if isinstance(row, Picture) and not draw:
                continue
            print(f"--- row {number}" + (f": {row.label}" if isinstance(row, Picture) else ""))
            print(_drawn(row))

    def _line(self, task: str, completed: float, total: float | None, shown: str) -> None:
        now = time.monotonic()
        began = self._began.setdefault(task, now)
        last = total is not None and completed >= total
        if not last and now - self._last_line < _LINE_SECONDS:
            return
        self._last_line = now
        share = f" of {total:,.10g}" if total else ""
        left = (now - began) * (total - completed) / completed if total and completed else 0.0
        eta = f"  eta {left:.0f} s" if left >= 1 else ""
        print(f"{task} {completed:,.10g}{share}{eta}  {shown}".rstrip(), file=sys.stderr)


def _drawn(row: str | Picture | Answers) -> str:
    if isinstance(row, Picture):
        return shades(row.pixels, row.white)
    if isinstance(row, Answers):
        pairs = zip(row.symbols, row.answers, strict=True)
        return " ".join(f"{symbol}->{answer}" if answer else symbol for symbol, answer in pairs)
    return row


def _plain(row: str | Picture | Answers) -> Any:
    if isinstance(row, Picture):
        return {"label": row.label, "pixels": row.pixels.tolist()}
    return vars(row) if isinstance(row, Answers) else row


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[metrics]}", markup=False),
        console=console,
    )


def _short(name: str, value: float | str) -> str:
    if isinstance(value, str):
        return value
    if name.endswith("per_second"):
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _unbroken(text: str) -> str:
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _print_statistics(statistics: Mapping[str, Any]) -> None:
    for name, value in statistics.items():
        if isinstance(value, Mapping) and any(isinstance(v, Mapping) for v in value.values()):
            for key, inner in value.items():
                print(f"  {key}: {_joined(inner)}")
        elif isinstance(value, Mapping):
            print(f"  {name}: {_joined(value)}")
        else:
            print(f"  {name}: {_number(value)}")


def _joined(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_number(value)}" for name, value in values.items())


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.5g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _print_lineage(parents: Sequence[Parent], indent: str) -> None:
    for parent in parents:
        print(f"{indent}from {parent.path}: {parent.kind} {parent.digest[:12]}")
        _print_lineage(parent.parents, indent + "  ")


def _print_evaluation(statistics: Mapping[str, Any]) -> None:
    """A row a predictor, a column a range of positions."""
    results = statistics["results"]
    in_bytes = all(result["bits_per_byte"] is not None for result in results)
    unit = "bits_per_byte" if in_bytes else "bits_per_token"
    ranges = list(dict.fromkeys(result["range"] for result in results))
    window = statistics["window"]
    table = Table(
        title=f"{unit.replace('_', ' ')} on {statistics['split']}, "
        f"{statistics['windows']} windows, T = {window}",
        box=box.SIMPLE,
        pad_edge=False,
    )
    table.add_column("position", no_wrap=True)
    for name in ranges:
        table.add_column(name, justify="right")
    for predictor in dict.fromkeys(result["predictor"] for result in results):
        cells = {r["range"]: r for r in results if r["predictor"] == predictor}
        table.add_row(predictor, *(_cell(cells.get(name), unit) for name in ranges))
    console = Console(highlight=False)
    console.print(table)
    if statistics["tokens"] == "symbols":
        _print_accuracy(results, ranges)
    if statistics["drift"]:
        marks = sorted({1, window // 4, window // 2, window} - {0})
        values = ", ".join(f"{statistics['drift'][i - 1]:.3f} at {i}" for i in marks)
        print(f"  drift of the free-running memory from the teacher's: {values}")
    for name, health in (statistics.get("memory") or {}).items():
        print(f"  memory of {name}: {_joined(health)}")
    for key, title in (("by_distance", "distance"), ("by_length", "length")):
        if statistics.get(key):
            _print_accuracy_by(title, statistics[key])
    if statistics.get("gradients"):
        _print_gradients(statistics["gradients"])
    if statistics.get("cost"):
        _print_cost(statistics["cost"])


def _print_accuracy(results: Sequence[Mapping[str, Any]], ranges: Sequence[str]) -> None:
    """Of tasks: how often the likeliest token is the answer."""
    table = Table(title="accuracy", box=box.SIMPLE)
    table.add_column("position")
    for name in ranges:
        table.add_column(name, justify="right")
    told = [result for result in results if result["accuracy"] is not None]
    for predictor in dict.fromkeys(result["predictor"] for result in told):
        cells = {r["range"]: f"{r['accuracy']:.1%}" for r in told if r["predictor"] == predictor}
        table.add_row(predictor, *(cells.get(name, "-") for name in ranges))
    Console(highlight=False).print(table)


def _print_accuracy_by(title: str, records: Sequence[Mapping[str, Any]]) -> None:
    """A row a distance, or a length of row; a column a predictor."""
    told = [record for record in records if record["accuracy"] is not None]
    table = Table(title=f"accuracy by {title}", box=box.SIMPLE)
    table.add_column(title)
    predictors = list(dict.fromkeys(record["predictor"] for record in told))
    for predictor in ("targets", *predictors):
        table.add_column(predictor, justify="right")
    key = "range" if title == "distance" else title
    ordered = sorted(told, key=lambda record: record.get("first", record.get("length")))
    for place in dict.fromkeys(record[key] for record in ordered):
        here = {record["predictor"]: record for record in told if record[key] == place}
        most = max(record["targets"] for record in here.values())
        shares = (f"{here[p]['accuracy']:.1%}" if p in here else "-" for p in predictors)
        table.add_row(str(place), f"{most:,}", *shares)
    Console(highlight=False).print(table)


def _print_gradients(records: Sequence[Mapping[str, Any]]) -> None:
    """How the gradient decays with distance, along each path."""
    table = Table(title="gradient of nll(target i + d) by memory i", box=box.SIMPLE)
    table.add_column("path, weights")
    for name in ("d = 1", "longest d", "power law (R\N{SUPERSCRIPT TWO})", "exponential", "better"):
        table.add_column(name, justify="right")
    for record in records:
        points = {point["distance"]: f"{point['norm']:.2g}" for point in record["curve"]}
        last = max(points, default=0)
        fits = record["fits"]
        table.add_row(
            f"{record['path']}, {record['weights']}",
            points.get(1, "-"),
            f"{points[last]} at {last}" if points else "-",
            _fit(fits["power_law"], "exponent", "d^{:.2f}"),
            _fit(fits["exponential"], "length", "e^(d/{:.3g})"),
            fits["better"] or "-",
        )
    Console(highlight=False).print(table)


def _fit(fit: Mapping[str, Any] | None, key: str, form: str) -> str:
    """The law with its parameter, and how well it fits."""
    if fit is None or fit[key] is None or fit["r_squared"] is None:
        return "-"
    return f"{form.format(-fit[key])} ({fit['r_squared']:.2f})"


def _print_cost(records: Sequence[Mapping[str, Any]]) -> None:
    """A row a predictor, a column a number of tokens read before."""
    table = Table(title="milliseconds and MiB for the next token, after", box=box.SIMPLE)
    table.add_column("tokens")
    counts = list(dict.fromkeys(record["tokens"] for record in records))
    for count in counts:
        table.add_column(f"{count:,}", justify="right")
    for predictor in dict.fromkeys(record["predictor"] for record in records):
        cells = {r["tokens"]: _cost(r) for r in records if r["predictor"] == predictor}
        table.add_row(predictor, *(cells.get(count, "-") for count in counts))
    console = Console(highlight=False)
    console.print(table)
    for record in records:
        where = f"{record['predictor']} after {record['tokens']:,}"
        if record["skipped"]:
            console.print(f"  {where}: {record['skipped']}")


def _cost(record: Mapping[str, Any]) -> str:
    seconds = record["seconds_per_token"]
    shown = "-" if seconds is None else f"{seconds * 1000:.3g}"
    return f"{shown} / {record['bytes'] / 2**20:.3g}"


def _cell(result: Mapping[str, Any] | None, unit: str) -> str:
    if result is None:
        return "-"
    error = result["nll_standard_error"]
    if error is None:
        return f"{result[unit]:.3f}"
    scale = result[unit] / result["nll"] if result["nll"] else 1 / math.log(2)
    return f"{result[unit]:.3f} \N{PLUS-MINUS SIGN}{error * scale:.3f}"
