"""Writing label shards: windows of a corpus with the teacher's memory at every position."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from smtkit.corpus.seeded import IntArray
from smtkit.corpus.windows import Windows
from smtkit.errors import ArtifactError
from smtkit.labels.codec import are_finite
from smtkit.labels.format import LabelShape
from smtkit.storage.shards import shard_writer


def write_labels(
    path: Path, shape: LabelShape, windows: Windows, memory: NDArray[Any], origin: IntArray
) -> int:
    """Writes a shard of B windows, and returns B.

    memory (B, `shape.memories`, K, D), float32; origin (B,): first token of each window in the
    stream.
    Raises ArtifactError, before anything is written, where a memory is not finite or exceeds the
    range of the type it is stored in.
    """
    columns = shape.codec.encode(torch.from_numpy(np.asarray(memory, dtype=np.float32)))
    finite = are_finite(columns)
    if not finite.all():
        row = int(finite.argmin())
        raise _not_storable(path, shape, row, int(origin[row]), float(np.abs(memory[row]).max()))
    values = {**vars(windows), "origin": origin}
    for name, column in shape.columns.items():
        values[name] = column.array(columns[name])
    schema = shape.schema()
    arrays = {name: _rows(values[name], schema.field(name).type) for name in values}
    rows = (dict(zip(arrays, row, strict=True)) for row in zip(*arrays.values(), strict=True))
    arrays["xxh3"] = np.array([shape.checksums(row) for row in rows], dtype=np.uint64)
    batch = [_column(arrays[field.name], field.type) for field in schema]
    with shard_writer(path, schema) as writer:
        writer.write_batch(pa.record_batch(batch, schema=schema))
    return len(origin)


def _not_storable(
    path: Path, shape: LabelShape, row: int, origin: int, largest: float
) -> ArtifactError:
    where = f"{path.name}: row {row}: the window at token {origin} has a memory that"
    if not np.isfinite(largest):
        return ArtifactError(f"{where} is not finite")
    return ArtifactError(
        f"{where} holds {largest}, which {shape.dtype} cannot represent",
        "store memories as bfloat16 or float32 (`dtype`)",
    )


def _rows(values: NDArray[Any], kind: pa.DataType) -> NDArray[Any]:
    """(B, ...) -> (B, numbers per row), in the type of the column."""
    number = kind.value_type if pa.types.is_fixed_size_list(kind) else kind
    return np.asarray(values, number.to_pandas_dtype()).reshape(len(values), -1)


def _column(array: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """(B, numbers per row) -> Arrow column."""
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(array[:, 0], kind)
    values = pa.array(array.reshape(-1), kind.value_type)
    return pa.FixedSizeListArray.from_arrays(values, type=kind)
