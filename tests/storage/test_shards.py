"""Shards: written atomically, read without a copy, refused when damaged."""

import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts import everything_below
from smtkit.errors import ArtifactError, InputOutputError
from smtkit.storage.shards import decode_shard, open_shard, shard_writer

SCHEMA = pa.schema([pa.field("number", pa.int64(), nullable=False)])


def batch(*numbers: int) -> pa.RecordBatch:
    return pa.record_batch([pa.array(numbers, pa.int64())], schema=SCHEMA)


def read_shard(path: Path) -> pa.Table:
    return decode_shard(path.read_bytes(), path, lambda _: None)


def test_a_shard_reads_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "shard.arrow"
    with shard_writer(path, SCHEMA) as writer:
        writer.write_batch(batch(1, 2, 3))
        writer.write_batch(batch(4))
    assert read_shard(path)["number"].to_pylist() == [1, 2, 3, 4]
    with path.open("rb") as file:  # and as any other program reads it
        assert pa.ipc.open_file(file).read_all()["number"].to_pylist() == [1, 2, 3, 4]


@pytest.mark.parametrize("rows", [1, 1000, 100_000])
def test_the_values_of_a_column_lie_where_an_open_shard_says(tmp_path: Path, rows: int) -> None:
    path, numbers = tmp_path / "shard.arrow", np.arange(rows) * 3
    pairs = pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(numbers, 2)), 2)
    columns = pa.record_batch([pa.array(numbers), pairs], names=["number", "pair"])
    with shard_writer(path, columns.schema) as writer:
        writer.write_batch(columns)
    shard = open_shard(path, lambda _: None)
    assert shard.rows == rows
    content = path.read_bytes()
    for name, size in (("number", rows), ("pair", 2 * rows)):
        found = np.frombuffer(content, np.int64, size, shard.offsets[name])
        np.testing.assert_array_equal(found, np.repeat(numbers, size // rows))
        assert (shard.arrays[name].size, shard.arrays[name].dtype) == (size, np.int64)


def test_a_shard_of_no_or_of_several_batches_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard.arrow"
    for batches in ([], [batch()], [batch(1), batch(2)]):
        with shard_writer(path, SCHEMA) as writer:
            for each in batches:
                writer.write_batch(each)
        with pytest.raises(ArtifactError, match="expected 1 that has rows"):
            open_shard(path, lambda _: None)


def test_a_shard_appears_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "shard.arrow"
    with shard_writer(path, SCHEMA) as writer:
        writer.write_batch(batch(1))
        assert not path.exists()
    assert set(everything_below(tmp_path)) == {"shard.arrow"}


def test_a_shard_writer_leaves_nothing_on_error(tmp_path: Path) -> None:
    with (
        suppress(ZeroDivisionError),
        shard_writer(tmp_path / "shard.arrow", SCHEMA) as writer,
    ):
        writer.write_batch(batch(1))
        raise ZeroDivisionError
    assert everything_below(tmp_path) == {}


def test_a_failed_write_keeps_the_existing_shard(tmp_path: Path) -> None:
    path = tmp_path / "shard.arrow"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), shard_writer(path, SCHEMA):
        raise ZeroDivisionError
    assert everything_below(tmp_path) == {"shard.arrow": b"old"}


def test_a_shard_that_cannot_be_written_is_an_input_output_error(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "shard.arrow"
    with pytest.raises(InputOutputError, match=r"shard\.arrow"), shard_writer(path, SCHEMA):
        pass


@pytest.mark.parametrize("content", [b"", b"ARROW1", b"not a shard at all" * 100])
def test_a_file_that_is_not_a_shard_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "shard.arrow"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"shard\.arrow"):
        read_shard(path)


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"shard\.arrow"):
        open_shard(tmp_path / "shard.arrow", lambda _: None)


@pytest.fixture(scope="module")
def whole_shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shards") / "whole.arrow"
    with shard_writer(path, SCHEMA) as writer:
        writer.write_batch(batch(*range(100)))
        writer.write_batch(batch(*range(50)))
    return path


@settings(max_examples=60)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_shard_cut_short_anywhere_is_refused(whole_shard: Path, share: float) -> None:
    content = whole_shard.read_bytes()
    path = whole_shard.with_name("short.arrow")
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ArtifactError, match=r"short\.arrow"):
        read_shard(path)


def test_two_threads_can_write_the_same_shard(tmp_path: Path) -> None:
    path, schema = tmp_path / "a.arrow", pa.schema([("x", pa.int64())])
    batch = pa.record_batch([pa.array(range(1000))], schema=schema)
    started = threading.Barrier(2)

    def write() -> None:
        with shard_writer(path, schema) as writer:
            started.wait()
            writer.write_batch(batch)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pa.ipc.open_file(path).read_all().num_rows == 1000
    assert [each.name for each in tmp_path.iterdir()] == ["a.arrow"]
