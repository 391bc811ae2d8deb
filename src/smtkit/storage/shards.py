"""Shards: uncompressed Arrow IPC files, written atomically, and checked when they are read."""

import contextlib
import io
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from smtkit.errors import ArtifactError
from smtkit.storage.files import atomic_file, named_errors, open_regular

_MAGIC = b"ARROW1\0\0"
_DAMAGE = (
    *(OSError, StopIteration, LookupError, TypeError, ValueError, MemoryError),
    *(struct.error, pa.ArrowException),
)
_HEADER_BYTES = 2**16
"""At either end of a shard of one batch: all that is neither values nor the padding after them."""
_MARK = 0xFFFFFFFF  # before the size of each message
_HEADER_FIELD, _BODY_FIELD = 2, 3  # of a Message: what it holds, and the bytes after it
_COMPRESSION_FIELD = 3  # of a RecordBatch


@contextlib.contextmanager
def shard_writer(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatchFileWriter]:
    """Opens a shard for writing, which appears as `path` when the block ends without an error.

    Raises InputOutputError.
    """
    with (
        atomic_file(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        yield writer


def decode_shard(
    content: bytes | pa.Buffer, path: Path, check_schema: Callable[[pa.Schema], None]
) -> pa.Table:
    """The record batches of a shard, which refer to its `content`: nothing is copied.

    `check_schema` raises ArtifactError where the columns are not those expected; it is called
    before a batch is decoded. Raises ArtifactError where the content is no whole Arrow file, does
    not pass Arrow's full validation, or is compressed: a few bytes would become gigabytes.
    """
    buffer = pa.py_buffer(content)
    try:
        if buffer[: len(_MAGIC)] != _MAGIC or buffer[-6:] != _MAGIC[:6]:
            raise ArtifactError(f"{path}: not a whole Arrow file")
        messages = _messages(buffer)
        if (first := next(messages)).type != "schema":
            raise ArtifactError(f"{path}: a {first.type} before the schema")
        schema = pa.ipc.read_schema(first)
        check_schema(schema)
        batches = []
        for message in messages:
            if message.type != "record batch" or _is_compressed(message.metadata):
                raise ArtifactError(f"{path}: compressed or encoded, allowed: plain columns")
            batches.append(pa.ipc.read_record_batch(message, schema))
            batches[-1].validate(full=True)
        return pa.Table.from_batches(batches, schema)
    except _DAMAGE as error:
        reason = str(error).partition("\n")[0]
        raise ArtifactError(f"{path}: damaged: {reason or 'no columns'}") from None


@dataclass(frozen=True)
class OpenShard:
    """A shard of one batch, open for reading, of which only the headers have been read: nothing is
    mapped, since touching a page of a mapped file that has been cut short ends the process."""

    file: io.BufferedReader
    rows: int
    arrays: dict[str, NDArray[Any]]
    """Stands for the columns: shape (rows,) or (rows, numbers) and dtype, but not the values."""
    offsets: dict[str, int]
    """Where in the file the values of a column begin."""


def open_shard(path: Path, check_schema: Callable[[pa.Schema], None]) -> OpenShard:
    """Opens a shard of exactly one batch, whose columns are numbers or lists of one length.

    Raises as `decode_shard`, ArtifactError where the shard is missing, no regular file, or has not
    exactly one batch, InputOutputError where it cannot be read.
    """
    with named_errors(path):
        try:
            file = open_regular(path)
        except (FileNotFoundError, NotADirectoryError):
            raise ArtifactError(f"{path}: the file is missing") from None
        size = os.fstat(file.fileno()).st_size
        try:
            content = np.zeros(size, np.uint8)  # no page is in memory until something is written
        except MemoryError:
            raise ArtifactError(f"{path}: {size} bytes, more than fit in memory") from None
        for start in (0, max(0, size - _HEADER_BYTES)):
            os.preadv(file.fileno(), (content[start : start + _HEADER_BYTES].data,), start)
    batches = decode_shard(content, path, check_schema).to_batches()
    if len(batches) != 1 or not batches[0].num_rows:
        raise ArtifactError(f"{path}: {len(batches)} record batches, expected 1 that has rows")
    (batch,) = batches
    try:
        arrays = {name: _array(batch.column(name)) for name in batch.schema.names}
    except ValueError as error:  # Arrow's errors are ValueErrors
        raise ArtifactError(f"{path}: damaged: {error}") from None
    offsets = {name: array.ctypes.data - content.ctypes.data for name, array in arrays.items()}
    return OpenShard(file, batch.num_rows, arrays, offsets)


def has_only(path: Path, schema: pa.Schema) -> bool:
    """Whether the bytes of a shard, which `open_shard` has accepted, are exactly those that its
    only batch is written as: also where no value is."""
    with named_errors(path), open_regular(path) as file:
        content = pa.py_buffer(file.read())
    (batch,) = decode_shard(content, path, lambda _: None).to_batches()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(batch.cast(schema))
    return sink.getvalue().equals(content)


def _array(column: pa.Array) -> NDArray[Any]:
    """(rows,) or (rows, numbers), without a copy."""
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy(zero_copy_only=True)
    return column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), -1)


def _messages(buffer: pa.Buffer) -> Iterator[pa.ipc.Message]:
    """The messages of a shard, one after the other.

    Arrow's own readers of files and streams trust the sizes in a message's header: a forged one
    makes them read outside the file.
    """
    start = len(_MAGIC)
    while True:
        mark, size = struct.unpack_from("<Ii", buffer, start)
        if mark != _MARK or not 0 <= size <= buffer.size - start - 8:
            raise ValueError("a message without a size")
        if not size:
            return
        header = buffer.slice(start + 8, size).to_pybytes()
        body = _field(header, struct.unpack_from("<I", header)[0], _BODY_FIELD)
        length = 0 if body is None else struct.unpack_from("<q", header, body)[0]
        if not 0 <= length <= buffer.size - start - 8 - size:
            raise ValueError("a message larger than the file")
        yield pa.ipc.read_message(buffer.slice(start, 8 + size + length))
        start += 8 + size + length


def _is_compressed(metadata: pa.Buffer) -> bool:
    """Whether the header of a record batch, a flatbuffer that Arrow has verified, names a codec."""
    content = metadata.to_pybytes()
    header = _field(content, struct.unpack_from("<I", content)[0], _HEADER_FIELD)
    if header is None:
        return True  # no record batch
    header += struct.unpack_from("<I", content, header)[0]
    return _field(content, header, _COMPRESSION_FIELD) is not None


def _field(content: bytes, table: int, number: int) -> int | None:
    """Where a field of a table in a flatbuffer is; None if it is absent."""
    fields = table - struct.unpack_from("<i", content, table)[0]
    position = 4 + 2 * number
    if position >= struct.unpack_from("<H", content, fields)[0]:
        return None
    offset = struct.unpack_from("<H", content, fields + position)[0]
    return table + offset if offset else None
