"""The texts of a column of a parquet file, read in batches of bounded size."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from smtkit.corpus.limits import Limits
from smtkit.corpus.parquet_pages import DICTIONARY, Page, pages
from smtkit.errors import UsageError
from smtkit.storage.files import file_size

_ROWS_AT_A_TIME = 1024
_DELTA_BYTE_ARRAY = 7
"""The encoding whose values repeat the start of the one before."""


def column_values(
    path: Path, name: str, find_column: Callable[[Sequence[str]], int], limits: Limits
) -> Iterator[bytes | None]:
    """The bytes of each row, or None, of the column that `find_column` takes from the names.

    No more than a few times `limits.max_value_bytes` are held in memory. Raises UsageError where
    the column holds no text, InputOutputError where a page exceeds the limits, and ValueError,
    OSError or ArrowException where the file is damaged.
    """
    with pa.parquet.ParquetFile(path) as file:
        limits.check_rows(name, file.metadata.num_rows, file_size(path) or 0)
        field = file.schema_arrow.field(find_column(file.schema_arrow.names))
        if not _is_text(field.type):
            raise UsageError(
                f"{name}: column {field.name} is {field.type}, expected text",
                "`text_field` names another",
            )
        leaf = next(i for i in range(len(file.schema)) if file.schema.column(i).path == field.name)
        groups = [
            _pages_of(path, file.metadata.row_group(group).column(leaf))
            for group in range(file.metadata.num_row_groups)
        ]
    for found in groups:
        for page in found:
            limits.check_value(name, "a page", page.size)
    # Otherwise a batch would hold a copy of an entry for each of its rows.
    encoded = [field.name] if any(p.kind == DICTIONARY for found in groups for p in found) else None
    with pa.parquet.ParquetFile(path, read_dictionary=encoded) as file:
        for group, found in enumerate(groups):
            rows = _rows_at_a_time(found, 2 * limits.max_value_bytes)
            for batch in file.iter_batches(rows, row_groups=[group], columns=[field.name]):
                yield from _values(batch.column(0))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return kind in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.null())


def _pages_of(path: Path, chunk: Any) -> list[Page]:
    offsets = (chunk.data_page_offset, chunk.dictionary_page_offset)
    start = min(offset for offset in offsets if offset)
    with path.open("rb") as file:
        return list(pages(file, start, chunk.total_compressed_size))


def _rows_at_a_time(found: Sequence[Page], most: int) -> int:
    """Rows of a batch such that the values of any batch take at most `most` bytes, if it can be."""
    data = [page for page in found if page.kind != DICTIONARY]
    if not data:
        return _ROWS_AT_A_TIME
    sizes = np.concatenate([[0], np.cumsum([page.size for page in data])])
    ends = np.cumsum([max(page.values, 1) for page in data])
    starts = np.concatenate([[0], ends[:-1]])
    rows = _ROWS_AT_A_TIME
    if any(page.encoding == _DELTA_BYTE_ARRAY for page in data):
        rows = max(1, min(rows, most // max(1, *(page.size for page in data))))
    # A batch may begin with the last row of a page.
    while rows > 1 and (sizes[np.searchsorted(starts, ends - 1 + rows)] - sizes[:-1]).max() > most:
        rows //= 2
    return rows


def _values(array: pa.Array) -> Iterator[bytes | None]:
    """Bytes of each value; they are decoded row by row, to name the row."""
    if not pa.types.is_dictionary(array.type):
        yield from array.cast(pa.large_binary()).to_pylist()
        return
    entries = array.dictionary.cast(pa.large_binary())
    for index in array.indices.to_pylist():
        if index is not None and not 0 <= index < len(entries):
            raise ValueError(f"damaged: entry {index} of a dictionary of {len(entries)}")
        yield None if index is None else entries[index].as_py()
