"""Advisory locks on directories; the system releases them when their process ends.

The lock is on a file in the directory, because over NFS a lock on the directory itself does not
reach other machines.
"""

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from smtkit.errors import InputOutputError

LOCK = ".smtkit.lock"


class DirectoryLock:
    """A lock on `directory`, held until `release`.

    `shared`: others may hold it, too, if they also pass `shared`; `wait`: until it is free.
    Raises BlockingIOError where another process holds it, InputOutputError where the file system
    has no locks, and another OSError where the directory cannot be written.
    """

    def __init__(self, directory: Path, *, shared: bool = False, wait: bool = False) -> None:
        self._path = directory / LOCK
        self._shared = shared
        kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        while not self._try(kind):  # False where the previous holder has removed the file meanwhile
            os.close(self._file)

    def release(self, *, remove: bool = False) -> None:
        """Releases the lock and removes its file. The file of a shared lock stays, unless `remove`
        is set and no other process holds it."""
        try:
            if remove and self._shared:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if others hold it
            if (remove or not self._shared) and self._is_current():
                self._path.unlink()
        except OSError:
            pass  # the file alone locks nobody out
        finally:
            os.close(self._file)

    def _try(self, kind: int) -> bool:
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(self._file, kind)
            return self._is_current()
        except OSError as error:
            if error.errno == errno.ESTALE:  # raised by NFS for a file that was removed
                return False
            os.close(self._file)
            if isinstance(error, BlockingIOError):
                raise
            with contextlib.suppress(OSError):
                self._path.unlink()
            reason = f"{self._path}: cannot be locked: {error.strerror}"
            raise InputOutputError(reason) from None

    def _is_current(self) -> bool:
        """Whether the open file is still the one in the directory."""
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self._file), self._path.stat())
        return False


def is_locked(directory: Path) -> bool:
    """Whether a process holds a lock on `directory`, shared or not."""
    try:
        descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
