"""`smtkit plan`."""

import json
from dataclasses import asdict
from typing import Any

from smtkit.cli.command import DEBUG, JSON, Command, Given
from smtkit.cli.options import ARTIFACTS, arguments, option, with_flags
from smtkit.cli.plain import plain, plain_json
from smtkit.training.sizes import gigabytes


def _plan(stage: Any, config: None, given: Given) -> None:
    """Measure what settings take, for about a second per stage.

    Shows parameters, time, memory, bytes of labels, and what does not fit. A file is named after
    its stage: encoder.toml, labels.toml, rnn.toml, dmt.toml, bptt.toml."""
    plans = stage.run(given["settings"], given["tokens"])
    if given["json"]:
        print(plain_json(json.dumps([asdict(plan) for plan in plans], indent=2)))
        return
    for plan in plans:
        print(plain(f"{plan.command}  {plan.settings}"))
        for name, text in _lines(plan):
            print(f"  {name:<11}{text}")
        for problem in plan.problems:
            print(plain(f"  problem    {with_flags(problem, {})}"))
    known = [plan.seconds for plan in plans if plan.seconds is not None]
    print(f"together about {_time(sum(known))}, without validations")


def _lines(plan: Any) -> list[tuple[str, str]]:
    lines = []
    if plan.parameters:
        parts = ", ".join(f"{name} {count:,}" for name, count in plan.parameters.items())
        lines.append(("parameters", f"{sum(plan.parameters.values()):,}: {parts}"))
    lines.append(("windows", _windows(plan)))
    lines.append(("time", _duration(plan)))
    limit = f" of {gigabytes(plan.available)}" if plan.available else ""
    lines.append(("memory", f"{gigabytes(plan.memory)}{limit}{_scaled(plan)}"))
    if plan.disk is not None:
        lines.append(("disk", f"{gigabytes(plan.disk)}, {gigabytes(plan.disk_free)} are free here"))
    return lines


def _windows(plan: Any) -> str:
    available = "" if plan.windows is None else f" of {plan.windows:,}"
    if plan.steps is None:
        return "all, unknown how many" if plan.reads is None else f"{plan.reads:,}{available}"
    reads = f"{plan.steps:,} updates of {plan.batch} read {plan.reads:,}"
    epochs = f", {plan.reads / plan.windows:.3g} times each" if plan.windows else ""
    return f"{reads}{available}{epochs}"


def _duration(plan: Any) -> str:
    unit = "update" if plan.steps is not None else "window"
    each = f"{plan.unit_seconds * 1000:,.3g} ms per {unit}{_scaled(plan)}"
    return each if plan.seconds is None else f"{_time(plan.seconds)}: {each}"


def _scaled(plan: Any) -> str:
    if plan.measured_batch == plan.batch:
        return ""
    return f" (scaled up from a batch of {plan.measured_batch})"


def _time(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


PLAN = Command(
    "plan",
    None,
    (
        arguments("settings", "CONFIG...", "TOML files, or folders of them."),
        option("--tokens DIR|URI", "Tokens artifact to train on.", section=ARTIFACTS),
        JSON,
        DEBUG,
    ),
    ("smtkit plan my-pipeline --tokens tokens", "smtkit plan encoder.toml labels.toml dmt.toml"),
    _plan,
)
