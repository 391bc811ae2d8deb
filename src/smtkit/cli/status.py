"""`smtkit status`."""

import json
from dataclasses import asdict
from typing import Any

from smtkit.cli.command import DEBUG, JSON, Command, Given
from smtkit.cli.options import argument
from smtkit.cli.plain import plain, plain_json


def _status(stage: Any, config: None, given: Given) -> None:
    """Show which artifacts are done, stale or unfinished.

    stale: an input has changed since. unfinished: a run was interrupted; the same command with
    --resume continues it."""
    found = stage.run(given["directory"])
    if given["json"]:
        print(plain_json(json.dumps([asdict(status) for status in found], indent=2)))
        return
    if not found:
        print(plain(f"{given['directory']}: no artifacts"))
    width = max((len(status.path) for status in found), default=0)
    for status in found:
        hint = " (go on with --resume)" if status.state == "unfinished" else ""
        line = f"{status.path:<{width}}  {status.kind:<10}  {status.state:<10}  {status.detail}"
        print(plain(line + hint))


STATUS = Command(
    "status",
    None,
    (argument("directory", "DIR", "Directory of artifacts."), JSON, DEBUG),
    ("smtkit status artifacts", "smtkit status . --json"),
    _status,
)
