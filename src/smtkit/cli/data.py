"""tokenize, synthesize, inspect."""

from pathlib import Path
from typing import Annotated

import typer

from smtkit.cli.options import (
    ConfigFile,
    Debug,
    Json,
    Out,
    Overwrite,
    Quiet,
    Resume,
    Seed,
    Settings,
    run_stage,
)
from smtkit.errors import UsageError


def tokenize(
    out: Out,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT...", help="Files, directories, globs; -: standard input."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="byte, char, sentencepiece, or pixel for images.")
    ] = None,
    test_input: Annotated[
        list[str] | None, typer.Option(help="Files that are the test split; repeatable.")
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option(help="Of directories, only files that match; repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Of directories, no files that match; repeatable.")
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option("--format", help="text, jsonl, csv or parquet; else by the file's suffix."),
    ] = None,
    text_field: Annotated[
        str | None, typer.Option(help="Field or column of the text in jsonl, csv, parquet.")
    ] = None,
    errors: Annotated[
        str | None, typer.Option(help="At broken rows or bytes: strict, replace or skip.")
    ] = None,
    max_expansion: Annotated[
        str | None, typer.Option(metavar="X", help="Bound on what compressed files expand to.")
    ] = None,
    vocab_size: Annotated[
        str | None, typer.Option(metavar="N", help="Of a sentencepiece model to train.")
    ] = None,
    model_type: Annotated[
        str | None, typer.Option(help="Of a sentencepiece model: unigram or bpe.")
    ] = None,
    tokenizer_model: Annotated[
        str | None, typer.Option(help="An existing sentencepiece model.")
    ] = None,
    levels: Annotated[str | None, typer.Option(metavar="N", help="Grey levels of pixels.")] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Resample images to this size, by area.")
    ] = None,
    maximum: Annotated[
        str | None, typer.Option(metavar="X", help="The white of the images' numbers.")
    ] = None,
    binarize: Annotated[
        str | None, typer.Option(metavar="X", help="Share of white from which a pixel is 1.")
    ] = None,
    order: Annotated[str | None, typer.Option(help="Of pixels: raster.")] = None,
    validation_fraction: Annotated[
        str | None, typer.Option(metavar="X", help="Share of the bytes.")
    ] = None,
    test_fraction: Annotated[
        str | None, typer.Option(metavar="X", help="Share of the bytes.")
    ] = None,
    workers: Annotated[
        str | None, typer.Option(metavar="N", help="Threads; else one a core.")
    ] = None,
    config: ConfigFile = None,
    settings: Settings = None,
    seed: Seed = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Turn text or images into tokens, split into train, validation and test.

    Text: plain files, and rows of .jsonl, .csv and .parquet; also .gz and .zst. A file is a
    document, a row is one. Images: IDX (as MNIST comes), .npy, .npz, directories of PNG or JPEG.
    """
    from smtkit.config import TokenizeConfig
    from smtkit.config.layering import resolve
    from smtkit.stages import tokenize as stage

    flags = {
        "inputs": inputs or None,
        "tokenizer": tokenizer,
        "test_inputs": test_input or None,
        "include": include or None,
        "exclude": exclude or None,
        "format": format_,
        "text_field": text_field,
        "errors": errors,
        "max_expansion": max_expansion,
        "vocabulary_size": vocab_size,
        "model_type": model_type,
        "tokenizer_model": tokenizer_model,
        "pixel.levels": levels,
        "pixel.size": _height_and_width(size),
        "pixel.maximum": maximum,
        "pixel.binarize": binarize,
        "pixel.order": order,
        "validation_fraction": validation_fraction,
        "test_fraction": test_fraction,
        "workers": workers,
        "seed": seed,
    }
    resolved = resolve(TokenizeConfig, config, settings or (), flags)
    run_stage(
        json,
        quiet,
        out,
        lambda terminal: stage.run(
            resolved, out, overwrite=overwrite, resume=resume, progress=terminal
        ),
    )


def _height_and_width(size: str | None) -> list[str] | None:
    if size is None:
        return None
    parts = size.lower().split("x")
    if len(parts) != 2:
        raise UsageError(f"--size {size}: expected HxW, for example 28x28")
    return parts


def synthesize(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK",
            help="retrieval, string-copy, stack, keys-values, modular-arithmetic, parity, recency.",
        ),
    ],
    out: Out,
    length: Annotated[str | None, typer.Option(metavar="T", help="Tokens a row.")] = None,
    lengths: Annotated[
        str | None, typer.Option(metavar="T,T,...", help="Each row draws its length from these.")
    ] = None,
    sequences: Annotated[str | None, typer.Option(metavar="N", help="Rows of train.")] = None,
    validation_sequences: Annotated[
        str | None, typer.Option(metavar="N", help="Rows of validation.")
    ] = None,
    test_sequences: Annotated[str | None, typer.Option(metavar="N", help="Rows of test.")] = None,
    vocabulary: Annotated[
        str | None, typer.Option(metavar="N", help="Tokens, with the task's marks.")
    ] = None,
    noise: Annotated[
        str | None, typer.Option(metavar="X", help="Share of tokens that mean nothing.")
    ] = None,
    reverse: Annotated[
        bool | None, typer.Option("--reverse", help="string-copy: the last symbol first.")
    ] = None,
    depth: Annotated[
        str | None, typer.Option(metavar="N", help="stack: the most values on it.")
    ] = None,
    pairs: Annotated[
        str | None, typer.Option(metavar="N", help="keys-values: pairs a row.")
    ] = None,
    config: ConfigFile = None,
    settings: Settings = None,
    seed: Seed = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write rows of a synthetic memory task, with the answers that are asked."""
    from smtkit.config import SynthesizeConfig
    from smtkit.config.layering import resolve
    from smtkit.stages import synthesize as stage

    several = lengths or length
    flags = {
        "task": task,
        "lengths": several.split(",") if several else None,
        "sequences": sequences,
        "validation_sequences": validation_sequences,
        "test_sequences": test_sequences,
        "vocabulary": vocabulary,
        "noise": noise,
        "reverse": reverse,
        "depth": depth,
        "pairs": pairs,
        "seed": seed,
    }
    resolved = resolve(SynthesizeConfig, config, settings or (), flags)
    run_stage(
        json,
        quiet,
        out,
        lambda terminal: stage.run(
            resolved, out, overwrite=overwrite, resume=resume, progress=terminal
        ),
    )


def inspect(
    artifact: Annotated[str, typer.Argument(metavar="ARTIFACT", help="Any artifact.")],
    verify: Annotated[bool, typer.Option("--verify", help="Check every file's checksum.")] = False,
    split: Annotated[str, typer.Option(help="Of tokens: the split to show rows of.")] = "train",
    rows: Annotated[int, typer.Option(metavar="N", help="Of tokens: how many rows.", min=0)] = 3,
    seed: Annotated[int, typer.Option(metavar="N", help="Which rows are drawn.")] = 0,
    png: Annotated[
        Path | None, typer.Option(help="Of images: write the rows to this file, as a grid.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what an artifact is and was made from; of tokens, counts and some rows."""
    from smtkit.cli.terminal import Terminal
    from smtkit.stages import inspect as stage

    inspection = stage.run(artifact, verify=verify, split=split, rows=rows, seed=seed)
    if png is not None:
        stage.save_pictures(inspection, png)
    Terminal(json=json).inspect(inspection, artifact, draw=png is None)
