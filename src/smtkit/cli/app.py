"""The entry point of the `smtkit` program."""

import os

from smtkit.cli.startup import ended_by_interrupt


def main() -> None:
    """Runs the command line and exits."""
    try:
        with ended_by_interrupt():
            from smtkit.cli import program
        program.main()
    except KeyboardInterrupt:  # the second one, while the error line of the first was printed
        os._exit(130)
