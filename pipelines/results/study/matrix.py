"""The declaration of the comparison in TOML: tasks, arms, settings, budgets and trials."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Table = dict[str, Any]
Stage = Literal["encoder", "labels", "smt", "dmt", "finetune", "bptt"]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0)]


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Longer(_Declared):
    """A second test of every RNN, on rows or windows longer than those it was trained on."""

    tokens: Table | None = None
    """Source and settings as in the task; unset: the tokens of the task."""
    lengths: int = 1
    """Length of the windows of text, in multiples of T."""
    windows: int
    """Number of rows or windows."""


class Variant(_Declared):
    """Settings that several arms have in common."""

    network: Table = {}
    settings: dict[Stage, Table] = {}
    shares: dict[Stage, Share] = {}
    """Shares of the budget; a stage of an `smt` arm with share 0 is left out."""


class Task(_Declared):
    title: str
    tokens: Table
    """Source (`synthesize`, `library`, `digits` or `files`) and its settings."""
    windows: int = 1000
    """Number of rows or windows of the test split."""
    longer: Longer | None = None
    goal: float | None = None
    """Validation accuracy at which a run stops; unset: it uses its whole budget."""
    budget: Positive
    """CPU-seconds of one thread."""
    budgets: list[Positive] = [1.0]
    """Multiples of the budget, each for a run of its own."""
    trial_budget: Positive | None = None
    """CPU-seconds per trial; unset: no trials, settings are those of the task `settings_of`."""
    settings_of: str | None = None
    shares: dict[Stage, Positive] = {}
    """Shares of the budget that differ from the matrix's."""
    arms: list[str]
    amortised: dict[str, list[Positive]] = {}
    """Arms of kind `amortised`, and the multiples of the budget for each."""
    settings: dict[Stage, Table] = {}
    variants: dict[str, Variant] = {}
    """Settings of a variant on this task, beside its common ones."""
    network: Table = {}


class Arm(_Declared):
    title: str
    kind: Literal["smt", "bptt", "amortised"]
    network: Table = {}
    """`memory`, `cell` and `readout`, the same for every stage."""
    variants: list[str] = []
    settings: dict[Stage, Table] = {}
    trials: str
    """Name of a list of trials."""
    settings_of: str | None = None
    """For an ablation: the arm whose trials choose its settings."""
    rivals: list[str] = []
    """For kind `amortised`: `bptt` arms. One teacher, with the memory and cell of the first, serves
    an RNN for each of their cells; the budget is that of all rivals together."""


class Matrix(_Declared):
    seeds: list[int]
    trial_seed: int
    shares: dict[Stage, Positive]
    """Shares of the budget for the stages of an `smt` arm; extraction has no limit."""
    network: Table
    settings: dict[Stage, Table]
    variants: dict[str, Variant] = {}
    trials: dict[str, list[Table]]
    """Settings to try, each a table of `stage.key = value`."""
    arms: dict[str, Arm]
    tasks: dict[str, Task]
    named: list[str]
    """Tasks that the file itself names, which are run and reported; the tasks of a matrix that it
    extends only lend their settings."""
    bases: list[str]
    """Names of the matrices that it extends: their raw results count too."""

    @model_validator(mode="after")
    def _rivals_are_run(self) -> Self:
        for name, task in self.tasks.items():
            for arm in task.amortised:
                missing = set(self.arms[arm].rivals) - set(task.arms)
                if missing:
                    raise ValueError(
                        f"tasks.{name}.arms: missing {', '.join(sorted(missing))}, rivals of {arm}"
                    )
        return self


def load(path: Path, scale: float = 1.0) -> Matrix:
    """The matrix of a file, merged with the one it `extends`; budgets are multiplied by `scale`."""
    declared, bases = _read(path)
    for task in declared["tasks"].values():
        for name in task.keys() & {"budget", "trial_budget"}:
            task[name] *= scale
    named = tomllib.loads(path.read_text(encoding="utf-8"))["tasks"]
    return Matrix(**declared, named=list(named), bases=bases)


def _read(path: Path) -> tuple[Table, list[str]]:
    declared = tomllib.loads(path.read_text(encoding="utf-8"))
    base = declared.pop("extends", None)
    if base is None:
        return declared, []
    extended, bases = _read(path.with_name(base))
    return merged(extended, declared), [Path(base).stem, *bases]


def merged(*tables: Mapping[str, Any]) -> Table:
    """Tables merged recursively, later ones override; the value "unset" removes a key."""
    result: Table = {}
    for table in tables:
        for key, value in table.items():
            old = result.get(key)
            both = isinstance(old, dict) and isinstance(value, dict)
            result[key] = merged(old, value) if both else value
    return {key: value for key, value in result.items() if value != "unset"}
