"""Shards: uncompressed Arrow IPC files, written atomically and read through memory maps."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from smtkit.errors import ArtifactError
from smtkit.storage.files import atomic_file, named_errors


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
