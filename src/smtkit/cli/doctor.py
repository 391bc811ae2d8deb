"""`smtkit doctor`."""

import json
from dataclasses import asdict
from typing import Any

from smtkit.cli.command import DEBUG, JSON, Command, Given
from smtkit.cli.options import with_flags
from smtkit.cli.plain import plain, plain_json


def _doctor(stage: Any, config: None, given: Given) -> None:
    """Show versions, threads, devices, disks and what is missing."""
    found = stage.run()
    if given["json"]:
        print(plain_json(json.dumps(asdict(found), indent=2)))
        return
    width = max(len(name) for facts in found.facts.values() for name in facts)
    for section, facts in found.facts.items():
        print(section)
        for name, fact in facts.items():
            print(plain(f"  {name:<{width}}  {fact}"))
    for problem in found.problems:
        print(plain(f"problem: {with_flags(problem, {'out': '--out'})}"))
    if not found.problems:
        print("no problems found")


DOCTOR = Command("doctor", None, (JSON, DEBUG), ("smtkit doctor", "smtkit doctor --json"), _doctor)
