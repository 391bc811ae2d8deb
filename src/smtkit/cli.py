"""The command line: parse, call the stage of the same name, print, exit code.

Stages are imported when their command runs: `smtkit --help` imports neither torch nor pyarrow.
"""

import io
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from smtkit import __version__

if TYPE_CHECKING:
    from smtkit.artifacts.manifest import Manifest
    from smtkit.terminal import Terminal

app = typer.Typer(
    name="smtkit",
    help="Train nonlinear recurrent networks without backpropagation through time.\n\n"
    "tokenize | train-encoder | extract-labels | train-rnn | eval, and then generate.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

Out = Annotated[Path, typer.Option("--out", "-o", help="Directory of the new artifact.")]
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
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"smtkit {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def tokenize(
    out: Out,
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="INPUT...", help="Files, directories, globs.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="byte or char.")] = None,
    include: Annotated[
        list[str] | None, typer.Option(help="Of directories, only files that match; repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(help="Of directories, no files that match; repeatable."),
    ] = None,
    errors: Annotated[
        str | None, typer.Option(help="At bytes that are not UTF-8: strict or replace.")
    ] = None,
    validation_fraction: Annotated[
        str | None, typer.Option(metavar="X", help="Share of the bytes.")
    ] = None,
    test_fraction: Annotated[
        str | None, typer.Option(metavar="X", help="Share of the bytes.")
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
    """Turn text files into tokens, split into train, validation and test by document."""
    from smtkit.config import TokenizeConfig, resolve
    from smtkit.stages import tokenize as stage

    flags = {
        "inputs": inputs or None,
        "tokenizer": tokenizer,
        "include": include or None,
        "exclude": exclude or None,
        "errors": errors,
        "validation_fraction": validation_fraction,
        "test_fraction": test_fraction,
        "seed": seed,
    }
    resolved = resolve(TokenizeConfig, config, settings or (), flags)
    _run(
        json,
        quiet,
        out,
        lambda terminal: stage.run(
            resolved, out, overwrite=overwrite, resume=resume, progress=terminal
        ),
    )


@app.command()
def train_encoder(
    tokens: Annotated[Path, typer.Argument(metavar="TOKENS", help="A tokens artifact.")],
    out: Out,
    config: ConfigFile = None,
    settings: Settings = None,
    max_steps: MaxSteps = None,
    max_seconds: MaxSeconds = None,
    seed: Seed = None,
    device: Device = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train the teacher: an encoder whose memories predict the future."""
    from smtkit.config import TrainEncoderConfig, resolve
    from smtkit.stages import train_encoder as stage

    flags = {**_training_flags(max_steps, max_seconds), "seed": seed, "device": device}
    resolved = resolve(TrainEncoderConfig, config, settings or (), flags)
    _run(
        json,
        quiet,
        out,
        lambda terminal: stage.run(
            resolved, tokens, out, overwrite=overwrite, resume=resume, progress=terminal
        ),
    )


@app.command()
def extract_labels(
    encoder: Annotated[Path, typer.Argument(metavar="ENCODER", help="An encoder artifact.")],
    tokens: Annotated[Path, typer.Option(help="A tokens artifact of the same tokenizer.")],
    out: Out,
    max_windows: Annotated[
        str | None,
        typer.Option(metavar="N", help="Label so many train windows, drawn by the seed; else all."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float16 or float32.")] = None,
    config: ConfigFile = None,
    settings: Settings = None,
    seed: Seed = None,
    device: Device = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the teacher's memory at every position of the text: the labels of the RNN."""
    from smtkit.config import ExtractLabelsConfig, resolve
    from smtkit.stages import extract_labels as stage

    flags = {"max_windows": max_windows, "dtype": dtype, "seed": seed, "device": device}
    resolved = resolve(ExtractLabelsConfig, config, settings or (), flags)
    _run(
        json,
        quiet,
        out,
        lambda terminal: stage.run(
            resolved, encoder, tokens, out, overwrite=overwrite, resume=resume, progress=terminal
        ),
    )


@app.command()
def train_rnn(
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="A labels artifact.")],
    out: Out,
    method: Annotated[str | None, typer.Option(help="smt: one-step, never unrolled.")] = None,
    init_from_labels: Annotated[
        bool | None,
        typer.Option("--init-from-labels", help="Start from the teacher's co-trained cell."),
    ] = None,
    config: ConfigFile = None,
    settings: Settings = None,
    max_steps: MaxSteps = None,
    max_seconds: MaxSeconds = None,
    seed: Seed = None,
    device: Device = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train an RNN on stored memories, all time steps in parallel."""
    from smtkit.config import TrainRnnConfig, resolve
    from smtkit.stages import train_rnn as stage

    flags = {
        **_training_flags(max_steps, max_seconds),
        "method": method,
        "init_from_labels": init_from_labels,
        "seed": seed,
        "device": device,
    }
    resolved = resolve(TrainRnnConfig, config, settings or (), flags)
    _run(
        json,
        quiet,
        out,
        lambda terminal: stage.run(
            resolved, labels, out, overwrite=overwrite, resume=resume, progress=terminal
        ),
    )


@app.command(name="eval")
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
    from smtkit.config import EvaluateConfig, resolve
    from smtkit.stages import evaluate as stage

    flags = {"split": split, "windows": windows, "device": device}
    resolved = resolve(EvaluateConfig, config, settings or (), flags)
    _run(
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


@app.command()
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
    from smtkit.config import GenerateConfig, resolve
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


@app.command()
def inspect(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Any artifact.")],
    verify: Annotated[bool, typer.Option("--verify", help="Check every file's checksum.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what an artifact is and what it was made from."""
    from smtkit.artifacts.manifest import Artifact
    from smtkit.terminal import Terminal

    opened = Artifact.open(artifact)
    if verify:
        opened.verify()
    Terminal(json=json).show(opened.manifest, artifact, lineage=True)


def main() -> NoReturn:
    """The entry point: runs the command, turns errors into one line and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may not have every character
            stream.reconfigure(errors="backslashreplace")
    sys.exit(_exit_code())


def _exit_code() -> int:
    from typer.exceptions import TyperException

    from smtkit.errors import SmtkitError

    command = typer.main.get_command(app)
    try:
        with command.make_context("smtkit", sys.argv[1:]) as context:
            command.invoke(context)
        sys.stdout.flush()
        return 0
    except typer.Exit as end:
        return end.exit_code
    except TyperException as error:
        return _fail(_message(error), 2)
    except SmtkitError as error:
        _show_traceback_if_asked()
        return _fail(str(error) + (f" ({error.hint})" if error.hint else ""), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        _show_traceback_if_asked()
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", 74)


def _message(error: Exception) -> str:
    return error.format_message() if hasattr(error, "format_message") else str(error)


def _show_traceback_if_asked() -> None:
    if "--debug" in sys.argv:
        traceback.print_exc()


def _fail(message: str, code: int) -> int:
    print("smtkit: " + " ".join(message.split("\n")), file=sys.stderr)
    return code


def _training_flags(max_steps: str | None, max_seconds: str | None) -> dict[str, str | None]:
    return {"training.max_steps": max_steps, "training.max_seconds": max_seconds}


def _run(json: bool, quiet: bool, out: Path, stage: Callable[["Terminal"], "Manifest"]) -> None:
    from smtkit.terminal import Terminal

    with Terminal(json=json, quiet=quiet) as terminal:
        manifest = stage(terminal)
    terminal.show(manifest, out)


if __name__ == "__main__":
    main()
