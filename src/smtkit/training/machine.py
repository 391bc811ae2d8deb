"""Memory of this machine and of this process."""

import contextlib
import resource
import sys
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MACHINE = Path("/proc/meminfo")


class PeakMemory:
    """The most memory of a device, in bytes, since this object was made.

    On a CPU, that of the whole process; without Linux's /proc, since the process began.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5")  # sets the peak to the present size
        self.before = self.bytes()

    def bytes(self) -> int:
        """The peak so far."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        peak = _kilobytes(_STATUS, "VmHWM")
        if peak is not None:
            return peak * 1024
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_memory(device: torch.device) -> int | None:
    """Bytes that this process may have on a device, with those it has; None where unknown."""
    if device.type == "cuda":
        unused, _ = torch.cuda.mem_get_info(device)
        return unused + torch.cuda.memory_reserved(device)
    free, own = _kilobytes(_MACHINE, "MemAvailable"), _kilobytes(_STATUS, "VmRSS")
    return None if free is None else (free + (own or 0)) * 1024


def _kilobytes(path: Path, name: str) -> int | None:
    """A number of a file of /proc; None where there is none."""
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return int(value.split()[0])
    return None
