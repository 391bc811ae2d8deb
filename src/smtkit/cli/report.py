"""`smtkit report`."""

import json
from typing import Any

from smtkit import config as schemas
from smtkit.cli.command import (
    DEBUG,
    JSON,
    OVERWRITE,
    QUIET,
    REQUIRED,
    SETTINGS,
    Command,
    shown_by,
)
from smtkit.cli.options import ARTIFACTS, arguments, option
from smtkit.cli.plain import plain, plain_json


def show_report(report: Any, *, as_json: bool) -> None:
    """The page, and which commands give what it does not show."""
    if as_json:
        tables = list(map(str, report.tables))
        found = {"page": str(report.page), "csv": tables, "missing": report.missing}
        print(plain_json(json.dumps(found, indent=2)))
        return
    print(plain(f"{report.page}: {report.page.stat().st_size:,} bytes"))
    for section, lines in report.missing.items():
        for line in lines:
            print(plain(f"  no {section}: {line}"))


REPORT = Command(
    "report",
    schemas.ReportConfig,
    (
        arguments("runs", "RUN...", "Artifacts to show, of any kind."),
        option("--out, -o FILE", "HTML file to write.", str, REQUIRED, ARTIFACTS),
        option("--csv DIR", "Also write the numbers of each figure.", section=ARTIFACTS),
        *SETTINGS,
        OVERWRITE,
        JSON,
        QUIET,
        DEBUG,
    ),
    (
        "smtkit report encoder rnn tokens evaluation --out report.html",
        "smtkit report sweep/*/rnn sweep/*/evaluation --out sweep.html",
    ),
    shown_by(show_report),
)
