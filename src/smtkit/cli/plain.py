"""Text for a terminal, which must not obey what comes from files."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and line feed
    "\N{ARABIC LETTER MARK}\N{LEFT-TO-RIGHT MARK}\N{RIGHT-TO-LEFT MARK}"
    "\N{LEFT-TO-RIGHT EMBEDDING}-\N{RIGHT-TO-LEFT OVERRIDE}"
    "\N{LEFT-TO-RIGHT ISOLATE}-\N{POP DIRECTIONAL ISOLATE}]"
)


def plain(text: str) -> str:
    """`text` with escapes (`\\x1b`) in place of the characters that a terminal obeys."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def plain_json(text: str) -> str:
    """`plain` for a JSON document, whose strings stay the same."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def plain_values(value: Any) -> Any:
    """`plain` of every text in a value of JSON, its keys included."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, Mapping):
        return {plain(key): plain_values(inner) for key, inner in value.items()}
    if isinstance(value, Sequence):
        return [plain_values(inner) for inner in value]
    return value
