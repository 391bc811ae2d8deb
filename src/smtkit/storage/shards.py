"""Arrow IPC file shards: one writer, one reader, uncompressed and memory-mapped."""

import errno
import os
import secrets
from pathlib import Path
from typing import Self

import pyarrow as pa

from smtkit.errors import ArtifactError, InputOutputError
from smtkit.storage.files import publish
from smtkit.storage.run import Run


class ShardWriter:
    """Writes record batches to one Arrow IPC file, which appears under its name only when whole.

    Use as a context manager; raises InputOutputError where the disk does.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.rows = 0
        # A name of its own: another process may write the same shard.
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        self._schema = schema

    def __enter__(self) -> "ShardWriter":
        try:
            self._sink = pa.OSFile(str(self._temporary), "wb")
        except OSError as error:
            raise InputOutputError(f"{self.path}: {error}") from None
        self._writer = pa.ipc.new_file(self._sink, self._schema)
        return self

    def write(self, batch: pa.RecordBatch) -> None:
        try:
            self._writer.write_batch(batch)
        except OSError as error:
            raise InputOutputError(f"{self.path}: {error}") from None
        self.rows += batch.num_rows

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            self._writer.close()
            self._sink.close()
            if error is None:
                _flush(self._temporary)
                publish(self._temporary, self.path)
        except OSError as failure:
            raise InputOutputError(f"{self.path}: {failure}") from None
        finally:
            self._temporary.unlink(missing_ok=True)


class ShardSeries:
    """Shards `PREFIX-00000.arrow`, `PREFIX-00001.arrow`, ... in one directory; at least one.

    Use as a context manager. A shard ends when what was written to it weighs `limit` or more;
    then the run takes it in.
    """

    def __init__(self, run: Run, prefix: str, schema: pa.Schema, limit: int) -> None:
        self._run = run
        self._count = 0
        self._prefix = prefix
        self._schema = schema
        self._limit = limit
        self._weight = 0
        self._writer: ShardWriter | None = None

    def __enter__(self) -> Self:
        return self

    def write(self, batch: pa.RecordBatch, weight: int) -> None:
        writer = self._writer or self._open()
        writer.write(batch)
        self._weight += weight
        if self._weight >= self._limit:
            self._close(None)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None and self._writer is None and not self._count:
            self._open()
        self._close(error)

    def _open(self) -> ShardWriter:
        path = self._run.directory / f"{self._prefix}-{self._count:05d}.arrow"
        self._writer = ShardWriter(path, self._schema).__enter__()
        self._weight = 0
        return self._writer

    def _close(self, error: BaseException | None) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        writer.__exit__(type(error) if error else None, error, None)
        self._count += 1
        if error is None:
            self._run.add(writer.path.name, writer.rows)


def read_shard(path: Path) -> pa.ipc.RecordBatchFileReader:
    """Opens a shard through a memory map: batches reach numpy and torch without a copy.

    Raises ArtifactError where the file is not a whole Arrow IPC file, InputOutputError where it
    cannot be opened.
    """
    return _open(path)[1]


def map_shard(path: Path) -> tuple[pa.RecordBatch, int]:
    """The only batch of a shard, mapped, and the address of the file's first byte: what lies at an
    address of a column lies as far from it in the file. No file stays open.

    Raises as `read_shard`, and ArtifactError where there is another number of batches.
    """
    file, reader = _open(path)
    try:
        if reader.num_record_batches != 1:
            raise ArtifactError(f"{path}: {reader.num_record_batches} record batches, expected 1")
        batch = reader.get_batch(0)
        batch.validate()
        file.seek(0)
        return batch, file.read_buffer(1).address
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"{path}: damaged: {error}") from None
    finally:
        file.close()


def cannot_open(path: Path, error: OSError) -> InputOutputError:
    """What to raise for it."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    hint = "raise the limit of open files: ulimit -n" if error.errno == errno.EMFILE else None
    return InputOutputError(f"{path}: {reason}", hint)


def _open(path: Path) -> tuple[pa.MemoryMappedFile, pa.ipc.RecordBatchFileReader]:
    try:
        file = pa.memory_map(str(path))
    except FileNotFoundError:
        raise ArtifactError(f"{path}: the file is missing") from None
    except OSError as error:
        raise cannot_open(path, error) from None
    try:
        return file, pa.ipc.open_file(file)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"{path}: not a whole Arrow file: {error}") from None


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
