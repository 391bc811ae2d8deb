"""What decides what a run computes: two runs of the same identity make the same artifact."""

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from smtkit.errors import ArtifactError

_UNRECORDED_FORMATS = {"labels": 3}
"""Of records that say nothing of the format, by kind; of other kinds 1."""


def read_record(record: Path) -> tuple[dict[str, Any], datetime]:
    """What identifies an unfinished run, its kind and format included, and when it was started.

    Raises ArtifactError.
    """
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        started = datetime.fromisoformat(found["started"])
        identity = found["identity"]
        if "kind" in found:
            version = _UNRECORDED_FORMATS.get(found["kind"], 1)
            identity = {"kind": found["kind"], "format_version": version, **identity}
        return {**identity}, started
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{record}: damaged: {error}", "--overwrite starts anew") from None


def difference_of(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first key in which two identities differ, in words."""
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            return f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
    return None


def key_of(identity: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits: the same for all parts of one run."""
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
