"""generate."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from smtkit.cli.options import ARTIFACT, ConfigFile, Debug, Device, Overwrite, Seed, Settings


def generate(
    rnn: Annotated[str, typer.Argument(metavar="RNN", help="An rnn artifact.")],
    prompt: Annotated[str | None, typer.Option(help="Text to go on from.")] = None,
    tokens: Annotated[
        str | None,
        typer.Option(metavar=ARTIFACT, help="A tokens artifact, for images or rows to go on from."),
    ] = None,
    from_split: Annotated[
        str | None, typer.Option(help="Of --tokens: train, validation or test.")
    ] = None,
    given: Annotated[
        str | None, typer.Option(metavar="X", help="Share of each image that is given.")
    ] = None,
    samples: Annotated[
        str | None, typer.Option(metavar="N", help="How many images, or rows of a task.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="PNG file of the images; else drawn.")
    ] = None,
    temperature: Annotated[
        str | None,
        typer.Option(metavar="X", help="0: the likeliest always; so for tasks, if unset."),
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
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Write text, images, or answers to the rows of a task with the RNN alone.

    Text is streamed as it comes. Images come from nothing, or complete the top of images of
    --tokens. A task's answers stand beside the right ones.
    """
    from smtkit.config import GenerateConfig
    from smtkit.config.layering import resolve
    from smtkit.stages import generate as stage

    flags = {
        "prompt": prompt,
        "from_split": from_split,
        "given": given,
        "samples": samples,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "max_tokens": max_tokens,
        "seed": seed,
        "device": device,
    }
    resolved = resolve(GenerateConfig, config, settings or (), flags)
    pieces = stage.run(resolved, rnn, tokens=tokens, out=out, overwrite=overwrite)
    sys.stdout.write(resolved.prompt)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
