"""Token shards that are damaged or forged: the commands that use them refuse them in one line.

A forged shard has the checksum that its manifest says.
"""

import os
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from artifacts import edit_files, flip_byte
from conftest import Command, Pipeline, shards
from smtkit.corpus.shards import open_split, stream_schema
from smtkit.errors import ArtifactError
from smtkit.storage.artifact import Artifact

SMALL = ("--max-steps", 1)


@pytest.fixture
def tokens(pipeline: Pipeline, tmp_path: Path) -> Path:
    return shutil.copytree(pipeline.tokens, tmp_path / "tokens")


def uses(command: Command, tokens: Path) -> list[tuple[str, str]]:
    """What the commands that read the train split say: (exit code, message)."""
    arguments = [
        ("train-rnn", tokens, "--method", "bptt", *SMALL, "--out", tokens.parent / "rnn"),
        ("train-encoder", tokens, *SMALL, "--out", tokens.parent / "encoder"),
        ("inspect", tokens),
    ]
    results = [command(*each) for each in arguments]
    assert not (tokens.parent / "rnn").exists()
    assert not (tokens.parent / "encoder").exists()
    return [(result.code, result.line()) for result in results]


def _values_of(content: bytes) -> int:
    """Where the values of the column `tokens` begin in a shard."""
    buffer = pa.py_buffer(content)
    column = pa.ipc.open_file(buffer).get_batch(0)["tokens"]
    return column.values.buffers()[1].address - buffer.address


@pytest.mark.parametrize("bit", [0, 15])
def test_flipped_bits_of_tokens_are_refused(command: Command, tokens: Path, bit: int) -> None:
    (path,) = shards(tokens, "train")
    content = bytearray(path.read_bytes())
    start = _values_of(bytes(content))
    for position in range(start, start + 200, 20):  # every tenth token
        content[position + bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    for code, message in uses(command, tokens):
        assert code == 3
        assert message.startswith(f"{path}: damaged: xxh3 is ")


def test_a_flipped_bit_anywhere_in_a_shard_is_refused(tokens: Path) -> None:
    (path,) = shards(tokens, "train")
    size, draw = path.stat().st_size, np.random.default_rng(0)
    for position in draw.integers(size, size=40).tolist():
        flip_byte(path, position)
        with pytest.raises(ArtifactError, match="damaged") as caught:
            open_split(Artifact.open(tokens), "train")
        assert str(path) in str(caught.value)
        flip_byte(path, position)
    open_split(Artifact.open(tokens), "train")


def _rewritten(
    change: Callable[[dict[str, list[object]]], None], schema: pa.Schema | None = None
) -> Callable[[bytes], bytes]:
    """A forgery that writes the first batch anew, with other values."""

    def forge(content: bytes) -> bytes:
        columns = pa.ipc.open_file(content).get_batch(0).to_pydict()
        change(columns)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, schema or stream_schema(257)) as writer:
            writer.write_batch(pa.RecordBatch.from_pydict(columns, schema or stream_schema(257)))
        return bytes(sink.getvalue())

    return forge


def _with_offset(index: int, value: int) -> Callable[[bytes], bytes]:
    def forge(content: bytes) -> bytes:
        buffer, changed = pa.py_buffer(content), bytearray(content)
        offsets = pa.ipc.open_file(buffer).get_batch(0)["tokens"].buffers()[1]
        struct.pack_into("<q", changed, offsets.address - buffer.address + 8 * index, value)
        return bytes(changed)

    return forge


def _compressed(content: bytes) -> bytes:
    table, sink = pa.ipc.open_file(content).read_all(), pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _as_int32(content: bytes) -> bytes:
    kinds = {"document": pa.int64(), "offset": pa.int64(), "tokens": pa.large_list(pa.int32())}
    fields = [pa.field(name, kind, nullable=False) for name, kind in kinds.items()]
    return _rewritten(lambda _: None, pa.schema(fields))(content)


def _token(value: int) -> Callable[[dict[str, list[object]]], None]:
    return lambda columns: columns["tokens"][-1].__setitem__(-1, value)


FORGERIES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a token beyond the vocabulary": (_rewritten(_token(257)), "tokens: 257, allowed: 0 to 256"),
    "tokens of another type": (_as_int32, "columns are not those of a token shard"),
    "an offset far before the values": (_with_offset(0, -(2**40)), "damaged: "),
    "an offset just before the values": (_with_offset(0, -64), "damaged: "),
    "an offset beyond the values": (_with_offset(1, 2**40), "damaged: "),
    "compressed columns": (_compressed, "compressed"),
    "no magic number": (lambda content: b"PAR1" + content[4:], "not a whole Arrow file"),
    "a file cut short": (lambda content: content[:-100], "not a whole Arrow file"),
    "an empty file": (lambda _: b"", "not a whole Arrow file"),
    "nothing between the ends": (lambda _: b"ARROW1\0\0ARROW1", "damaged: "),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_shard_is_refused(command: Command, tokens: Path, forgery: str) -> None:
    forge, message = FORGERIES[forgery]
    (path,) = shards(tokens, "train")
    path.write_bytes(forge(path.read_bytes()))
    edit_files(tokens)
    for code, line in uses(command, tokens):
        assert code == 3
        assert line.startswith(str(path))
        assert message in line


def test_fewer_rows_than_the_manifest_says_are_refused(command: Command, tokens: Path) -> None:
    (path,) = shards(tokens, "train")

    def shorten(columns: dict[str, list[object]]) -> None:
        for values in columns.values():
            values.pop()

    path.write_bytes(_rewritten(shorten)(path.read_bytes()))
    edit_files(tokens)
    for code, line in uses(command, tokens):
        assert (code, "rows, the manifest says" in line) == (3, True)


def test_mutated_arrow_headers_are_errors_or_results(tokens: Path) -> None:
    (path,) = shards(tokens, "train")
    whole, draw = path.read_bytes(), np.random.default_rng(1)
    header = _values_of(whole)
    for _ in range(300):
        content = bytearray(whole)
        for position in draw.integers(8, header, size=draw.integers(1, 4)).tolist():
            content[position] = int(draw.choice([0, 1, 127, 128, 255, content[position] ^ 8]))
        path.write_bytes(content)
        edit_files(tokens)
        with suppress(ArtifactError):
            open_split(Artifact.open(tokens), "train").read(0, 10)


def test_a_shard_that_is_cut_while_it_is_used_does_no_harm(tokens: Path) -> None:
    opened = open_split(Artifact.open(tokens), "train")
    before = opened.read(0, opened.tokens).tolist()
    os.truncate(shards(tokens, "train")[0], 0)
    assert opened.read(0, opened.tokens).tolist() == before


def test_whole_rows_out_of_range_are_refused(
    command: Command, task_pipeline: Pipeline, tmp_path: Path
) -> None:
    tokens = shutil.copytree(task_pipeline.tokens, tmp_path / "tokens")
    (path,) = shards(tokens, "train")
    whole = path.read_bytes()
    schema = pa.ipc.open_file(whole).schema
    vocabulary = 1 + max(
        max(row) for row in pa.ipc.open_file(whole).read_all()["tokens"].to_pylist()
    )

    def forge(name: str, value: int) -> str:
        def change(columns: dict[str, list[object]]) -> None:
            columns[name][0][-1] = value

        path.write_bytes(_rewritten(change, schema)(whole))
        edit_files(tokens)
        out = tmp_path / "rnn"
        result = command("train-rnn", tokens, "--method", "bptt", "--max-steps", 1, "--out", out)
        assert result.code == 3
        return result.line()

    assert "targets: -2, allowed: -1 to " in forge("targets", -2)
    assert "targets: 1000, allowed" in forge("targets", 1000)
    assert "distance: 1000, allowed" in forge("distance", 1000)
    assert f"tokens: {vocabulary + 500}, allowed" in forge("tokens", vocabulary + 500)

    def shorter(columns: dict[str, list[object]]) -> None:
        columns["targets"][0].pop()

    path.write_bytes(_rewritten(shorter, schema)(whole))
    edit_files(tokens)
    with pytest.raises(ArtifactError, match="targets: expected one more than tokens"):
        open_split(Artifact.open(tokens), "train")
