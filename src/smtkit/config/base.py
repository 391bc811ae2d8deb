"""What all schemas share."""

from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

Device = Literal["auto", "cpu", "cuda"]
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


RUNTIME_KEYS = frozenset(
    {"device", "workers", "data.readers", "training.log_every", "training.checkpoint_every"}
)
"""Keys that do not change what a run computes: a resumed run may set them anew."""


class Only(NamedTuple):
    """`key`, which may be a section, has an effect only where `of` is one of `allowed`."""

    key: str
    of: str
    allowed: tuple[Any, ...]


class Config(BaseModel):
    """Base of all schemas: unknown keys are errors, values do not change after resolution."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    only: ClassVar[tuple[Only, ...]] = ()
    """Which of its keys have no effect beside some values of others."""

    def refused(self, given: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Of the dotted keys `given`, those without effect, each with the line that says so."""
        others = list(self._without_effect())
        for key in given:
            for other, why in others:
                if f"{key}.".startswith(f"{other}."):
                    yield key, f"{key} = {attrgetter(key)(self)!r} {why}"

    def _without_effect(self, prefix: str = "") -> Iterator[tuple[str, str]]:
        """Dotted key of what has no effect beside the other settings, and what it is of."""
        for key, of, allowed in self.only:
            found = attrgetter(of)(self)
            if found not in allowed:
                wanted = " or ".join(map(_shown, allowed))
                of = f"{prefix}{of}"
                yield f"{prefix}{key}", f"is of {of} {wanted}; found {of} {_shown(found)}"
        for name, value in self:
            if isinstance(value, Config):
                yield from value._without_effect(f"{prefix}{name}.")

    def identity(self) -> dict[str, Any]:
        """Dotted key to value, of all that decides what a run computes."""
        settings = flatten(self.model_dump(mode="json"))
        return {key: value for key, value in settings if key not in RUNTIME_KEYS}


def _shown(value: object) -> str:
    return "unset" if value is None else str(value)


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything in a table of tables."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
