"""A share of the faults that `make test-faults` injects."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs process descriptors")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "faults", *arguments],
        cwd=HERE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
    )


@needs_linux
def test_faults_are_refused_or_harmless() -> None:
    result = run("--share", "0.01", "--seed", "0")
    assert result.returncode == 0, result.stdout
