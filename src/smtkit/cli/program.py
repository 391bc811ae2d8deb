"""The `smtkit` program: parses, runs a command, turns errors into one line and an exit code.

Stages are imported when their command runs: `smtkit --help` imports neither torch nor pyarrow.
"""

import contextlib
import io
import os
import resource
import sys
import traceback
from typing import Annotated, Any, NoReturn

import typer

from smtkit import __version__
from smtkit.cli import launcher
from smtkit.cli.command import Command
from smtkit.cli.commands import COMMANDS
from smtkit.cli.options import SectionedCommand, flags_of, signature, with_flags
from smtkit.cli.plain import plain

app = typer.Typer(
    name="smtkit",
    help="Train nonlinear recurrent networks without backpropagation through time.\n\n"
    "Each stage reads and writes artifacts, which are directories or URIs:\n\n"
    "  tokenize > train-encoder > extract-labels > train-rnn > eval, generate",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
_LONGEST_LINE = 2000
"""Characters of an error that are printed."""
_FLAGS = {command.name: flags_of(command.schema, command.parameters) for command in COMMANDS}


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


def _add_commands() -> None:
    for command in COMMANDS:

        def run(_command: Command = command, /, **given: Any) -> None:
            _command(**given)

        run.__signature__ = signature(command.schema, command.parameters)  # type: ignore[attr-defined]
        help = with_flags(command.help, _FLAGS[command.name])
        app.command(
            command.name,
            cls=SectionedCommand,
            help=help,
            short_help=help.partition("\n")[0],
            epilog="\n".join(command.examples),
        )(run)


_add_commands()


def main() -> NoReturn:
    """Runs the command line and exits."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may not have every character
            stream.reconfigure(errors="backslashreplace")
    _raise_limit_of_open_files()
    if "_SMTKIT_COMPLETE" in os.environ:  # the shell asks for completions
        app(prog_name="smtkit")
    launcher.end(_exit_code())


def _raise_limit_of_open_files() -> None:
    """To the most this user may have: an artifact can have thousands of shards."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # some systems refuse the limit they report
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
        return _fail(_usage_message(error), 2)
    except LostRankError as error:  # the rank that failed has the cause: let it print first
        return _fail(str(error), error.exit_code, patience=2.0)
    except SmtkitError as error:
        _print_traceback_if_wanted()
        return _fail(str(error) + (f" ({error.hint})" if error.hint else ""), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of our output is gone, as `head` after its last line
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        _print_traceback_if_wanted()
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", 74)
    except BaseException:
        if not launcher.is_rank():
            raise
        traceback.print_exc()
        return launcher.code_of_the_first(1) or 1


def _usage_message(error: Exception) -> str:
    """The message of a mistake in the command line, with what was probably meant by an option."""
    name = str(getattr(error, "option_name", "")).lstrip("-")
    context = getattr(error, "ctx", None)
    for parameter in context.command.params if name and context else ():
        if parameter.param_type_name == "argument":
            if parameter.name == name.replace("-", "_"):
                return f"No such option: --{name} ({parameter.metavar} is given without a flag)"
            continue
        for option in parameter.opts:
            if "".join(word[0] for word in option.strip("-").split("-")) == name:
                error.possibilities = [option]  # type: ignore[attr-defined]
    return error.format_message() if hasattr(error, "format_message") else str(error)


def _print_traceback_if_wanted() -> None:
    if "--debug" in sys.argv:
        traceback.print_exc()


def _fail(message: str, code: int, patience: float = 0.0) -> int:
    """Prints the error as one line, with flags in place of config keys; if there are ranks, only on
    the first to fail."""
    if launcher.is_rank():
        first = launcher.code_of_the_first(code, patience)
        if first is not None:
            return first
    flags = next((_FLAGS[word] for word in sys.argv[1:] if word in _FLAGS), {})
    line = plain(" ".join(with_flags(message, flags).split("\n")))
    if len(line) > _LONGEST_LINE:  # a file can hold values of any length
        line = f"{line[:_LONGEST_LINE]}..."
    print(f"smtkit: {line}", file=sys.stderr)
    return code
