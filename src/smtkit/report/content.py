"""The content of a report: sections of figures, tables, texts and pictures, none of it HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers; the first column is text."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""


@dataclass(frozen=True)
class Key:
    """An entry of a legend: a line or dot of colour `color`, dashed by `dash` (as in CSS)."""

    label: str
    color: str
    dash: str = "solid"
    faint: bool = False


@dataclass(frozen=True)
class Figure:
    """A drawing as SVG, its legend, and the numbers in it."""

    name: str
    title: str
    svg: str
    legend: Sequence[Key]
    data: Table


@dataclass(frozen=True)
class Sample:
    """A sample of an RNN: text, or a picture as PNG; `given` is the prompt before a text."""

    title: str
    text: str = ""
    given: str = ""
    png: bytes | None = None


@dataclass(frozen=True)
class Lineage:
    """An artifact and what it was made from."""

    title: str
    details: Mapping[str, str]
    parents: Sequence["Lineage"] = ()


@dataclass(frozen=True)
class Section:
    """A part of the page. `missing`: which command gives what it lacks."""

    name: str
    title: str
    text: str = ""
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    samples: Sequence[Sequence[Sample]] = ()
    """Rows of samples to be compared."""
    lineage: Sequence[Lineage] = ()
    missing: Sequence[str] = field(default_factory=list)
