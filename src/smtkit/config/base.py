"""What all schemas share."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Device = Literal["auto", "cpu", "cuda"]
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


RUNTIME_KEYS = frozenset({"device", "workers", "training.log_every", "training.checkpoint_every"})
"""Keys that do not change what a run computes: a resumed run may set them anew."""


class Config(BaseModel):
    """Base of all schemas: unknown keys are errors, values do not change after resolution."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def identity(self) -> dict[str, Any]:
        """Dotted key to value, of all that decides what a run computes."""
        settings = flatten(self.model_dump(mode="json"))
        return {key: value for key, value in settings if key not in RUNTIME_KEYS}


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything in a table of tables."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
