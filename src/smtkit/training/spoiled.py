"""The error of a batch whose loss, gradient or update is not finite."""

from typing import Any

from smtkit.errors import NonFiniteLossError
from smtkit.training.protocols import Sampler

_NAMED = 32  # windows that the error names


def spoiled(
    sampler: Sampler[Any],
    step: int,
    found: str = "after its update, weights are infinite or not a number",
) -> NonFiniteLossError:
    """An error that names the step and the windows of its batch."""
    windows = sampler.windows_of(step)
    more = f" and {len(windows) - _NAMED} more" if len(windows) > _NAMED else ""
    named = ", ".join(map(str, windows[:_NAMED]))
    return NonFiniteLossError(
        f"step {step}: {found}; the batch was of windows {named}{more}",
        "try a smaller `training.learning_rate`, or `training.precision` = float32",
    )
