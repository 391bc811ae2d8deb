"""Imports that Ctrl-C cannot break into."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ended_by_interrupt() -> Iterator[None]:
    """In the block, SIGINT ends the process at once, with exit code 130 and no message.

    KeyboardInterrupt, which Python's own handler raises, would be lost where numpy or torch is just
    being imported, and the run would go on with a part of the module. A handler other than
    Python's, and SIGINT where it is ignored, are left as they are.
    """
    try:
        is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if is_ours:
            signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
    except ValueError:  # only the main thread can set signal handlers
        is_ours = False
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
