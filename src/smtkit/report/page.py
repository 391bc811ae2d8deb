"""The page: one HTML file without scripts, which loads nothing.

Every text is escaped, and the page's policy forbids scripts and requests, so that nothing that an
artifact contains can run.
"""

import base64
import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib.resources import files
from urllib.parse import quote

from smtkit.report.content import Cell, Figure, Key, Lineage, Sample, Section, Table

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The page of the sections, in their order."""
    style = (files("smtkit.report") / "page.css").read_text("utf-8")
    links = " ".join(f'<a href="#{s.name}">{_text(s.title)}</a>' for s in sections)
    body = "\n".join(part for section in sections for part in _section(section))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_text(title)}</title>
<style>
{style}</style>
</head>
<body>
<header><h1>{_text(title)}</h1><p>{_text(subtitle)}</p><nav>{links}</nav></header>
<main>
{body}
</main>
</body>
</html>
"""


def csv_text(table: Table) -> str:
    """The table as CSV."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.head)
    writer.writerows([["" if cell is None else cell for cell in row] for row in table.rows])
    return buffer.getvalue()


def _section(section: Section) -> Iterator[str]:
    yield f'<section id="{section.name}"><h2>{_text(section.title)}</h2>'
    if section.text:
        yield f"<p>{_text(section.text)}</p>"
    if section.figures:
        yield '<div class="figures">' + "\n".join(map(_figure, section.figures)) + "</div>"
    yield from map(_table, section.tables)
    for row in section.samples:
        yield '<div class="samples">' + "\n".join(map(_sample, row)) + "</div>"
    yield from map(_lineage, section.lineage)
    for line in section.missing:
        yield f'<p class="missing">Not shown: {_text(line)}</p>'
    yield "</section>"


def _figure(figure: Figure) -> str:
    legend = "".join(map(_key, figure.legend))
    data = quote(csv_text(figure.data), errors="replace")
    return (
        f"<figure><figcaption>{_text(figure.title)}</figcaption>{figure.svg}"
        f'<ul class="legend">{legend}</ul>'
        f'<a class="data" download="{_text(figure.name)}.csv" '
        f'href="data:text/csv;charset=utf-8,{data}">CSV</a></figure>'
    )


def _key(key: Key) -> str:
    opacity = 0.5 if key.faint else 1
    style = f"border-color:{key.color};border-top-style:{key.dash};opacity:{opacity}"
    return f'<li><i style="{style}"></i>{_text(key.label)}</li>'


def _table(table: Table) -> str:
    title = f"<caption>{_text(table.title)}</caption>" if table.title else ""
    head = _row("th", table.head)
    body = "".join(_row("td", row) for row in table.rows)
    return f'<div class="scroll"><table>{title}<thead>{head}</thead>{body}</table></div>'


def _row(tag: str, cells: Iterable[Cell]) -> str:
    return "<tr>" + "".join(f"<{tag}>{_text(_shown(cell))}</{tag}>" for cell in cells) + "</tr>"


def _shown(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:,.4g}" if abs(cell) < 1e4 else f"{cell:,.0f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def _sample(sample: Sample) -> str:
    title = f"<h3>{_text(sample.title)}</h3>"
    if sample.png is not None:
        data = base64.b64encode(sample.png).decode()
        image = f'<img alt="{_text(sample.title)}" src="data:image/png;base64,{data}">'
        return f"<article>{title}{image}</article>"
    given = f"<b>{_text(sample.given)}</b>" if sample.given else ""
    return f"<article>{title}<pre>{given}{_text(sample.text)}</pre></article>"


def _lineage(tree: Lineage) -> str:
    details = "".join(
        f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in tree.details.items()
    )
    details = f"<dl>{details}</dl>" if details else ""
    parents = "".join(f"<li>{_lineage(parent)}</li>" for parent in tree.parents)
    parents = f"<ul>{parents}</ul>" if parents else ""
    if not details:
        return f"{_text(tree.title)}{parents}"
    return f"<details><summary>{_text(tree.title)}</summary>{details}{parents}</details>"


def _text(text: str) -> str:
    """Text as HTML, without control characters and halves of characters."""
    whole = text.encode("utf-8", "replace").decode()
    return escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", whole))
