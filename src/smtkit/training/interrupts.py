"""SIGINT (Ctrl-C), SIGTERM and SIGHUP as a request to save and stop."""

import contextlib
import signal
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Gives a list to which the first of SIGNALS is appended instead of ending the process.

    A second one has its usual effect. A signal that is ignored, as SIGHUP under nohup, stays
    ignored. Outside the main thread, signals are left as they are.
    """
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    handlers = {int(number): signal.getsignal(number) for number in SIGNALS}
    previous = {number: old for number, old in handlers.items() if old != signal.SIG_IGN}
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
