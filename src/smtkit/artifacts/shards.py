"""Arrow IPC file shards: one writer, one reader, uncompressed and memory-mapped."""

import os
from pathlib import Path

import pyarrow as pa

from smtkit.artifacts.run import publish
from smtkit.errors import ArtifactError, InputOutputError


class ShardWriter:
    """Writes record batches to one Arrow IPC file, which appears under its name only when whole.

    Use as a context manager; raises InputOutputError where the disk does.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.rows = 0
        self._temporary = path.with_name(f".{path.name}")
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


def read_shard(path: Path) -> pa.ipc.RecordBatchFileReader:
    """Opens a shard through a memory map: batches reach numpy and torch without a copy.

    Raises ArtifactError where the file is not a whole Arrow IPC file.
    """
    try:
        return pa.ipc.open_file(pa.memory_map(str(path)))
    except (OSError, pa.ArrowInvalid) as error:
        raise ArtifactError(f"{path}: not a whole Arrow file: {error}") from None


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
