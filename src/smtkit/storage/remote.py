"""Directories on an object store, named by URI, through pyarrow.fs.

An object appears when the stream that writes it is closed, and pyarrow also closes the streams that
an error abandons: an upload that failed may leave an object that is cut short. So an object counts
as complete only when a later object, a manifest or a receipt, records its size.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from smtkit.errors import InputOutputError, UsageError
from smtkit.storage.files import copy_hashed

_BLOCK = 2**23  # bytes
_ATTEMPTS = 3
_ONLY_IN_URIS = re.compile(r"[?&](?:smart_defaults|tls_ca_dir_path|tls_verify_certificates)=")
"""Options of pyarrow's URIs that its constructor does not take."""
_GS_RETRY_LIMIT = "retry_limit_seconds="


@dataclass(frozen=True)
class Remote:
    """The directory at `uri`; names of files are relative to it. The first call connects.

    Methods raise InputOutputError where the store fails or cannot be reached.
    """

    uri: str

    def __str__(self) -> str:
        return self.uri

    def uri_of(self, name: str) -> str:
        """The URI of a file, for messages."""
        base, query, options = self.uri.partition("?")
        return f"{base}/{name}{query}{options}"

    def check_bucket(self) -> None:
        """Raises UsageError if the bucket does not exist."""
        bucket = self._files.base_path.partition("/")[0]
        with self._named_errors():
            found = self._files.base_fs.get_file_info(bucket)
        if found.type == fs.FileType.NotFound:
            raise UsageError(f"{self.uri}: no such bucket: {bucket}", "make it, or name another")

    def sizes(self) -> dict[str, int]:
        """Name to bytes of every file in the directory and below; empty if it does not exist."""
        selector = fs.FileSelector("", allow_not_found=True, recursive=True)
        with self._named_errors():
            found = self._files.get_file_info(selector)
        return {info.path: info.size for info in found if info.is_file}

    def read(self, name: str) -> bytes:
        """The content of a file. Raises FileNotFoundError."""
        with self._named_errors(name), self._files.open_input_stream(name, None) as stream:
            return bytes(stream.read())

    def blocks(self, name: str) -> Iterator[bytes]:
        """The content of a file in blocks of up to 8 MiB. Raises FileNotFoundError."""
        with self._named_errors(name), self._files.open_input_stream(name, None) as stream:
            while block := stream.read(_BLOCK):
                yield block

    def upload(self, path: Path, name: str) -> tuple[int, str]:
        """Writes the file `path` as `name`; returns its bytes and xxh3.

        After an error there may be a file of this name that is cut short.
        """
        with path.open("rb") as file, self._output(name) as sink:
            return copy_hashed(iter(lambda: file.read(_BLOCK), b""), sink)

    def write(self, name: str, content: bytes) -> None:
        """Writes a file. After an error there may be one that is cut short."""
        with self._output(name) as sink:
            sink.write(content)

    def replace(self, original: str, name: str) -> None:
        """Copies `original` to `name` in the store: a reader sees the whole old or new file."""
        with self._named_errors(name):
            self._files.copy_file(original, name)

    def remove(self, name: str) -> None:
        """Removes a file, if the store allows it."""
        with contextlib.suppress(OSError):
            self._files.delete_file(name)

    def remove_directory(self, name: str) -> None:
        """Removes a directory and all files in it, if the store allows it."""
        with contextlib.suppress(OSError):
            self._files.delete_dir(name)

    @cached_property
    def _files(self) -> fs.SubTreeFileSystem:
        uri = self.uri
        if uri.startswith("gs://") and _GS_RETRY_LIMIT not in uri:
            uri += f"{'&' if '?' in uri else '?'}{_GS_RETRY_LIMIT}60"  # the default is 15 minutes
        with self._named_errors():
            try:
                filesystem, root = fs.FileSystem.from_uri(uri)
            except pa.ArrowInvalid as error:
                raise UsageError(f"{self.uri}: {_reason(error)}") from None
            if isinstance(filesystem, fs.S3FileSystem) and not _ONLY_IN_URIS.search(uri):
                filesystem = _with_few_retries(filesystem)
        return fs.SubTreeFileSystem(root, filesystem)

    @contextlib.contextmanager
    def _output(self, name: str) -> Iterator[Any]:
        with self._named_errors(name):
            sink = self._files.open_output_stream(name, None)
            try:
                yield sink
                sink.close()
            except BaseException:
                # Closed here, because the garbage collector would close, and so publish, it later.
                with contextlib.suppress(OSError):
                    sink.close()
                self.remove(name)
                raise

    @contextlib.contextmanager
    def _named_errors(self, name: str | None = None) -> Iterator[None]:
        """Raises errors of the store as InputOutputError, except for FileNotFoundError."""
        try:
            yield
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            uri = self.uri_of(name) if name else self.uri
            raise InputOutputError(f"{uri}: {_reason(error)}") from None


def _with_few_retries(filesystem: fs.S3FileSystem) -> fs.S3FileSystem:
    """The same store, where a request fails after three attempts of 3 s without an answer; a URI
    cannot state that, and without it pyarrow tries for 100 s."""
    _, (options,) = filesystem.__reduce__()
    retries = fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS)
    return fs.S3FileSystem(**options, retry_strategy=retries)


def _reason(error: Exception) -> str:
    """pyarrow's message on one line, without request numbers and repetitions."""
    message = " ".join(str(error).split())
    return re.sub(r" \(Request ID: [^)]*\)| error_info=.*", "", message)
