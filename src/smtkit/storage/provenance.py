"""What a manifest says of the process that wrote it."""

import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

_PACKAGES = ("numpy", "pyarrow", "safetensors", "sentencepiece", "torch")


def package_versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in _PACKAGES}


def command_line() -> str:
    """That of this process, for a shell."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def git_revision() -> str | None:
    """That of the working directory, where it has one."""
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None
