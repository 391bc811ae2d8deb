"""What a method does that has nothing more to say than its losses."""

from collections.abc import Mapping

from torch import Tensor


class QuietMethod:
    """Notes nothing of an update, logs no diagnostics, and is not concerned by any."""

    def observe(self, step: int, means: Mapping[str, Tensor]) -> None:
        pass

    def diagnostics(self, batch: object) -> dict[str, float]:
        return {}

    def warning(self, metrics: Mapping[str, float]) -> str | None:
        return None
