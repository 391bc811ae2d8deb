"""Advisory locks on directories, which end with the process that holds them.

What is locked is a file in the directory: over NFS, nothing can be locked alone that cannot be
opened for writing.
"""

import fcntl
import os
from pathlib import Path

from smtkit.errors import InputOutputError

LOCK = ".lock"


class DirectoryLock:
    """Held from when it is made until `release`. `shared`: others may share it; `wait`: until it is
    free.

    Raises BlockingIOError where another holds it, InputOutputError where there can be no locks.
    """

    def __init__(self, directory: Path, *, shared: bool = False, wait: bool = False) -> None:
        self._path = directory / LOCK
        self._shared = shared
        kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        while True:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self._file, kind)
                if self._is_current():
                    return
            except BlockingIOError:
                os.close(self._file)
                raise
            except OSError as error:
                os.close(self._file)
                raise InputOutputError(
                    f"{self._path}: cannot be locked: {error.strerror}"
                ) from None
            os.close(self._file)

    def release(self) -> None:
        """Removes the file, too, unless others may share it."""
        if not self._shared:
            self._path.unlink(missing_ok=True)
        os.close(self._file)

    def _is_current(self) -> bool:
        """Whether whoever had it before has not removed the file."""
        try:
            return os.path.samestat(os.fstat(self._file), self._path.stat())
        except FileNotFoundError:
            return False
