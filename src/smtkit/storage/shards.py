"""Shards: uncompressed Arrow IPC files, written atomically, and checked when they are read."""

import contextlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa

from smtkit.errors import ArtifactError
from smtkit.storage.files import atomic_file, named_errors, open_regular

_MAGIC = b"ARROW1\0\0"
_DAMAGE = (
    *(OSError, StopIteration, LookupError, TypeError, ValueError, MemoryError),
    *(struct.error, pa.ArrowException),
)
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


def map_shard(
    path: Path, check_schema: Callable[[pa.Schema], None]
) -> tuple[pa.RecordBatch, int, int]:
    """The only batch of a shard, memory-mapped; the address of the file's first byte, from which
    the addresses of columns give their offsets in the file; and the file's size. No file stays
    open.

    Raises as `decode_shard`, ArtifactError where the shard is missing, no regular file, or has not
    exactly one batch, InputOutputError where it cannot be mapped.
    """
    with (
        named_errors(path),
        _opened(path) as descriptor,
        pa.memory_map(f"/dev/fd/{descriptor}") as file,  # the file that was opened, no other
    ):
        content = file.read_buffer()
    table = decode_shard(content, path, check_schema)
    batches = table.to_batches()
    if len(batches) != 1:
        raise ArtifactError(f"{path}: {len(batches)} record batches, expected 1")
    return batches[0], content.address, content.size


def has_only(path: Path, schema: pa.Schema) -> bool:
    """Whether the bytes of a shard, which `map_shard` has accepted, are exactly those that its only
    batch is written as: also where no value is."""
    batch, address, size = map_shard(path, lambda _: None)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(batch.cast(schema))
    return sink.getvalue().equals(pa.foreign_buffer(address, size, batch))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        file = open_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{path}: the file is missing") from None
    with file:
        yield file.fileno()


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
