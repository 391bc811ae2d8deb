"""`smtkit doctor`: versions, threads, devices and disks of this machine, and what is missing."""

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import torch

import smtkit
from smtkit.errors import UsageError
from smtkit.storage.cache import cache_directory
from smtkit.training.sizes import gigabytes

_EXTRA = re.compile(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]")
_LITTLE_DISK = 2**30
_NOT_FOR_USERS = {"dev", "docs"}


@dataclass
class Diagnosis:
    """Facts of a machine by section and name; `problems` are sentences, each with a remedy."""

    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def run() -> Diagnosis:
    """Looks at this machine as smtkit finds it; changes nothing."""
    found = Diagnosis()
    found.facts["versions"] = {
        "smtkit": f"{smtkit.__version__}, {Path(smtkit.__file__).parent}",
        "python": f"{platform.python_version()}, {sys.executable}",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        **{name: _version(name) or "missing" for name in _required()},
    }
    found.facts["torch"] = dict(_build(found))
    found.facts["devices"] = dict(_devices(found))
    found.facts["disk"] = dict(_disk(found))
    found.facts["extras"] = dict(_extras())
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _requirements() -> list[str]:
    """The requirements of the installed smtkit; none where its files are used uninstalled."""
    try:
        return metadata.requires("smtkit") or []
    except metadata.PackageNotFoundError:
        return []


def _required() -> list[str]:
    """Names of the packages that smtkit needs."""
    names = [re.split(r"[^\w.-]", line)[0] for line in _requirements() if "extra ==" not in line]
    return sorted(names) or ["numpy", "pyarrow", "pydantic", "safetensors", "torch"]


def _build(found: Diagnosis) -> Iterator[tuple[str, str]]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    yield "build", f"{torch.__version__}, {built}, {torch.backends.cpu.get_cpu_capability()}"
    limit = os.environ.get("OMP_NUM_THREADS")
    yield "threads", f"{threads} of {cores} cores" + (f", OMP_NUM_THREADS={limit}" if limit else "")
    if cores and threads > cores:
        found.problems.append(
            f"{threads} threads for {cores} cores slow each other down: set OMP_NUM_THREADS={cores}"
        )


def _devices(found: Diagnosis) -> Iterator[tuple[str, str]]:
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        free = os.sysconf("SC_AVPHYS_PAGES")
        yield "memory", f"{gigabytes(pages * size)}, {gigabytes(free * size)} of it unused"
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(number)
        name = f"{properties.name}, {gigabytes(properties.total_memory)}"
        yield f"cuda:{number}", name
    if torch.cuda.is_available():
        return
    yield "cuda", "none: everything runs on the CPU"
    if shutil.which("nvidia-smi"):
        built = (
            f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is a CPU build"
        )
        found.problems.append(
            f"there is an NVIDIA driver, but torch finds no GPU ({torch.__version__} {built}): "
            "install a build of torch that fits the driver, from pytorch.org"
        )


def _disk(found: Diagnosis) -> Iterator[tuple[str, str]]:
    places = {"here": Path.cwd()}
    try:
        places["cache"] = cache_directory()
    except UsageError as error:
        found.problems.append(str(error))
    for name, place in places.items():
        existing = next(path for path in (place, *place.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        yield name, f"{gigabytes(free)} free, {place}"
        if free < _LITTLE_DISK:
            found.problems.append(
                f"{place}: only {gigabytes(free)} free, and labels take gigabytes: free some, or "
                "write them elsewhere with `out`"
            )
        if not os.access(existing, os.W_OK):
            found.problems.append(f"{place}: cannot be written: run smtkit elsewhere")


def _extras() -> Iterator[tuple[str, str]]:
    """Each optional group of packages: present, or how to install it."""
    groups: dict[str, list[str]] = {}
    for line in _requirements():
        if (match := _EXTRA.match(line)) and match[2] not in _NOT_FOR_USERS:
            groups.setdefault(match[2], []).append(match[1])
    for extra, packages in groups.items():
        missing = [name for name in packages if _version(name) is None]
        remedy = f"without {', '.join(missing)}: pip install 'smtkit[{extra}]'"
        yield extra, remedy if missing else ", ".join(packages)
