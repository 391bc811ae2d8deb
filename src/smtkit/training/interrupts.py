"""Ctrl-C and SIGTERM, taken when the work at hand is saved."""

import contextlib
import signal
from collections.abc import Iterator

from smtkit.errors import InterruptedRunError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that gets the number of the first SIGINT or SIGTERM; a second one acts at once."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, before[number])

    before = {int(number): signal.getsignal(number) for number in SIGNALS}
    try:
        for number in before:
            signal.signal(number, note)
    except ValueError:  # not the main thread: the caller's own signals are its affair
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped(signal_number: int, saved: str) -> InterruptedRunError:
    """What to raise after a signal, once the state is saved."""
    name = signal.Signals(signal_number).name
    hint = "the same command with --resume goes on"
    return InterruptedRunError(signal_number, f"stopped by {name}; {saved}", hint)
