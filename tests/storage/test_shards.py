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
from smtkit.storage.shards import decode_shard, map_shard, shard_writer

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


def test_a_shard_reaches_numpy_without_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "shard.arrow"
    with shard_writer(path, SCHEMA) as writer:
        writer.write_batch(batch(*range(1000)))
    before = pa.total_allocated_bytes()
    first, address, size = map_shard(path, lambda _: None)
    numbers = first.column("number").to_numpy(zero_copy_only=True)
    assert address <= numbers.ctypes.data < address + size
    assert pa.total_allocated_bytes() <= before
    np.testing.assert_array_equal(numbers, np.arange(1000))


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
        map_shard(tmp_path / "shard.arrow", lambda _: None)


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
