"""Base of all schemas, the types their fields share, and `Flag`."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeGuard

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


@dataclass(frozen=True)
class Flag:
    """Gives a field an option of its own: `Annotated[int, Flag("vocab-size")]`.

    Help, default and choices of the option come from the field. Fields without a flag are set with
    `--set` or in a file.
    """

    name: str = ""
    """Without dashes; empty: the last part of the key."""
    metavar: str = ""
    """Placeholder of the value; empty: the choices, or N, X or TEXT by type."""
    alias: str = ""
    """A second name."""
    positional: bool = False
    """An argument instead of an option."""


def _check_share(text: str) -> str:
    if not re.fullmatch(r"(\d|[1-9]\d)(\.\d+)?%", text):
        raise ValueError("a share of the run, as 10%, less than 100%")
    return text


def is_share(value: object) -> TypeGuard[str]:
    """Whether a setting is a share of the run, and not a number of updates."""
    return isinstance(value, str) and value.endswith("%")


def fraction(share: str) -> float:
    """The number that a Share stands for, in [0, 1)."""
    return float(share.removesuffix("%")) / 100


Positive = Annotated[int, Field(gt=0, lt=2**63)]
NonNegative = Annotated[int, Field(ge=0, lt=2**63)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[str, AfterValidator(_check_share)]
"""A share of the run, as `10%`: of `max_steps` or of `max_seconds`, whichever is further."""
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Device = Literal["auto", "cpu", "cuda"]


RUNTIME_KEYS = frozenset(
    {
        "device",
        "workers",
        "data.readers",
        "training.log_every",
        "training.checkpoint_every",
        "training.keep_state",
        "training.sample_every",
        "training.sharding",
    }
)
"""Keys that do not change what a run computes: a resumed run may set them differently."""


LIMITS = frozenset({"training.max_steps", "training.max_seconds"})
"""Keys that end a run: a resumed run may raise or remove them, and goes on from where it ended."""


class Config(BaseModel):
    """Base of all schemas. Unknown keys are errors; values are immutable.

    The attribute docstring of a field is its description: the first sentence is the help of its
    flag, all of it stands in docs/configuration.md.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    main: ClassVar[tuple[str, ...]] = ()
    """The five settings that matter most, by dotted key; each has a flag. Help and docs begin with
    them."""

    requires: ClassVar[Mapping[str, Mapping[str, tuple[Any, ...]]]] = {}
    """Settings, or whole sections, that have an effect only with some values of others:
    `{setting: {other: allowed values}}`. Setting one without effect is an error."""

    def identity(self) -> dict[str, Any]:
        """Dotted key to value, for every setting that decides what a run computes."""
        settings = flatten(self.model_dump(mode="json"))
        return {key: value for key, value in settings if key not in RUNTIME_KEYS}


class DeviceConfig(Config):
    """Base of the schemas of stages that run networks."""

    device: Annotated[Device, Flag()] = "auto"
    """Where to compute; `auto`: CUDA if available, else the CPU."""


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything in a table of tables."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
