"""A hook at every change that a process makes to the file system."""

import os
import sys
from collections.abc import Callable
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate"}


def at_write(act: Callable[[str, str], None]) -> None:
    """Calls `act(event, path)` before each change: opening a file to write it, flushing it to the
    disk, renaming (with the new name), removing and making files and folders. Lasts as long as the
    process, so it is called in a fork."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS:
            act(event, os.fspath(arguments[1 if event == "os.rename" else 0]))
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
            path = arguments[0]
            if isinstance(path, str | os.PathLike) and not os.fspath(path).startswith("/dev/"):
                act(event, os.fspath(path))

    fsync = os.fsync

    def flush(descriptor: int) -> None:
        act("os.fsync", "")
        fsync(descriptor)

    os.fsync = flush
    sys.addaudithook(hook)
