"""Results of the stages, on stdout: as JSON, lines or tables."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from smtkit.cli.plain import plain, plain_json, plain_values
from smtkit.corpus.pictures import shades
from smtkit.errors import ArtifactError
from smtkit.stages.inspect import Answers, Inspection, Picture
from smtkit.storage.manifest import Manifest, Parent

Record = Mapping[str, Any]


def show_manifest(manifest: Manifest, path: str, *, as_json: bool, quiet: bool = False) -> None:
    """The statistics of an artifact; for an evaluation, its tables."""
    if as_json:
        print(plain_json(manifest.text().rstrip()))
    elif not quiet:
        print(plain(f"{path}: {manifest.kind} {manifest.digest[:12]}"))
        statistics = plain_values(manifest.statistics)
        if manifest.kind != "evaluation":
            _print_statistics(statistics)
            return
        try:
            _print_evaluation(statistics)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
            raise ArtifactError(f"{path}: its statistics are not those of an evaluation") from None


def show_inspection(inspection: Inspection, path: str, *, as_json: bool, draw: bool) -> None:
    """An artifact, its lineage, its counts, and the rows that were drawn; images only with
    `draw`."""
    manifest = inspection.manifest
    if as_json:
        content = {
            "manifest": json.loads(manifest.text()),
            "counts": inspection.counts,
            "rows": [_plain(row) for row in inspection.rows],
        }
        print(json.dumps(content, indent=2))
        return
    show_manifest(manifest, path, as_json=False)
    size = sum(entry.bytes for entry in manifest.files)
    print(plain(f"  {len(manifest.files)} files, {size:,} bytes, finished {manifest.finished}"))
    print(plain(f"  $ {manifest.command}"))
    _print_lineage(manifest.parents, "  ")
    for split, counts in inspection.counts.items():
        print(f"{split}: {_joined(counts)}")
    for number, row in enumerate(inspection.rows, start=1):
        if isinstance(row, Picture) and not draw:
            continue
        print(plain(f"--- row {number}" + (f": {row.label}" if isinstance(row, Picture) else "")))
        print(plain(_drawn(row)))


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


def _print_statistics(statistics: Record) -> None:
    for name, value in statistics.items():
        if value is None:
            continue
        if isinstance(value, Mapping) and any(isinstance(v, Mapping) for v in value.values()):
            for key, inner in value.items():
                print(f"  {key}: {_joined(inner)}")
        else:
            print(f"  {name}: {_joined(value)}")


def _joined(values: Any) -> str:
    """A value, or names and values."""
    if not isinstance(values, Mapping):
        return _number(values)
    return ", ".join(f"{name} {_number(v)}" for name, v in values.items() if v is not None)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.5g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _print_lineage(parents: Sequence[Parent], indent: str) -> None:
    for parent in parents:
        print(plain(f"{indent}from {parent.path}: {parent.kind} {parent.digest[:12]}"))
        _print_lineage(parent.parents, indent + "  ")


def _print_evaluation(statistics: Record) -> None:
    results = statistics["results"]
    in_bytes = all(result["bits_per_byte"] is not None for result in results)
    unit = "bits_per_byte" if in_bytes else "bits_per_token"
    windows = f"{statistics['windows']} windows, T = {statistics['window']}"
    title = f"{unit.replace('_', ' ')} on {statistics['split']}, {windows}"
    _print_by_predictor(title, "position", results, "range", lambda result: _bits(result, unit))
    if statistics["tokens"] == "symbols":
        _print_by_predictor("accuracy", "position", _answered(results), "range", _accuracy)
    if statistics["drift"]:
        drift = _drift_at_marks(statistics["drift"])
        print(f"  drift of the free-running memory from the teacher's: {drift}")
    if statistics.get("drift_between_sequences"):
        drift = _drift_at_marks(statistics["drift_between_sequences"])
        print(f"  ... over the variance between sequences at one position: {drift}")
    if statistics.get("sufficiency"):
        _print_sufficiency(statistics["sufficiency"])
    for name, health in (statistics.get("memory") or {}).items():
        print(f"  memory of {name}: {_joined(health)}")
    for key, title in (("by_distance", "distance"), ("by_length", "length")):
        if statistics.get(key):
            _print_accuracy_by(title, _answered(statistics[key]))
    if statistics.get("gradients"):
        _print_gradients(statistics["gradients"])
    if statistics.get("cost"):
        _print_cost(statistics["cost"])


def _drift_at_marks(drift: Sequence[float | None]) -> str:
    """Drift at a few of the positions 1..T."""
    window = len(drift)
    marks = sorted({1, window // 4, window // 2, window} - {0})
    shown = ((i, drift[i - 1]) for i in marks)
    return ", ".join(f"{'-' if value is None else f'{value:.3f}'} at {i}" for i, value in shown)


def _print_accuracy_by(title: str, records: list[Record]) -> None:
    """One row per distance, or length of the row; one column per predictor."""
    predictors = _distinct(records, "predictor")
    key = "range" if title == "distance" else title
    records = sorted(records, key=lambda record: record.get("first", record.get("length")))
    rows = []
    for value in _distinct(records, key):
        here = {record["predictor"]: record for record in records if record[key] == value}
        most = max(record["targets"] for record in here.values())
        shares = (_accuracy(here[p]) if p in here else "-" for p in predictors)
        rows.append((str(value), f"{most:,}", *shares))
    _print_table(f"accuracy by {title}", [title, "targets", *predictors], rows)


def _print_sufficiency(records: Sequence[Record]) -> None:
    """The teacher's nll at an offset from a memory, and with full context; one row per offset."""
    rows = [
        (
            str(record["offset"]),
            f"{record['targets']:,}",
            *(f"{record[key]:.3f}" for key in ("nll", "full_context_nll", "gap")),
        )
        for record in records
    ]
    heads = ["offset", "targets", "from memory", "full context", "gap"]
    _print_table("sufficiency of the teacher's memory, nats per target", heads, rows)


def _print_gradients(records: Sequence[Record]) -> None:
    """How the gradient decays with distance, one row per path."""
    rows = []
    for record in records:
        points = {point["distance"]: f"{point['norm']:.2g}" for point in record["curve"]}
        last = max(points, default=0)
        fits = record["fits"]
        rows.append(
            (
                f"{record['path']}, {record['weights']}",
                points.get(1, "-"),
                f"{points[last]} at {last}" if points else "-",
                _fit(fits["power_law"], "exponent", "d^{:.2f}"),
                _fit(fits["exponential"], "length", "e^(d/{:.3g})"),
                fits["better"] or "-",
            )
        )
    heads = ["d = 1", "longest d", "power law (R\N{SUPERSCRIPT TWO})", "exponential", "better"]
    _print_table("gradient of nll(target i + d) by memory i", ["path, weights", *heads], rows)


def _fit(fit: Record | None, key: str, form: str) -> str:
    """The fitted law and its R squared."""
    if fit is None or fit[key] is None or fit["r_squared"] is None:
        return "-"
    return f"{form.format(-fit[key])} ({fit['r_squared']:.2f})"


def _print_cost(records: Sequence[Record]) -> None:
    """Cost of the next token, one column per number of tokens read before."""
    title = "milliseconds and MiB for the next token, after"
    _print_by_predictor(title, "tokens", records, "tokens", _cost)
    for record in records:
        if record["skipped"]:
            where = f"{record['predictor']} after {record['tokens']:,}"
            Console(highlight=False, markup=False, emoji=False).print(
                f"  {where}: {record['skipped']}"
            )


def _cost(record: Record) -> str:
    seconds = record["seconds_per_token"]
    shown = "-" if seconds is None else f"{seconds * 1000:.3g}"
    return f"{shown} / {record['bytes'] / 2**20:.3g}"


def _bits(result: Record, unit: str) -> str:
    error = result["nll_standard_error"]
    if error is None:
        return f"{result[unit]:.3f}"
    scale = result[unit] / result["nll"] if result["nll"] else 1 / math.log(2)
    return f"{result[unit]:.3f} \N{PLUS-MINUS SIGN}{error * scale:.3f}"


def _accuracy(record: Record) -> str:
    return f"{record['accuracy']:.1%}"


def _answered(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record["accuracy"] is not None]


def _distinct(records: Iterable[Record], key: str) -> list[Any]:
    return list(dict.fromkeys(record[key] for record in records))


def _print_by_predictor(
    title: str, head: str, records: Sequence[Record], key: str, cell: Callable[[Record], str]
) -> None:
    """One row per predictor, one column per value of `key`."""
    columns = _distinct(records, key)
    rows = []
    for predictor in _distinct(records, "predictor"):
        cells = {r[key]: cell(r) for r in records if r["predictor"] == predictor}
        rows.append((predictor, *(cells.get(column, "-") for column in columns)))
    _print_table(title, [head, *map(_number, columns)], rows)


def _print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """On a terminal that is too narrow, the last columns follow as tables of their own."""
    plain_text: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}
    console = Console(**plain_text)
    cells = [list(map(str, row)) for row in rows]
    widths = [max(map(cell_len, column)) + 3 for column in zip(columns, *cells, strict=True)]
    limit = console.width if console.is_terminal else sum(widths)
    first = 1
    while first < len(columns):
        stop = first + 1
        while stop < len(columns) and widths[0] + sum(widths[first : stop + 1]) <= limit:
            stop += 1
        table = Table(title=title, box=box.SIMPLE, pad_edge=False)
        for number in (0, *range(first, stop)):
            justify: Literal["left", "right"] = "right" if number else "left"
            table.add_column(columns[number], justify=justify, no_wrap=True)
        for row in cells:
            table.add_row(row[0], *row[first:stop])
        width = max(limit, console.width, widths[0] + sum(widths[first:stop]))
        Console(**plain_text, width=width).print(table)
        first = stop
