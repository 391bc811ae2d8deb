"""train-encoder, extract-labels, train-rnn."""

from typing import Annotated

import typer

from smtkit.cli.options import (
    ARTIFACT,
    ConfigFile,
    Debug,
    Device,
    Json,
    MaxSeconds,
    MaxSteps,
    Nproc,
    Out,
    Overwrite,
    Quiet,
    Resume,
    Seed,
    Settings,
    run_on_ranks,
    shown_in,
    training_flags,
)
from smtkit.errors import UsageError


def train_encoder(
    tokens: Annotated[str, typer.Argument(metavar="TOKENS", help="A tokens artifact.")],
    out: Out,
    config: ConfigFile = None,
    settings: Settings = None,
    max_steps: MaxSteps = None,
    max_seconds: MaxSeconds = None,
    seed: Seed = None,
    device: Device = None,
    nproc: Nproc = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train the teacher: an encoder whose memories predict the future."""
    from smtkit.config import TrainEncoderConfig
    from smtkit.config.layering import resolve
    from smtkit.stages import train_encoder as stage

    flags = {**training_flags(max_steps, max_seconds), "seed": seed, "device": device}
    resolved = resolve(TrainEncoderConfig, config, settings or (), flags)
    run_on_ranks(
        nproc,
        json,
        quiet,
        lambda terminal: stage.run(
            resolved, tokens, out, overwrite=overwrite, resume=resume, progress=terminal
        ),
        shown_in(out),
    )


def extract_labels(
    encoder: Annotated[str, typer.Argument(metavar="ENCODER", help="An encoder artifact.")],
    tokens: Annotated[
        str, typer.Option(metavar=ARTIFACT, help="A tokens artifact of the same tokenizer.")
    ],
    out: Out,
    max_windows: Annotated[
        str | None,
        typer.Option(metavar="N", help="Label so many train windows, drawn by the seed; else all."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float16, bfloat16, int8 or float32.")] = None,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Write only the shards of part I, 1 to N, for jobs of their own; then --finalize.",
        ),
    ] = None,
    finalize: Annotated[
        bool, typer.Option("--finalize", help="Make the artifact of what all parts have written.")
    ] = False,
    config: ConfigFile = None,
    settings: Settings = None,
    seed: Seed = None,
    device: Device = None,
    nproc: Nproc = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the teacher's memory at every position of the text: the labels of the RNN."""
    from smtkit.config import ExtractLabelsConfig
    from smtkit.config.layering import resolve
    from smtkit.stages import extract_labels as stage

    flags = {"max_windows": max_windows, "dtype": dtype, "seed": seed, "device": device}
    resolved = resolve(ExtractLabelsConfig, config, settings or (), flags)
    if part is not None:
        number, count = parse_part(part)
        _refuse(overwrite, "--overwrite", "would remove what other parts have written")
        _refuse(finalize, "--finalize", "is for when all parts have ended")
        run_on_ranks(
            nproc,
            json,
            quiet,
            lambda terminal: stage.run_part(
                resolved, encoder, tokens, out, number, count, resume=resume, progress=terminal
            ),
            lambda terminal, shards: terminal.show_part(out, number, count, shards),
        )
        return
    if finalize:
        _refuse(overwrite, "--overwrite", "would remove what the parts have written")
    run_on_ranks(
        nproc,
        json,
        quiet,
        lambda terminal: stage.run(
            resolved,
            encoder,
            tokens,
            out,
            overwrite=overwrite,
            resume=resume,
            finalize=finalize,
            progress=terminal,
        ),
        shown_in(out),
    )


def parse_part(text: str) -> tuple[int, int]:
    """I and N of `I/N`. Raises UsageError."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UsageError(f"--part {text}: allowed: 1/N to N/N, as --part 3/8")
    return int(number), int(count)


def _refuse(found: bool, flag: str, why: str) -> None:
    if found:
        raise UsageError(f"{flag}: {why}", f"leave {flag} out")


def train_rnn(
    source: Annotated[
        str, typer.Argument(metavar="LABELS|TOKENS", help="A labels artifact; of bptt, tokens.")
    ],
    out: Out,
    method: Annotated[
        str | None,
        typer.Option(
            help="smt: one-step, never unrolled; dmt: from the RNN's own rollout; bptt: "
            "backpropagation through time."
        ),
    ] = None,
    init: Annotated[
        str | None, typer.Option(metavar="RNN", help="Start from an rnn artifact.")
    ] = None,
    init_from_labels: Annotated[
        bool | None,
        typer.Option("--init-from-labels", help="Start from the teacher's co-trained cell."),
    ] = None,
    rollout: Annotated[
        str | None, typer.Option(help="Of dmt: segments, sequential or jacobi.")
    ] = None,
    depth: Annotated[
        str | None, typer.Option(metavar="K", help="Of segments: steps a chain.")
    ] = None,
    sweeps: Annotated[str | None, typer.Option(metavar="K", help="Of jacobi: sweeps.")] = None,
    bptt_window: Annotated[
        str | None,
        typer.Option(metavar="N", help="Of bptt: steps a gradient flows back; else all."),
    ] = None,
    config: ConfigFile = None,
    settings: Settings = None,
    max_steps: MaxSteps = None,
    max_seconds: MaxSeconds = None,
    seed: Seed = None,
    device: Device = None,
    nproc: Nproc = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train an RNN: on stored memories, all time steps in parallel; or through time."""
    from smtkit.config import TrainRnnConfig
    from smtkit.config.layering import resolve
    from smtkit.stages import train_rnn as stage

    flags = {
        **training_flags(max_steps, max_seconds),
        "method": method,
        "init_from_labels": init_from_labels,
        "rollout.kind": rollout,
        "rollout.depth": depth,
        "rollout.sweeps": sweeps,
        "bptt_window": bptt_window,
        "seed": seed,
        "device": device,
    }
    resolved = resolve(TrainRnnConfig, config, settings or (), flags)
    run_on_ranks(
        nproc,
        json,
        quiet,
        lambda terminal: stage.run(
            resolved,
            source,
            out,
            init=init,
            overwrite=overwrite,
            resume=resume,
            progress=terminal,
        ),
        shown_in(out),
    )
