"""Shards: uncompressed Arrow IPC files, written atomically and read through memory maps."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pyarrow as pa

from smtkit.errors import ArtifactError
from smtkit.storage.files import atomic_file, named_errors
from smtkit.storage.run import Run


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


class ShardSeries:
    """Shards `PREFIX-00000.arrow`, `PREFIX-00001.arrow`, ... of a run; at least one.

    Use as a context manager. A shard is finished, and added to the run, when the weights of the
    batches in it come to `limit` or more.
    """

    def __init__(self, run: Run, prefix: str, schema: pa.Schema, limit: int) -> None:
        self._run = run
        self._prefix = prefix
        self._schema = schema
        self._limit = limit
        self._shard: contextlib.ExitStack | None = None
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def write(self, batch: pa.RecordBatch, weight: int) -> None:
        shard = self._shard or self._open()
        with named_errors(self._path):
            self._writer.write_batch(batch)
        self._rows += batch.num_rows
        self._weight += weight
        if self._weight >= self._limit:
            self._finish(shard)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None:
            if self._shard or not self._count:
                self._finish(self._shard or self._open())
        elif self._shard:
            with contextlib.suppress(Exception):  # `error` is the one to raise
                self._shard.__exit__(type(error), error, error.__traceback__)

    def _open(self) -> contextlib.ExitStack:
        self._path = self._run.directory / f"{self._prefix}-{self._count:05d}.arrow"
        self._shard = contextlib.ExitStack()
        self._writer = self._shard.enter_context(shard_writer(self._path, self._schema))
        self._rows = self._weight = 0
        return self._shard

    def _finish(self, shard: contextlib.ExitStack) -> None:
        self._shard = None
        shard.close()
        self._count += 1
        self._run.add(self._path.name, self._rows)


def read_shard(path: Path) -> pa.ipc.RecordBatchFileReader:
    """Opens a shard through a memory map: batches reach numpy and torch without a copy.

    Raises ArtifactError where the file is missing or not a complete Arrow IPC file,
    InputOutputError where it cannot be opened.
    """
    return _open(path)[1]


def map_shard(path: Path) -> tuple[pa.RecordBatch, int]:
    """The only batch of a shard, memory-mapped, and the address of the file's first byte, from
    which the addresses of columns give their offsets in the file. No file stays open.

    Raises as `read_shard`, and ArtifactError where the shard has not exactly one batch.
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


def _open(path: Path) -> tuple[pa.MemoryMappedFile, pa.ipc.RecordBatchFileReader]:
    with named_errors(path):
        if not path.exists():
            raise ArtifactError(f"{path}: the file is missing")
        file = pa.memory_map(str(path))
    try:
        return file, pa.ipc.open_file(file)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"{path}: not a whole Arrow file: {error}") from None
