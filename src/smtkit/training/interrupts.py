"""SIGINT (Ctrl-C) and SIGTERM as a request to save and stop."""

import contextlib
import signal
from collections.abc import Iterator

from smtkit.errors import InterruptedRunError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Gives a list to which the first SIGINT or SIGTERM is appended instead of ending the process.

    A second one has its usual effect. Outside the main thread, signals are left as they are.
    """
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    previous = {int(number): signal.getsignal(number) for number in SIGNALS}
    try:
        for number in previous:
            signal.signal(number, note)
    except ValueError:  # only the main thread can set signal handlers
        previous = {}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def stopped(signal_number: int, saved: str) -> InterruptedRunError:
    """The error to raise once the state is saved after a signal; `saved` says what was saved."""
    name = signal.Signals(signal_number).name
    hint = "`resume` continues it"
    return InterruptedRunError(signal_number, f"stopped by {name}; {saved}", hint)
