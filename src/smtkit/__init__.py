"""Train nonlinear recurrent networks without backpropagation through time.

Every module keeps one index convention. A row is `tokens[0..T-1]` with targets. `memory[:, i]`,
i = 0..T, is the memory after reading `tokens[:, :i]`; `memory[:, 0]` is the empty memory.
`targets[:, i]` is predicted from `memory[:, i]`. The transition is
`(memory[:, i], tokens[:, i]) -> memory[:, i + 1]`.

The names in `__all__` are the Python API (docs/python.md). They are imported when first used:
`import smtkit` imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smtkit.api.stages import (
        evaluate,
        export,
        extract_labels,
        synthesize,
        tokenize,
        train_encoder,
        train_rnn,
    )
    from smtkit.inference.trained import load_rnn, load_teacher
    from smtkit.labels.dataset import load_labels

__all__ = [
    "IGNORE",
    "__version__",
    "evaluate",
    "export",
    "extract_labels",
    "load_labels",
    "load_rnn",
    "load_teacher",
    "synthesize",
    "tokenize",
    "train_encoder",
    "train_rnn",
]

__version__ = "0.1.0"

IGNORE = -1
"""A position without a target. Dynamics still count there; past `length`, nothing does."""

_MODULES = {
    "load_labels": "smtkit.labels.dataset",
    "load_rnn": "smtkit.inference.trained",
    "load_teacher": "smtkit.inference.trained",
}
"""Where the names of the API are that are no stages."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'smtkit' has no attribute {name!r}")
    return getattr(import_module(_MODULES.get(name, "smtkit.api.stages")), name)


def __dir__() -> list[str]:
    return __all__
