"""`smtkit report`: one HTML page that shows and compares runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from smtkit.config import ReportConfig
from smtkit.errors import UsageError
from smtkit.report import networks, page, results, training
from smtkit.report.content import Section
from smtkit.report.runs import Runs, open_runs
from smtkit.storage.files import named_errors, write_atomically
from smtkit.storage.location import PathOrURI, local_path
from smtkit.training.progress import Progress, Silent


@dataclass(frozen=True)
class Report:
    """What was written: the page, CSV files, and the lines about what is not shown."""

    page: Path
    tables: list[Path]
    missing: dict[str, list[str]]
    """Name of a section to what it lacks."""


def run(
    config: ReportConfig,
    runs: Sequence[PathOrURI],
    out: PathOrURI,
    *,
    csv: PathOrURI | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Writes the page `out` about the artifacts `runs`; with `csv`, also the numbers of each figure
    to a file in that directory.

    RNNs are loaded for the sections on memory and samples. Raises UsageError, ArtifactError,
    InputOutputError.
    """
    path = local_path(out, "out")
    tables_at = None if csv is None else local_path(csv, "csv")
    if path.is_dir():
        raise UsageError(f"`out` {path}: is a directory", "name a file, for example report.html")
    if path.exists() and not overwrite:
        raise UsageError(f"`out` {path}: exists", "`overwrite` replaces it")
    progress = progress or Silent()
    opened = open_runs(runs)
    sections = []
    parts = _sections(opened, config)
    for number, (name, section) in enumerate(parts):
        progress.update("report", number, len(parts), section=name)
        sections.append(section())
    progress.update("report", len(parts), len(parts))
    names = ", ".join(dict.fromkeys(run.label for run in opened))
    with named_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page.render(config.title, names, sections))
    tables = [] if tables_at is None else _write_tables(tables_at, sections)
    missing = {section.name: list(section.missing) for section in sections if section.missing}
    return Report(path, tables, missing)


def _sections(runs: Runs, config: ReportConfig) -> list[tuple[str, Callable[[], Section]]]:
    """The sections in the order of the page."""
    return [
        ("ladder", partial(results.ladder, runs)),
        ("training", partial(training.curves, runs)),
        ("length", partial(results.lengths, runs)),
        ("distance", partial(results.distance, runs)),
        ("sufficiency", partial(results.sufficiency, runs)),
        ("drift", partial(results.drift, runs)),
        ("memory", partial(networks.memory, runs, config)),
        ("samples", partial(networks.samples, runs, config)),
        ("cost", partial(training.cost, runs)),
        ("lineage", partial(training.lineage, runs)),
    ]


def _write_tables(directory: Path, sections: Sequence[Section]) -> list[Path]:
    with named_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    written = []
    for section in sections:
        for figure in section.figures:
            path = directory / f"{figure.name}.csv"
            write_atomically(path, page.csv_text(figure.data))
            written.append(path)
    return written
