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
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import xxhash
from pyarrow import fs

from smtkit.errors import InputOutputError, UsageError

SCHEMES = ("file", "gs", "s3")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
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
    parts = urlsplit(text)
    if parts.scheme not in SCHEMES:
        raise UsageError(
            f"{text}: scheme is {parts.scheme}, allowed: a path, or "
            + ", ".join(f"{scheme}://" for scheme in SCHEMES)
        )
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise UsageError(f"{text}: host is {parts.netloc}, allowed: file:///path")
        return Path(unquote(parts.path))
    if "@" in parts.netloc.removeprefix("anonymous@"):  # manifests and messages repeat the URI
        raise UsageError(
            f"{parts.scheme}://...@{parts.netloc.rpartition('@')[2]}{parts.path}: a URI with "
            "credentials",
            "give them in the environment or the configuration of the store's own tools",
        )
    if parts.fragment or not parts.netloc or not parts.path.strip("/"):
        raise UsageError(f"{text}: expected {parts.scheme}://bucket/name")
    query = f"?{parts.query}" if parts.query else ""
    return Remote(f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}{query}")


def _reason(error: Exception) -> str:
    """pyarrow's words on one line, without the number of the request or what repeats them."""
    words = " ".join(str(error).split())
    return re.sub(r" \(Request ID: [^)]*\)| error_info=.*", "", words)
