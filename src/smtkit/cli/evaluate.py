"""eval."""

from typing import Annotated

import typer

from smtkit.cli.options import (
    ARTIFACT,
    ConfigFile,
    Debug,
    Device,
    Json,
    Nproc,
    Out,
    Overwrite,
    Quiet,
    Resume,
    Settings,
    run_on_ranks,
    shown_in,
)


def evaluate(
    rnn: Annotated[str, typer.Argument(metavar="RNN", help="An rnn artifact.")],
    tokens: Annotated[
        str, typer.Option(metavar=ARTIFACT, help="A tokens artifact of the same tokenizer.")
    ],
    out: Out,
    encoder: Annotated[
        str | None,
        typer.Option(metavar=ARTIFACT, help="The encoder it learned from: adds teacher and drift."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="train, validation or test.")] = None,
    windows: Annotated[
        str | None, typer.Option(metavar="N", help="How many windows, or rows.")
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(metavar="N", help="Of text: windows of N times the trained window."),
    ] = None,
    gradients: Annotated[
        bool,
        typer.Option(
            "--gradients",
            help="Also how gradients decay with distance: through the cell and, with --encoder, "
            "through the decoder.",
        ),
    ] = False,
    cost: Annotated[
        bool, typer.Option("--cost", help="Also time and memory a token, at 100 to 100,000 tokens.")
    ] = False,
    config: ConfigFile = None,
    settings: Settings = None,
    device: Device = None,
    nproc: Nproc = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare the RNN, free-running, with its teacher and with n-gram baselines."""
    from smtkit.config import EvaluateConfig
    from smtkit.config.layering import resolve
    from smtkit.stages import evaluate as stage

    flags = {
        "split": split,
        "windows": windows,
        "lengths": lengths,
        "gradients": gradients or None,
        "cost": cost or None,
        "device": device,
    }
    resolved = resolve(EvaluateConfig, config, settings or (), flags)
    run_on_ranks(
        nproc,
        json,
        quiet,
        lambda terminal: stage.run(
            resolved,
            rnn,
            tokens,
            out,
            encoder=encoder,
            overwrite=overwrite,
            resume=resume,
            progress=terminal,
        ),
        shown_in(out),
    )
