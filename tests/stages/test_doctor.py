"""`smtkit doctor`."""

import json
import shutil
from importlib import metadata
from pathlib import Path

import pytest
import torch

import smtkit
from conftest import Command
from smtkit.stages import doctor


def test_it_shows_what_runs_here(command: Command) -> None:
    found = json.loads(command("doctor", "--json").stdout)["facts"]
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0] or (
        found["versions"]["torch"] == torch.__version__
    )
    assert found["versions"]["smtkit"].startswith(smtkit.__version__)
    assert found["torch"]["threads"].startswith(f"{torch.get_num_threads()} of ")
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    assert abs(float(found["disk"]["here"].split()[0]) - free) < 0.05 * free + 1
    shown = command("doctor").stdout
    for section in ("versions", "torch", "devices", "disk", "extras"):
        assert f"{section}\n" in shown


def test_missing_extras_come_with_their_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version

    def without_pillow(name: str) -> str:
        if name == "pillow":
            raise metadata.PackageNotFoundError
        return version(name)

    monkeypatch.setattr(
        "smtkit.stages.doctor.metadata.requires",
        lambda name: ["numpy>=1", 'pillow>=10; extra == "images"', 'pytest; extra == "dev"'],
    )
    monkeypatch.setattr("smtkit.stages.doctor.metadata.version", without_pillow)
    extras = doctor.run().facts["extras"]
    assert extras == {"images": "without pillow: pip install 'smtkit[images]'"}


def test_a_driver_without_a_gpu_in_torch_is_a_problem(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/nvidia-smi")
    assert "problem: there is an NVIDIA driver, but torch finds no GPU" in command("doctor").stdout


def test_a_full_disk_and_too_many_threads_are_problems(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=10**8)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    monkeypatch.setattr("torch.get_num_threads", lambda: 10_000)
    shown = command("doctor").stdout
    assert "only 0.1 GB free" in shown
    assert "elsewhere with --out" in shown
    assert "10000 threads for" in shown
    assert "no problems found" not in shown
