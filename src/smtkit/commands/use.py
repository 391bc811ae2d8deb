"""eval, generate."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from smtkit.commands.options import (
    ConfigFile,
    Debug,
    Device,
    Json,
    Out,
    Overwrite,
    Quiet,
    Resume,
    Seed,
    Settings,
    run_stage,
)


def evaluate(
    rnn: Annotated[Path, typer.Argument(metavar="RNN", help="An rnn artifact.")],
    tokens: Annotated[Path, typer.Option(help="A tokens artifact of the same tokenizer.")],
    out: Out,
    encoder: Annotated[
        Path | None, typer.Option(help="The encoder it learned from: adds teacher and drift.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="train, validation or test.")] = None,
    windows: Annotated[
        str | None, typer.Option(metavar="N", help="How many windows of 4 T tokens.")
    ] = None,
    config: ConfigFile = None,
    settings: Settings = None,
    device: Device = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare the RNN, free-running, with its teacher and with n-gram baselines."""
    from smtkit.config import EvaluateConfig
    from smtkit.resolve import resolve
    from smtkit.stages import evaluate as stage

    flags = {"split": split, "windows": windows, "device": device}
    resolved = resolve(EvaluateConfig, config, settings or (), flags)
    run_stage(
        json,
        quiet,
        out,
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
    )


def generate(
    rnn: Annotated[Path, typer.Argument(metavar="RNN", help="An rnn artifact.")],
    prompt: Annotated[str | None, typer.Option(help="Text to go on from.")] = None,
    temperature: Annotated[
        str | None, typer.Option(metavar="X", help="0: the likeliest always.")
    ] = None,
    top_k: Annotated[
        str | None, typer.Option(metavar="N", help="Among the k likeliest tokens.")
    ] = None,
    top_p: Annotated[
        str | None, typer.Option(metavar="X", help="Among the fewest tokens of this probability.")
    ] = None,
    max_tokens: Annotated[str | None, typer.Option(metavar="N", help="Stop after so many.")] = None,
    config: ConfigFile = None,
    settings: Settings = None,
    seed: Seed = None,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Write text with the RNN alone, streamed as it comes."""
    from smtkit.config import GenerateConfig
    from smtkit.resolve import resolve
    from smtkit.stages import generate as stage

    flags = {
        "prompt": prompt,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "max_tokens": max_tokens,
        "seed": seed,
        "device": device,
    }
    resolved = resolve(GenerateConfig, config, settings or (), flags)
    pieces = stage.run(resolved, rnn)
    sys.stdout.write(resolved.prompt)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
