"""Errors that a user can cause, each with the exit code that the command line returns."""

import signal


class SmtkitError(Exception):
    """One line for the user: where, what was found, what is allowed; and perhaps a hint.

    Names of config keys and arguments are in backticks, which the command line replaces by flags.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(SmtkitError):
    """A wrong key or value, a path that does not exist, or an output that does."""

    exit_code = 2


class ArtifactError(SmtkitError):
    """An artifact that is damaged, of the wrong kind or version, or does not fit another."""

    exit_code = 3


class LockedError(SmtkitError):
    """Another run is writing the same artifact."""

    exit_code = 4


class NonFiniteLossError(SmtkitError):
    """The loss or its gradient is infinite or not a number; no update was made with it."""

    exit_code = 5


class InputOutputError(SmtkitError):
    """A file that cannot be read, decoded or written."""

    exit_code = 74


class LostRankError(InputOutputError):
    """Another process of a distributed run failed or is unreachable; its own error is the cause."""


class BrokenDocumentError(InputOutputError):
    """A document that does not have its format; `errors` = skip leaves it out."""


class InterruptedRunError(SmtkitError):
    """A signal stopped the run after it saved its state; `saved` says what was saved."""

    def __init__(self, signal_number: int, saved: str) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name}; {saved}", "`resume` continues it")
        self.exit_code = 128 + signal_number
