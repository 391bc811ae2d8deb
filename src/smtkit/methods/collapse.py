"""Signs that memories become equal to each other."""

import operator
from collections.abc import Mapping

# Values of `losses.memory_health` beyond these limits are a sign of collapse.
_LIMITS = {
    "uniformity": (operator.gt, -0.1),
    "variance": (operator.lt, 0.01),
    "effective_rank": (operator.lt, 1.5),
}
_REMEDIES = (
    "try a smaller `objective.dynamics_weight`, a later `objective.dynamics_start`, or more "
    "`objective.uniformity_weight`"
)


def collapse(health: Mapping[str, float], prefix: str = "") -> str | None:
    """A warning that memories collapse, with the sign of it and remedies; None where they do not.

    `health` holds the values of `losses.memory_health`; their names begin with `prefix`.
    """
    for name, (is_beyond, limit) in _LIMITS.items():
        value = health[prefix + name]
        if is_beyond(value, limit):
            return f"{prefix}{name} is {value:.3g} (limit {limit:g}); {_REMEDIES}"
    return None
