"""Time and memory of an update, measured on runs of about a second."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smtkit.config import TrainingConfig
from smtkit.training.machine import PeakMemory, available_memory
from smtkit.training.metrics import MetricsFile

PATIENCE = 5.0
"""Seconds that a whole batch may take; if it takes longer, its cost is only estimated."""
_SECONDS = 1.0
_NEVER = 10**9


@dataclass(frozen=True)
class Cost:
    """Seconds per update, the peak of memory in bytes, and the windows of the batch that was
    measured: fewer than those of the settings where a whole batch is out of reach."""

    seconds: float
    memory: int
    measured_batch: int


def step_cost(
    train: Callable[[TrainingConfig], Path],
    training: TrainingConfig,
    least: int,
    device: torch.device,
) -> Cost:
    """The cost of an update of the batch of `training`.

    `train` runs with the settings that it is given, and returns the metrics file. The first run is
    two updates of a batch of `least` windows. If that shows the whole batch to be within reach, it
    is measured for a second; otherwise time and memory are scaled up.
    """
    peak, whole = PeakMemory(device), training.batch_size
    seconds = _step_seconds(train(_settings(training, least, max_steps=2, max_seconds=None)))
    scale = whole / least
    memory = peak.before + int((peak.bytes() - peak.before) * scale)
    available = available_memory(device)
    if seconds * scale > PATIENCE or (available is not None and memory > available):
        return Cost(seconds * scale, memory, least)
    peak = PeakMemory(device)
    metrics = train(_settings(training, whole, max_steps=None, max_seconds=_SECONDS))
    return Cost(_step_seconds(metrics), peak.bytes(), whole)


def _settings(training: TrainingConfig, batch: int, **limits: Any) -> TrainingConfig:
    """The settings without checkpoints, and with one small validation at the end."""
    changes = {
        "batch_size": batch,
        "log_every": 1,
        "validate_every": _NEVER,
        "validate_seconds": None,
        "validation_windows": 1,
        "checkpoint_every": _NEVER,
        "keep_state": False,
        "stop_at_accuracy": None,
        "compile": False,
        "clock": "wall",
    }
    return training.model_copy(update={**changes, **limits})


def _step_seconds(metrics: Path) -> float:
    """Median time of an update; the first, which is slower, counts only where there is no other."""
    seconds = [float(record["seconds"]) for record in MetricsFile(metrics).records("train")]
    steps = np.diff([0.0, *seconds])
    return max(float(statistics.median(steps[1:] if len(steps) > 1 else steps)), 1e-4)
