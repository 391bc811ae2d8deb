"""Directories on an object store, named by URI, through pyarrow.fs.

An object that is being written appears when its stream is closed, and pyarrow closes a stream that
an error leaves behind: what an upload that failed leaves may look like a file, cut short. So no
object is believed before what is written after it says that it is whole: a manifest, or a receipt.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import pyarrow as pa
import xxhash
from pyarrow import fs

from smtkit.errors import InputOutputError, UsageError

_EXPECTED = {"file": "file:///path", "gs": "gs://bucket/name", "s3": "s3://bucket/name"}
_OPTIONS = {  # those that pyarrow reads in a URI
    "gs": ("endpoint_override", "location", "project_id", "retry_limit_seconds", "scheme"),
    "s3": (
        "allow_bucket_creation",
        "allow_bucket_deletion",
        "allow_delayed_open",
        "endpoint_override",
        "region",
        "scheme",
        "smart_defaults",
        "tls_ca_dir_path",
        "tls_ca_file_path",
        "tls_verify_certificates",
    ),
}

_URI = re.compile(r"(?:file|gs|s3):|[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_CREDENTIALS = re.compile(r"@|^[^/?#\[]*:(?!\d*(?:[/?#]|$))")  # or a colon, and not a port
_UNENCODED = re.compile(r"%(?![0-9A-Fa-f]{2})|[^\w.~:/?@!$&'()*+,;=%-]", re.ASCII)
_BUCKET = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_BLOCK = 2**23  # bytes
_GS_PATIENCE = "retry_limit_seconds="


@dataclass(frozen=True)
class Remote:
    """A directory at `uri`: names of files are relative to it. Nothing is asked of the network
    before the first call. All raise InputOutputError where the store does not do as it is told.
    """

    uri: str

    def __str__(self) -> str:
        return self.uri

    def place(self, name: str) -> str:
        """The URI of a file, for messages."""
        base, query, options = self.uri.partition("?")
        return f"{base}/{name}{query}{options}"

    def sizes(self) -> dict[str, int]:
        """Bytes of every file below; none where there is no such directory."""
        filesystem, root = self._opened
        selector = fs.FileSelector(root, allow_not_found=True, recursive=True)
        with self._explained(self.uri):
            found = filesystem.get_file_info(selector)
        prefix = len(root) + 1
        return {info.path[prefix:]: info.size for info in found if info.is_file}

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError where there is no such file."""
        with self._stream(name) as stream:
            return bytes(stream.read())

    def blocks(self, name: str) -> Iterator[bytes]:
        """The content of a file, part by part. Raises FileNotFoundError."""
        with self._stream(name) as stream:
            while block := stream.read(_BLOCK):
                yield block

    def check_writable(self) -> None:
        """Raises UsageError where there is no such bucket."""
        filesystem, root = self._opened
        bucket = root.partition("/")[0]
        with self._explained(self.uri):
            found = filesystem.get_file_info(bucket)
        if found.type == fs.FileType.NotFound:
            raise UsageError(f"{self.uri}: no such bucket: {bucket}", "make it, or name another")

    def upload(self, path: Path, name: str) -> tuple[int, str]:
        """Writes the file `path` as `name`; returns its bytes and xxh3.

        After an error there may be a file of this name which is not whole.
        """
        checksum, size = xxhash.xxh3_128(), 0
        with path.open("rb") as file, self._sink(name) as sink:
            while block := file.read(_BLOCK):
                checksum.update(block)
                size += len(block)
                sink.write(block)
        return size, checksum.hexdigest()

    def write(self, name: str, content: bytes) -> None:
        """As `upload`."""
        with self._sink(name) as sink:
            sink.write(content)

    def replace(self, source: str, name: str) -> None:
        """Makes `name` a copy of `source`: a reader sees the old file or the new one, whole."""
        filesystem, root = self._opened
        with self._explained(self.place(name)):
            filesystem.copy_file(f"{root}/{source}", f"{root}/{name}")

    def remove(self, name: str) -> None:
        """Removes a file, if it can be done."""
        filesystem, root = self._opened
        with contextlib.suppress(OSError):
            filesystem.delete_file(f"{root}/{name}")

    def remove_directory(self, name: str) -> None:
        """Removes a directory below with all that it holds, if it can be done."""
        filesystem, root = self._opened
        with contextlib.suppress(OSError):
            filesystem.delete_dir(f"{root}/{name}")

    @cached_property
    def _opened(self) -> tuple[fs.FileSystem, str]:
        uri = self.uri
        if uri.startswith("gs://") and _GS_PATIENCE not in uri:
            uri += f"{'&' if '?' in uri else '?'}{_GS_PATIENCE}60"  # else it tries for 15 minutes
        try:
            filesystem, root = fs.FileSystem.from_uri(uri)
        except pa.ArrowInvalid as error:
            raise UsageError(f"{self.uri}: {_reason(error)}") from None
        except (OSError, pa.ArrowException) as error:
            raise InputOutputError(f"{self.uri}: {_reason(error)}") from None
        return filesystem, root.rstrip("/")

    @contextlib.contextmanager
    def _stream(self, name: str) -> Iterator[Any]:
        filesystem, root = self._opened
        with (
            self._explained(self.place(name)),
            filesystem.open_input_stream(f"{root}/{name}", compression=None) as stream,
        ):
            yield stream

    @contextlib.contextmanager
    def _sink(self, name: str) -> Iterator[Any]:
        filesystem, root = self._opened
        with self._explained(self.place(name)):
            sink = filesystem.open_output_stream(f"{root}/{name}", compression=None)
            try:
                yield sink
                sink.close()
            except BaseException:
                # Closed here: else it would be published later, by the garbage collector.
                with contextlib.suppress(OSError):
                    sink.close()
                self.remove(name)
                raise

    @contextlib.contextmanager
    def _explained(self, place: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise InputOutputError(f"{place}: {_reason(error)}") from None


Location = Path | Remote


def locate(path: "str | os.PathLike[str] | Remote") -> Location:
    """The directory that a path or URI names; `file://` is a path. Raises UsageError."""
    if isinstance(path, Remote):
        return path
    text = os.fspath(path)
    if not _URI.match(text):
        return Path(text)
    scheme, _, rest = text.partition(":")
    scheme, slashes, rest = scheme.lower(), rest[:2], rest.removeprefix("//")
    _refuse_credentials(scheme, rest)
    shown = _shown(text)
    if scheme not in _EXPECTED:
        raise UsageError(
            f"{shown}: scheme is {scheme}, allowed: a path, or "
            + ", ".join(f"{allowed}://" for allowed in _EXPECTED)
        )
    if slashes != "//":
        raise UsageError(f"{shown}: expected {_EXPECTED[scheme]}")
    return _file(shown, rest) if scheme == "file" else _remote(shown, scheme, rest)


def _refuse_credentials(scheme: str, rest: str) -> None:
    """Before all else, and nothing that may be one is shown: manifests and messages repeat URIs."""
    if scheme == "gs":
        rest = rest.removeprefix("anonymous@")
    if _CREDENTIALS.search(rest):
        raise UsageError(
            f"{scheme}://...: a URI with credentials, or with an @ that is not written %40",
            "give credentials in the environment or the configuration of the store's own tools",
        )


def _shown(text: str) -> str:
    """A URI for messages: on one line, without options, which may be secrets."""
    base = text.partition("?")[0]
    return "".join(c if c.isprintable() else f"%{ord(c):02X}" for c in base)


def _file(shown: str, rest: str) -> Path:
    if found := re.search(r"[?#]", rest):
        raise UsageError(
            f"{shown}: {found[0]} in a URI, expected {_EXPECTED['file']}",
            f"in a name it is written %{ord(found[0]):02X}",
        )
    host, slash, path = rest.partition("/")
    decoded = os.fsdecode(unquote_to_bytes(os.fsencode(path)))
    _refuse_control(shown, host + decoded)
    if host not in ("", "localhost"):
        raise UsageError(f"{shown}: host is {host}, allowed: {_EXPECTED['file']}")
    if not slash:
        raise UsageError(f"{shown}: expected {_EXPECTED['file']}")
    return Path(f"/{decoded}")


def _remote(shown: str, scheme: str, rest: str) -> Remote:
    if found := _UNENCODED.search(rest):
        raise UsageError(
            f"{shown}: {found[0]!a} in a URI, expected {_EXPECTED[scheme]}",
            "percent-encode what is not a letter, a digit or one of -._~: a space is %20, % is %25",
        )
    base, _, query = rest.partition("?")
    authority, _, key = base.removesuffix("/").partition("/")
    if not authority or not key:
        raise UsageError(f"{shown}: expected {_EXPECTED[scheme]}")
    _check_bucket(shown, authority.rpartition("@")[2])
    _check_key(shown, key)
    _check_options(shown, scheme, query)
    return Remote(f"{scheme}://{authority}/{key}{'?' if query else ''}{query}")


def _check_bucket(shown: str, bucket: str) -> None:
    if ":" in bucket:
        raise UsageError(
            f"{shown}: a port after the bucket's name",
            "a server is named by an option: s3://bucket/name?endpoint_override=host:port",
        )
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(
            f"{shown}: bucket is {bucket}, allowed: a letter or digit, then these and -._"
        )


def _check_key(shown: str, key: str) -> None:
    try:
        decoded = unquote(key, errors="strict")  # before it is split: %2F is a slash to pyarrow
    except UnicodeDecodeError:
        raise UsageError(f"{shown}: a name that is not UTF-8") from None
    _refuse_control(shown, decoded)
    for name in decoded.split("/"):
        if name in ("", ".", ".."):  # to be taken out on the way, which leads elsewhere
            raise UsageError(f"{shown}: {name or 'nothing'} between slashes, expected a name")


def _refuse_control(shown: str, decoded: str) -> None:
    if found := _CONTROL.search(decoded):
        raise UsageError(f"{shown}: a name with the control character {found[0]!a}")


def _check_options(shown: str, scheme: str, query: str) -> None:
    for option in query.split("&") if query else ():
        name, _, value = option.partition("=")
        if not value:
            raise UsageError(f"{shown}: an option without a value, expected ?name=value&name=value")
        if name not in _OPTIONS[scheme]:
            raise UsageError(f"{shown}: option is {name}, allowed: {', '.join(_OPTIONS[scheme])}")
        if name == "endpoint_override" and "@" in unquote(value):
            raise UsageError(f"{shown}: endpoint_override with an @, expected host:port")


def _reason(error: Exception) -> str:
    """pyarrow's words on one line, without the number of the request or what repeats them."""
    words = " ".join(str(error).split())
    return re.sub(r" \(Request ID: [^)]*\)| error_info=.*", "", words)
