"""Files that appear under their names when they are whole."""

import os
import secrets
from pathlib import Path

from smtkit.errors import InputOutputError


def write_atomically(path: Path, content: str) -> None:
    """Replaces `path` with `content`: a reader sees the old file or the new one, whole.

    Raises InputOutputError.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputOutputError(f"{path}: {error.strerror}") from None


def publish(temporary: Path, path: Path) -> None:
    """Renames a finished file into place, durably."""
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
