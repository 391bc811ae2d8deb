"""Programs and the command line in processes of their own."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_MEASURED = """
import resource, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
from pathlib import Path
from smtkit.cli.app import main
code = None
try:
    main()
except SystemExit as end:
    code = end.code
status = Path("/proc/self/status").read_text()
print(code, next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""

needs_peak = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the kernel tells no peak"
)


def python(*arguments: object, **options: Any) -> subprocess.CompletedProcess[Any]:
    """Runs Python on one thread to its end: a script or `-c` PROGRAM, and arguments."""
    options = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "text": True, **options}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=300, check=False, **options)


def smtkit(*arguments: object, **options: Any) -> subprocess.CompletedProcess[Any]:
    """Runs the command line to its end."""
    return python("-m", "smtkit.cli", *arguments, **options)


@dataclass(frozen=True)
class Measured:
    """A command that has ended: `peak` memory in bytes."""

    code: int
    peak: int
    stderr: str


def measured(*arguments: object, address_space: int = -1) -> Measured:
    """Runs a command that prints nothing on stdout; `address_space` limits it, in bytes: what is
    mapped but never touched counts, too.

    Not by `getrusage`, whose peak of a process begins with that of the one that started it.
    """
    result = python("-c", _MEASURED, address_space, *arguments)
    assert result.returncode == 0, result.stderr
    code, peak = map(int, result.stdout.split())
    return Measured(code, peak * 1024, result.stderr)
