"""Advisory locks on directories, which end with the process that holds them.

What is locked is a file in the directory: over NFS, a lock on a directory does not reach other
machines.
"""

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from smtkit.errors import InputOutputError

LOCK = ".smtkit.lock"


class DirectoryLock:
    """Held from when it is made until `release`. `shared`: others may share it; `wait`: until it is
    free.

    Raises BlockingIOError where another holds it, InputOutputError where there can be no locks, and
    another OSError where the directory cannot be written.
    """

    def __init__(self, directory: Path, *, shared: bool = False, wait: bool = False) -> None:
        self._path = directory / LOCK
        self._shared = shared
        kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        while not self._taken(kind):
            pass

    def release(self, *, in_vain: bool = False) -> None:
        """Removes the file, too; one that others may share, only where all was `in_vain`."""
        try:
            if (not self._shared or (in_vain and self._alone())) and self._is_current():
                self._path.unlink()
        except OSError:
            pass  # it locks nobody out
        finally:
            os.close(self._file)

    def _taken(self, kind: int) -> bool:
        """False where whoever had it before has removed the file meanwhile."""
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(self._file, kind)
            if self._is_current():
                return True
        except BlockingIOError:
            os.close(self._file)
            raise
        except OSError as error:
            if error.errno != errno.ESTALE:  # NFS says so of a file that was removed
                os.close(self._file)
                with contextlib.suppress(OSError):
                    self._path.unlink()
                reason = f"{self._path}: cannot be locked: {error.strerror}"
                raise InputOutputError(reason) from None
        os.close(self._file)
        return False

    def _is_current(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self._file), self._path.stat())
        return False

    def _alone(self) -> bool:
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
