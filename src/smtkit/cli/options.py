"""Flags that commands share, and how a stage is run for them."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from smtkit.cli import launcher

if TYPE_CHECKING:
    from smtkit.cli.terminal import Terminal
    from smtkit.storage.manifest import Manifest

ResultT = TypeVar("ResultT")

# Text, and no Path, which would make one slash of the two of a URI.
ARTIFACT = "DIR|URI"
Out = Annotated[
    str,
    typer.Option(
        "--out",
        "-o",
        metavar=ARTIFACT,
        help="Directory of the new artifact, or its URI, as s3://bucket/name.",
    ),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="TOML file of settings.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="section.key=value; repeatable, stronger than --config."),
]
Seed = Annotated[str | None, typer.Option("--seed", metavar="N", help="Of all random numbers.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda.")]
MaxSteps = Annotated[
    str | None, typer.Option("--max-steps", metavar="N", help="Stop after so many updates.")
]
MaxSeconds = Annotated[
    str | None,
    typer.Option("--max-seconds", metavar="X", help="Stop after so many seconds of training."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what --out holds.")]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on with an unfinished run, start where there is none, keep a complete one. With "
        "--overwrite: make anew what was made with other settings or inputs.",
    ),
]
Nproc = Annotated[
    int | None,
    typer.Option(
        "--nproc",
        metavar="N",
        min=1,
        help="Share the work among N processes of this machine; under torchrun, not needed.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def training_flags(max_steps: str | None, max_seconds: str | None) -> dict[str, str | None]:
    return {"training.max_steps": max_steps, "training.max_seconds": max_seconds}


def run_stage(
    json: bool,
    quiet: bool,
    out: str,
    stage: Callable[["Terminal"], "Manifest"],
) -> None:
    """Runs a stage and shows its manifest; everything it imports is imported only now."""
    from smtkit.cli.terminal import Terminal

    with Terminal(json=json, quiet=quiet) as terminal:
        manifest = stage(terminal)
    terminal.show(manifest, out)


def run_on_ranks(
    nproc: int | None,
    json: bool,
    quiet: bool,
    stage: Callable[["Terminal"], ResultT],
    show: Callable[["Terminal", ResultT], None],
) -> None:
    """Runs a stage, on `nproc` processes where this is not one of them, and on the first of them
    shows its result."""
    if launcher.must_launch(nproc):
        raise typer.Exit(launcher.launch(nproc or 1))
    from smtkit.cli.terminal import Terminal

    first = launcher.is_first()
    with (
        launcher.among_ranks(),
        Terminal(json=json and first, quiet=quiet or not first) as terminal,
    ):
        result = stage(terminal)
    if first:
        show(terminal, result)


def shown_in(out: str) -> Callable[["Terminal", "Manifest"], None]:
    return lambda terminal, manifest: terminal.show(manifest, out)
