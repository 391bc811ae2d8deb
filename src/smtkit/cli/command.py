"""The class of all commands, and what they share: options, ranks, settings, printing."""

import inspect
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from smtkit import config as schemas
from smtkit.cli import launcher
from smtkit.cli.options import ARTIFACTS, flags_of, option, values_of, with_flags
from smtkit.cli.startup import ended_by_interrupt

if TYPE_CHECKING:
    from smtkit.cli.terminal import Terminal

Given = dict[str, Any]
"""Parsed parameters of a command, by name."""
ResultT = TypeVar("ResultT")
REQUIRED = inspect.Parameter.empty

# Artifacts are text, no Path, which would make one slash of the two of a URI.
OUT = option(
    "--out, -o DIR|URI",
    "Directory or URI (s3://bucket/name) of the new artifact.",
    str,
    REQUIRED,
    ARTIFACTS,
)
TOKENS = option(
    "--tokens DIR|URI", "Tokens artifact of the same tokenizer.", str, REQUIRED, ARTIFACTS
)
SETTINGS = (
    option("--config, -c FILE", "TOML file of settings.", Path | None),
    option(
        "--set KEY=VALUE",
        "Any setting of docs/configuration.md; repeatable, stronger than --config.",
        list[str] | None,
    ),
    option("--print-config", "Print every setting and where it was set, as TOML, and exit."),
)
OVERWRITE = option("--overwrite", "Replace what --out holds.")
JSON = option("--json", "Print the result as JSON on stdout.")
DEBUG = option("--debug", "Show the traceback of an error.")
QUIET = option("--quiet, -q", "Show neither progress nor a summary.")
NPROC = option(
    "--nproc N", "Processes to run on this machine; omit under torchrun.", int | None, min=1
)
PATIENCE = option(
    "--patience SECONDS",
    "With several processes: end the run when one has not answered for so long.",
    float,
    300.0,
    min=1.0,
)
RANKS = (NPROC, PATIENCE)
RUN = (
    *SETTINGS,
    OVERWRITE,
    option(
        "--resume",
        "Continue an interrupted run, or a complete one for longer; start if there is none. With "
        "--overwrite: run again if settings or inputs changed.",
    ),
    option("--update", "Both: bring --out up to date, as a rule of a Makefile."),
    JSON,
    QUIET,
    DEBUG,
)


def on_ranks(given: Given, work: Callable[["Terminal"], ResultT]) -> ResultT | None:
    """Runs `work` in this process, or starts `nproc` of them. None on all ranks but the first."""
    nproc, patience = given.pop("nproc", None), given.pop("patience", math.inf)
    if launcher.must_launch(nproc):
        raise typer.Exit(launcher.launch(nproc))
    from smtkit.cli.terminal import Terminal

    first = launcher.is_first()
    with launcher.among_ranks(patience), Terminal(quiet=given["quiet"] or not first) as terminal:
        result = work(terminal)
    return result if first else None


def for_stage(given: Given) -> Given:
    """The parsed parameters that the stage takes."""
    return {name: value for name, value in given.items() if name not in ("json", "quiet", "debug")}


def run(stage: Any, config: schemas.Config, given: Given) -> None:
    """Runs a stage that makes an artifact, and prints its manifest."""
    manifest = on_ranks(given, lambda t: stage.run(config, progress=t, **for_stage(given)))
    if manifest is not None:
        from smtkit.cli.results import show_manifest

        show_manifest(manifest, given["out"], as_json=given["json"], quiet=given["quiet"])


def shown_by(show: Callable[..., None]) -> Callable[[Any, Any, Given], None]:
    """A function that runs a stage and shows its result by `show(result, as_json=...)`."""

    def run_and_show(stage: Any, config: schemas.Config, given: Given) -> None:
        result = on_ranks(given, lambda t: stage.run(config, progress=t, **for_stage(given)))
        if given["json"] or not given["quiet"]:
            show(result, as_json=given["json"])

    return run_and_show


@dataclass(frozen=True)
class Command:
    """`smtkit NAME`: runs the stage of that name. Its help is the docstring of the schema."""

    name: str
    schema: type[schemas.Config] | None
    parameters: tuple[inspect.Parameter, ...]
    """Arguments, and options that are no settings."""
    examples: tuple[str, str]
    run: Callable[[Any, Any, Given], None] = run

    @property
    def help(self) -> str:
        return inspect.cleandoc((self.schema or self.run).__doc__ or "")

    def __call__(self, **given: Any) -> None:
        config = None
        if self.schema:
            flags = values_of(self.schema, given)
            file, overrides = given.pop("config"), given.pop("set") or ()
            config, origins = schemas.layer(self.schema, file, overrides, flags)
            if given.pop("print_config"):
                _print_config(config, origins, flags_of(self.schema, self.parameters))
                return
        if given.pop("update", False):
            given["overwrite"] = given["resume"] = True
        name = {"eval": "evaluate"}.get(self.name, self.name.replace("-", "_"))
        with ended_by_interrupt():
            stage = import_module(f"smtkit.stages.{name}")
            for module in ("results", "terminal"):  # what the command imports when it runs
                import_module(f"smtkit.cli.{module}")
        self.run(stage, config, given)


def _print_config(config: schemas.Config, origins: dict[str, str], flags: dict[str, str]) -> None:
    """TOML of every setting, with its origin; commented out what is unset or has no effect."""
    reasons = schemas.without_effect(config)
    for key, value in schemas.flatten(config.model_dump(mode="json")):
        line = f"{key} = {'unset' if value is None else json.dumps(value)}"
        line = f"# {line}" if value is None or key in reasons else line
        origin = with_flags(origins.get(key, "default"), flags)
        print(f"{line:<48}  # {origin}" + (f"; {reasons[key]}" if key in reasons else ""))
