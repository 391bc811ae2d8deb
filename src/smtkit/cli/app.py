"""The command line: parse, call the stage of the same name, print, exit code.

Stages are imported when their command runs: `smtkit --help` imports neither torch nor pyarrow.
"""

import contextlib
import io
import os
import re
import resource
import sys
import traceback
from typing import Annotated, NoReturn

import typer

from smtkit import __version__
from smtkit.cli import data, launcher, training
from smtkit.cli.evaluate import evaluate
from smtkit.cli.generate import generate
from smtkit.config.layering import FLAGS

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

app.command()(data.tokenize)
app.command()(data.synthesize)
app.command()(training.train_encoder)
app.command()(training.extract_labels)
app.command()(training.train_rnn)
app.command(name="eval")(evaluate)
app.command()(generate)
app.command()(data.inspect)


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


def main() -> NoReturn:
    """The entry point: runs the command, turns errors into one line and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may not have every character
            stream.reconfigure(errors="backslashreplace")
    _allow_open_files()
    launcher.end(_exit_code())


def _allow_open_files() -> None:
    """As many as this user may have: an artifact can be of thousands of shards."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # some systems promise more than they give
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _exit_code() -> int:
    from typer.exceptions import TyperException

    from smtkit.errors import LostRankError, SmtkitError

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
    except LostRankError as error:  # which one that was lost explains better
        return _fail(str(error), error.exit_code, patience=2.0)
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
    except BaseException:
        if not launcher.is_rank():
            raise
        traceback.print_exc()
        return launcher.code_of_the_first(1) or 1


def _with_flags(message: str) -> str:
    """The message with each `config.key` in backticks as the flag that sets it, where there is
    one: libraries name keys, the command line names flags."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    command = commands.get(sys.argv[1]) if len(sys.argv) > 1 else None
    flags = {p.name: p.opts[0] for p in command.params} if command else {}

    def shown(found: re.Match[str]) -> str:
        key = found[1]
        flag = flags.get(FLAGS.get(key, key).rpartition(".")[2].replace("-", "_"))
        return flag if flag and flag.startswith("--") else key

    return re.sub(r"`([a-z][a-z0-9_.]*)`", shown, message)


def _message(error: Exception) -> str:
    return error.format_message() if hasattr(error, "format_message") else str(error)


def _show_traceback_if_asked() -> None:
    if "--debug" in sys.argv:
        traceback.print_exc()


def _fail(message: str, code: int, patience: float = 0.0) -> int:
    """Prints the one line; of several ranks, the first to fail does."""
    if launcher.is_rank():
        spoken = launcher.code_of_the_first(code, patience)
        if spoken is not None:
            return spoken
    print("smtkit: " + " ".join(_with_flags(message).split("\n")), file=sys.stderr)
    return code
