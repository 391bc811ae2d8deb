"""The tokens that tasks declare."""

import os
import re
import sysconfig
from pathlib import Path

from smtkit.config import SynthesizeConfig, TokenizeConfig
from smtkit.stages import synthesize, tokenize
from study.matrix import Table

# As in pipelines/quickstart: tests and encodings contain many near-duplicates.
_LEFT_OUT = ["encodings", "test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3"]
_VARIABLE = re.compile(r"\$(?:(?P<plain>\w+)|\{(?P<name>\w+):-(?P<default>[^}]*)\})")


def make_tokens(source: Table, out: Path) -> Path:
    """Makes the `tokens` artifact that a task declares. Raises ValueError if it cannot be made."""
    settings = dict(source)
    kind = settings.pop("source")
    if kind == "synthesize":
        synthesize.run(SynthesizeConfig(**settings), out, overwrite=True, resume=True)
        return out
    if kind == "library":
        # Python's standard library is text that every machine has.
        inputs = [sysconfig.get_path("stdlib")]
        settings |= {"inputs": inputs, "include": ["*.py"], "exclude": _LEFT_OUT}
    elif kind == "digits":
        settings["inputs"] = [_digits(out.with_suffix(".npz"))]
    elif kind == "files":
        for key in settings.keys() & {"inputs", "test_inputs"}:
            settings[key] = [from_environment(name) for name in settings[key]]
    else:
        allowed = "synthesize, library, digits, files"
        raise ValueError(f"tokens.source = {kind!r}; allowed: {allowed}")
    tokenize.run(TokenizeConfig(**settings), out, overwrite=True, resume=True)
    return out


def from_environment(path: str) -> str:
    """A path with the values of its variables: `$IMAGES`, or `${IMAGES:-default}/file`.

    Raises ValueError if a variable without a default is not set, or if nothing is at the path.
    """

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match["plain"] or match["name"]) or match["default"]
        if not found:
            raise ValueError(f"{path} is not set; it must name the files of this task")
        return found

    found = _VARIABLE.sub(value, path)
    if not Path(found).exists():
        raise ValueError(f"{found}: no such file or directory; it is declared as {path}")
    return found


def _digits(path: Path) -> str:
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    np.savez(path, images=digits.images.astype("uint8"), labels=digits.target)
    return str(path)
