"""Inputs that expand to much are refused, or read in bounded memory; pages of parquet files."""

import contextlib
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from bombs import BOMBS
from corpora import MIB
from smtkit.corpus.limits import Limits
from smtkit.corpus.parquet_column import column_values
from smtkit.corpus.parquet_pages import DICTIONARY, pages
from smtkit.errors import InputOutputError, UsageError
from subprocesses import measured, needs_peak

FITS = {
    "many objects of JSON under the bound",
    "line of JSON that fits",
    "field of CSV with an emoji",
    "picture that fits",
}
ADDRESS_SPACE = 4 * 2**30


QUICK = (
    "one long line of JSON",
    "field of CSV",
    "equal texts of parquet",
    "picture of 8000 x 8000",
    "npz of one image",
)
"""Kinds of bombs that are tried in every run; the others take minutes."""


@needs_peak
@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BOMBS],
)
def test_memory_stays_under_a_gibibyte(tmp_path: Path, name: str) -> None:
    file, write = BOMBS[name]
    write(tmp_path / file)
    is_text = file.endswith((".gz", ".csv", ".parquet")) and "idx3" not in file
    tokenizer = "char" if is_text else "pixel"
    arguments = ("--out", tmp_path / "out", "-q", "--tokenizer", tokenizer)
    result = measured("tokenize", tmp_path / file, *arguments, address_space=ADDRESS_SPACE)
    assert result.code == (0 if name in FITS else 74), result.stderr
    assert result.peak < 2**30
    if result.code:
        assert result.stderr.startswith(f"smtkit: {tmp_path / file}")
        assert result.stderr.count("\n") == 1
        reasons = ("(--max-value-bytes allows", "(--max-expansion allows", "exceeds limit of")
        assert any(reason in result.stderr for reason in reasons), result.stderr


@needs_peak
@pytest.mark.slow
def test_memory_does_not_grow_with_the_threads_that_read(tmp_path: Path) -> None:
    file, write = BOMBS["many objects of JSON under the bound"]
    (tmp_path / "in").mkdir()
    for number in range(4):
        write(tmp_path / "in" / f"{number}-{file}")
    arguments = ("--out", tmp_path / "out", "--quiet", "--workers", 4, "--tokenizer", "char")
    result = measured("tokenize", tmp_path / "in", *arguments, address_space=ADDRESS_SPACE)
    assert result.code == 0, result.stderr
    assert result.peak < 2**30


def texts(seed: int, count: int, longest: int, distinct: int) -> list[str | None]:
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdé", k=draw.randrange(longest))) for _ in range(distinct)]
    return [None if draw.random() < 0.1 else draw.choice(words) for _ in range(count)]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary()])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dictionary": False},
        {"dictionary_pagesize_limit": 200},
        {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}},
        {"use_dictionary": False, "column_encoding": {"text": "DELTA_LENGTH_BYTE_ARRAY"}},
    ],
    ids=["dictionary", "plain", "both", "delta", "delta of lengths"],
)
def test_a_column_is_read_as_it_was_written(
    tmp_path: Path, version: str, kind: pa.DataType, options: dict[str, object]
) -> None:
    rows = texts(0, 5000, 40, 300)
    table = pa.table({"id": range(5000), "text": pa.array(rows).cast(kind)})
    path = tmp_path / "a.parquet"
    options = {"row_group_size": 1800, "data_page_size": 3000, "write_batch_size": 100, **options}
    pa.parquet.write_table(table, path, data_page_version=version, **options)
    with pa.parquet.ParquetFile(path) as file, path.open("rb") as raw:
        for group in range(file.metadata.num_row_groups):
            chunk = file.metadata.row_group(group).column(1)
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            found = list(pages(raw, start, chunk.total_compressed_size))
            data = [page for page in found if page.kind != DICTIONARY]
            assert sum(page.values for page in data) == chunk.num_values
            assert (len(data) < len(found)) == chunk.has_dictionary_page
            # The metadata counts the headers, too.
            assert sum(page.size for page in found) <= chunk.total_uncompressed_size
    for most in (2**24, 9000):
        limits = Limits(200.0, most)
        found_rows = list(column_values(path, "a", lambda names: names.index("text"), limits))
        assert [None if row is None else row.decode() for row in found_rows] == rows


def test_a_page_is_checked_by_its_own_header(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(pa.table({"text": ["x" * 5000]}), path, use_dictionary=False)
    for most, fits in ((6000, True), (5000, False)):
        values = column_values(path, "a", lambda names: 0, Limits(200.0, most))
        if fits:
            assert list(values) == [b"x" * 5000]
            continue
        with pytest.raises(InputOutputError, match="a: a page takes more than 5,000 bytes"):
            list(values)


@pytest.mark.parametrize("kind", [pa.int64(), pa.list_(pa.string()), pa.binary(4)])
def test_a_column_of_another_type_is_named(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(pa.table({"text": pa.array([None], kind)}), path)
    with pytest.raises(UsageError, match=r"a: column text is .*, expected text"):
        list(column_values(path, "a", lambda names: 0, Limits()))


def test_damaged_headers_of_pages_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(pa.table({"text": texts(1, 2000, 30, 2000)}), path)
    content = path.read_bytes()
    draw = random.Random(2)
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(draw.randint(1, 3)):
            damaged[draw.randrange(4, 60)] = draw.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(InputOutputError, ValueError, OSError, pa.ArrowException):
            list(column_values(path, "a", lambda names: 0, Limits()))


def test_a_value_at_the_bound_is_read(command, tmp_path: Path) -> None:
    """A line of 1 MiB with its line end, and one byte more."""
    for size, code in ((MIB, 0), (MIB + 1, 74)):
        path = tmp_path / f"{size}.jsonl"
        path.write_bytes(b'{"text": "' + b"x" * (size - 13) + b'"}\n')
        arguments = (path, "--out", tmp_path / f"out-{size}", "-q", "--max-value-bytes", MIB)
        assert command("tokenize", *arguments).code == code
