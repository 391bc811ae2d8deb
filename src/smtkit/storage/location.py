"""Where an artifact is: a path, or a URI that names exactly one directory and holds no secret."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, unquote_to_bytes

from smtkit.errors import UsageError
from smtkit.storage.remote import Remote

PathOrURI = str | os.PathLike[str]
"""What a user names an artifact by."""
Location = Path | Remote

_URI = re.compile(r"(?:file|gs|s3):|[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_EXPECTED = {"file": "file:///path", "gs": "gs://bucket/name", "s3": "s3://bucket/name"}
_OPTIONS = {  # those that pyarrow reads and that hold no secret
    "gs": "endpoint_override, location, project_id, retry_limit_seconds, scheme",
    "s3": "allow_bucket_creation, allow_bucket_deletion, allow_delayed_open, endpoint_override, "
    "region, scheme, smart_defaults, tls_ca_dir_path, tls_ca_file_path, tls_verify_certificates",
}


class _Rule(NamedTuple):
    """Refuses a URI with a `part` in which `pattern` is found."""

    part: str
    pattern: str
    message: str
    hint: str | None = None


_CREDENTIALS = _Rule(
    "rest",
    r"@|^[^/?#\[]*:(?!\d*(?:[/?#]|$))",  # an @, or a colon that no port follows
    "a URI with credentials, or with an @ that is not written %40",
    "give credentials in the environment or the configuration of the store's own tools",
)
_CONTROL = _Rule("decoded", r"[\x00-\x1f\x7f-\x9f]", "a name with the control character {found!a}")
_FILE_RULES = (
    _Rule("rest", "[?#]", "{found} in a URI, expected {expected}", "in a name, write %3F or %23"),
    _CONTROL,
    _Rule("rest", "^(?!localhost(?:/|$))[^/]+", "host is {found}, allowed: {expected}"),
    _Rule("rest", "^[^/]*$", "expected {expected}"),
)
_STORE_RULES = (
    _Rule(
        "rest",
        r"%(?![0-9A-Fa-f]{2})|[^\w.~:/?@!$&'()*+,;=%-]",
        "{found!a} in a URI, expected {expected}",
        "percent-encode what is not a letter, a digit or one of -._~: a space is %20, % is %25",
    ),
    _Rule("base", "^/|^[^/]*/?$", "expected {expected}"),
    _Rule(
        "bucket",
        ":",
        "a port after the bucket's name",
        "a server is named by an option: s3://bucket/name?endpoint_override=host:port",
    ),
    _Rule(
        "bucket",
        r"^(?![A-Za-z0-9][\w.-]*$).*",
        "bucket is {found}, allowed: a letter or digit, then these and -._",
    ),
    _Rule("decoded", "[\udc80-\udcff]", "a name that is not UTF-8"),
    _CONTROL,
    # pyarrow and stores resolve these, also with %2F, so that the URI would lead elsewhere.
    _Rule("decoded", r"(?:^|(?<=/))(\.\.?)?(?=/|$)", "{found} between slashes, expected a name"),
    _Rule("option", "^[^=]*=?$", "an option without a value, expected ?name=value&name=value"),
    _Rule("endpoint", "@|%40", "endpoint_override with an @, expected host:port"),
)


def locate(path: PathOrURI | Remote) -> Location:
    """The directory that a path or URI names; `file://` is a path. Raises UsageError."""
    if isinstance(path, Remote):
        return path
    text = os.fspath(path)
    if not _URI.match(text):
        return Path(text)
    scheme, _, rest = text.partition(":")
    scheme, slashes, rest = scheme.lower(), rest[:2], rest.removeprefix("//")
    # First, and without the URI in the message: manifests and messages repeat URIs.
    anonymous = "anonymous@" if scheme == "gs" else ""
    _check(f"{scheme}://...", "", [_CREDENTIALS], rest=[rest.removeprefix(anonymous)])
    base = text.partition("?")[0]  # without options, which may be secrets
    shown = "".join(c if c.isprintable() else f"%{ord(c):02X}" for c in base)
    if scheme not in _EXPECTED:
        allowed = ", ".join(f"{name}://" for name in _EXPECTED)
        raise UsageError(f"{shown}: scheme is {scheme}, allowed: a path, or {allowed}")
    if slashes != "//":
        raise UsageError(f"{shown}: expected {_EXPECTED[scheme]}")
    return _file(shown, rest) if scheme == "file" else _remote(shown, scheme, rest)


def local_path(path: PathOrURI, key: str) -> Path:
    """The path of a file or directory that can only be on this machine; `key`: the parameter that
    names it. Raises UsageError for another URI than `file://`."""
    found = locate(path)
    if isinstance(found, Remote):
        raise UsageError(f"`{key}` {found}: expected a path on this machine")
    return found


def _file(shown: str, rest: str) -> Path:
    host, _, path = rest.partition("/")
    decoded = os.fsdecode(unquote_to_bytes(os.fsencode(path)))
    _check(shown, _EXPECTED["file"], _FILE_RULES, rest=[rest], decoded=[host + decoded])
    return Path(f"/{decoded}")


def _remote(shown: str, scheme: str, rest: str) -> Remote:
    base, _, query = rest.partition("?")
    base = base.removesuffix("/")
    authority, _, key = base.partition("/")
    options = [option.partition("=") for option in query.split("&")] if query else []
    _check(
        shown,
        _EXPECTED[scheme],
        _STORE_RULES,
        rest=[rest],
        base=[base],
        bucket=[authority.rpartition("@")[2]],
        decoded=[unquote(key, errors="surrogateescape")],
        option=["".join(option) for option in options],
        endpoint=[value for name, _, value in options if name == "endpoint_override"],
    )
    for name, _, _ in options:
        if name not in _OPTIONS[scheme].split(", "):
            raise UsageError(f"{shown}: option is {name}, allowed: {_OPTIONS[scheme]}")
    return Remote(f"{scheme}://{base}{'?' if query else ''}{query}")


def _check(shown: str, expected: str, rules: Iterable[_Rule], **parts: list[str]) -> None:
    """Raises UsageError for the first rule that a part breaks."""
    for rule in rules:
        for part in parts[rule.part]:
            if found := re.search(rule.pattern, part, re.ASCII):
                message = rule.message.format(found=found[0] or "nothing", expected=expected)
                raise UsageError(f"{shown}: {message}", rule.hint)
