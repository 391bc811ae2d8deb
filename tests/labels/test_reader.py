"""Reading label shards: rows and positions, checksums, damaged files, open files."""

import gc
import json
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import xxhash
from made_labels import made, normal, stored

from conftest import (
    WINDOW,
    encoder_config,
    label_rows,
    numbered_labels,
    rnn_config,
    shards,
)
from smtkit.config import ExtractLabelsConfig, TransitionObjectiveConfig
from smtkit.errors import ArtifactError, InputOutputError
from smtkit.labels.codec import CODECS
from smtkit.labels.reader import LabelShards
from smtkit.methods.smt import TransitionSampler
from smtkit.stages import extract_labels, train_encoder, train_rnn
from smtkit.storage.artifact import Artifact
from smtkit.training.order import SampleOrder
from smtkit.training.prefetch import Prefetch

DTYPES = list(CODECS)


def _several_parts(path: Path) -> LabelShards:
    """Three rows of seven positions; three share a checksum."""
    labels = made(path, normal(3, 7, 2, 14000), "float16")
    assert labels.shape.part_length == 3
    return labels


def _flip(path: Path, content: bytes) -> None:
    """Flips a bit of the first byte of `content` in a file."""
    everything = bytearray(path.read_bytes())
    everything[everything.index(content)] ^= 1
    path.write_bytes(everything)


def test_only_the_parts_of_a_row_that_are_read_are_checked(tmp_path):
    path = tmp_path / "train-00000.arrow"
    _several_parts(path)
    _flip(path, label_rows([path])[1]["memory"][3].tobytes())
    labels, rows = LabelShards([path]), np.array([0, 1, 2])

    for sound in ([0, 1], [0, 6], [2, 6]):
        labels.memories(rows, np.array([sound] * 3))
    for run in (range(2), range(3), range(6, 7)):
        labels.memories(rows, run)
    for damaged in (np.array([[0, 1], [2, 5], [0, 1]]), range(4), range(4, 7), range(7)):
        with pytest.raises(ArtifactError, match=f"{path}: row 1: damaged"):
            labels.memories(rows, damaged)
    labels.memories(np.array([0, 2]), range(7))


def test_training_stops_before_the_step_that_would_use_a_wrong_byte(tmp_path):
    path = tmp_path / "train-00000.arrow"
    _several_parts(path)
    _flip(path, label_rows([path])[2]["memory"][4].tobytes())
    objective = TransitionObjectiveConfig()
    source = TransitionSampler(LabelShards([path]), objective, batch_size=1, seed=0, positions=6)
    _, order = SampleOrder(3, 1, seed=0).rows(np.arange(3))
    damaged = order.tolist().index(2)
    with Prefetch(source, 2) as ahead:
        for step in range(damaged):
            ahead.batch(step)
        with pytest.raises(ArtifactError, match="row 2: damaged"):
            ahead.batch(damaged)


@pytest.mark.parametrize("dtype", DTYPES)
def test_checksums_are_those_that_are_documented(tmp_path, dtype):
    path = tmp_path / "train-00000.arrow"
    labels = made(path, normal(2, 7, 2, 2**14), dtype)
    columns = pa.ipc.open_file(path).read_all()

    def of(name: str, row: int) -> bytes:
        value = columns.column(name).combine_chunks().slice(row, 1)
        values = value.flatten() if pa.types.is_fixed_size_list(value.type) else value
        return values.to_numpy().tobytes()

    size = 2 * 2**14 * {"float32": 4, "int8": 1}.get(dtype, 2)
    together = {"int8": 4, "float16": 2, "bfloat16": 2, "float32": 1}[dtype]
    for row in range(2):
        head = b"".join(of(name, row) for name in ("tokens", "targets", "length", "origin"))
        expected = [xxhash.xxh3_64_intdigest(head)]
        for name, width in (("memory", size), ("scale", 8))[: 1 + (dtype == "int8")]:
            for first in range(0, 7, together):
                part = of(name, row)[first * width : (first + together) * width]
                expected.append(xxhash.xxh3_64_intdigest(part))
        assert columns.column("xxh3").to_pylist()[row] == expected
    assert labels.shape.part_length == together


def test_a_flipped_bit_of_a_scale_is_found(tmp_path):
    path = tmp_path / "train-00000.arrow"
    made(path, normal(3, 7, 2, 8), "int8")
    _flip(path, label_rows([path])[1]["scale"].tobytes())
    with pytest.raises(ArtifactError, match="row 1: damaged"):
        LabelShards([path]).memories(np.array([1]), range(7))


def test_a_shard_that_lost_bytes_in_its_middle_is_refused(tmp_path):
    path = tmp_path / "train-00000.arrow"
    _several_parts(path)
    content = path.read_bytes()
    path.write_bytes(content[:1000] + content[3000:])
    with pytest.raises(ArtifactError, match=str(path)):
        LabelShards([path]).read(np.array([0]))


@pytest.mark.parametrize("positions", [range(7), np.array([[1, 5]])])
def test_a_shard_that_is_cut_short_while_it_is_read_is_an_error(tmp_path, positions):
    path = tmp_path / "train-00000.arrow"
    labels = _several_parts(path)
    os.truncate(path, path.stat().st_size // 2)
    labels.memories(np.array([0]), positions)
    with pytest.raises(ArtifactError, match=f"{path}: row 2: the file has been cut short"):
        labels.memories(np.array([2]), positions)


def test_a_shard_that_is_cut_before_its_tokens_while_it_is_read_is_an_error(tmp_path):
    path = tmp_path / "train-00000.arrow"
    labels = _several_parts(path)
    os.truncate(path, 100)
    with pytest.raises(ArtifactError, match=f"{path}: row 1: the file has been cut short"):
        labels.read(np.array([1]))


@pytest.mark.parametrize("bit", [0, 2, 31])
@pytest.mark.parametrize("lengths", [[4, 2, 4, 6, 1], [4, 4, 4, 6], [6, 6, 6, 1]])
def test_lengths_are_verified_before_they_order_the_rows(tmp_path, lengths, bit):
    path = tmp_path / "train-00000.arrow"
    numbered_labels(path, lengths)
    sound = path.read_bytes()
    start = sound.index(np.array(lengths, np.int32).tobytes())
    for row in range(len(lengths)):
        content = bytearray(sound)
        content[start + 4 * row + bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=f"{path}: row {row}: damaged: wrong checksum"):
            LabelShards([path]).lengths()


def test_training_refuses_a_damaged_length(parity, tmp_path, command):
    encoder, labels, rnn = tmp_path / "encoder", tmp_path / "labels", tmp_path / "rnn"
    train_encoder.run(encoder_config(data={"window": None}), parity, encoder)
    extract_labels.run(ExtractLabelsConfig(), encoder, parity, labels)
    (path,) = shards(labels, "train")
    _flip_bit(path, "length", number=40)
    arguments = ("--max-steps", 1, "--set", "training.batch_size=1", "--out", rnn)
    result = command("train-rnn", labels, *arguments)
    assert (result.code, rnn.exists()) == (3, False)
    assert result.line().startswith(f"{path}: row 40: damaged: wrong checksum")


def test_any_flipped_bit_gives_an_error_or_the_right_row(tmp_path):
    path = tmp_path / "train-00000.arrow"
    made(path, normal(2, 4, 1, 2), "int8")
    sound = path.read_bytes()
    rows = np.arange(2)
    expected = stored(LabelShards([path]).memories(rows, range(4)))
    for index in range(0, len(sound), 3):
        content = bytearray(sound)
        content[index] ^= 1 << index % 8
        path.write_bytes(content)
        try:
            labels = LabelShards([path])
            labels.read(rows)
            assert torch.equal(stored(labels.memories(rows, range(4))), expected)
        except ArtifactError:
            pass


@pytest.mark.parametrize("window", [-1, 10**10, 1.5])
def test_an_impossible_shape_is_refused(tmp_path, window):
    path = tmp_path / "train-00000.arrow"
    made(path, normal(2, 4, 1, 2), "float16")
    table = pa.ipc.open_file(path).read_all()
    metadata = {**json.loads(table.schema.metadata[b"smtkit"]), "window": window}
    with pa.ipc.new_file(
        path, table.schema.with_metadata({"smtkit": json.dumps(metadata)})
    ) as file:
        file.write_table(table.replace_schema_metadata({"smtkit": json.dumps(metadata)}))
    with pytest.raises(ArtifactError, match=str(path)):
        LabelShards([path])


def test_reads_that_return_fewer_bytes_are_continued(tmp_path, monkeypatch):
    path = tmp_path / "train-00000.arrow"
    labels, rows = _several_parts(path), np.arange(3)
    expected = stored(labels.memories(rows, range(7))).clone()
    read = os.preadv

    def some(file: int, buffers: tuple[memoryview], offset: int) -> int:
        return read(file, [buffers[0][:10_001]], offset)

    monkeypatch.setattr(os, "preadv", some)
    assert torch.equal(stored(labels.memories(rows, range(7))), expected)


def test_a_missing_shard_is_named(pipeline, tmp_path):
    copied = shutil.copytree(pipeline.labels, tmp_path / "copied")
    (path,) = shards(copied, "train")
    path.unlink()
    with pytest.raises(ArtifactError, match=path.name):
        train_rnn.run(rnn_config(), copied, tmp_path / "rnn")


def test_labels_of_an_earlier_version_are_refused_in_one_line(pipeline, tmp_path, command):
    copied = shutil.copytree(pipeline.labels, tmp_path / "copied")
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps({**manifest, "format_version": 2}))
    result = command("train-rnn", copied, "--out", tmp_path / "rnn", "--max-steps", 1)

    assert result.code == 3
    assert "format version is 2, this smtkit reads 5" in result.line()


def _open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def test_a_shard_needs_one_open_file(tmp_path):
    paths = [tmp_path / f"train-{number:05d}.arrow" for number in range(40)]
    for path in paths:
        numbered_labels(path, [6, 6])
    before = _open_files()
    labels = LabelShards(paths)
    labels.memories(np.arange(80), range(7))
    assert _open_files() <= before + 40
    del labels
    gc.collect()
    assert _open_files() == before


def test_too_many_open_files_are_one_line_with_a_hint(tmp_path):
    path = tmp_path / "train-00000.arrow"
    numbered_labels(path, [6, 6])
    few = _open_files() + 5
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, limits[1]))
    try:
        with pytest.raises(InputOutputError, match=f"{path}: Too many open files") as caught:
            LabelShards([path] * 20)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "ulimit -n" in str(caught.value.hint)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("positions", [range(7), range(2, 5), np.array([[0, 1, 5], [2, 3, 6]])])
def test_what_is_read_is_what_lies_there(tmp_path, dtype, positions):
    memory = normal(4, 7, 2, 3)
    path = tmp_path / "train-00000.arrow"
    labels = made(path, memory, dtype)
    rows = np.array([3, 1])
    found = labels.memories(rows, positions)
    found = found.decode(torch.arange(len(found.columns["memory"])))
    # By hand, from the file.
    columns = pa.ipc.open_file(path).read_all()
    values = columns.column("memory").combine_chunks().flatten().to_numpy()
    if dtype == "bfloat16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    values = values.astype(np.float32).reshape(memory.shape)
    if dtype == "int8":
        scale = columns.column("scale").combine_chunks().flatten().to_numpy()
        values = values * scale.reshape(4, 7, 2, 1)
    chosen = [list(positions)] * 2 if isinstance(positions, range) else positions
    expected = np.concatenate([values[row, at] for row, at in zip(rows, chosen, strict=True)])

    assert (found.numpy() == expected).all()
    np.testing.assert_allclose(values, memory, atol=0.02)


@pytest.fixture
def copied(pipeline, tmp_path) -> Path:
    return shutil.copytree(pipeline.labels, tmp_path / "copied")


def _flip_bit(path: Path, column: str, number: int) -> None:
    """In one row of one column of a shard."""
    values = pa.ipc.open_file(path).read_all().column(column).combine_chunks()
    rows = len(values)
    if pa.types.is_fixed_size_list(values.type):
        values = values.flatten()
    column_bytes = values.to_numpy().tobytes()
    content = bytearray(path.read_bytes())
    start = content.index(column_bytes)
    content[start + number * len(column_bytes) // rows] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("column", ["tokens", "targets", "length", "origin", "memory"])
def test_a_flipped_bit_is_found_and_named(copied, column):
    (path,) = shards(copied, "train")
    _flip_bit(path, column, number=3)
    labels = LabelShards([path])

    def read(rows: list[int]) -> None:
        labels.read(np.array(rows))
        labels.memories(np.array(rows), range(WINDOW + 1))

    read([2, 4])
    with pytest.raises(ArtifactError, match=f"{path.name}: row 3: damaged"):
        read([2, 3])


def test_training_stops_at_a_damaged_row(copied, tmp_path):
    (path,) = shards(copied, "train")
    _flip_bit(path, "memory", number=200)
    # Enough steps for a whole epoch.
    config = rnn_config(training={"max_steps": 100, "batch_size": 16})

    with pytest.raises(ArtifactError, match=f"{path.name}: row 200: damaged"):
        train_rnn.run(config, copied, tmp_path / "rnn")


def test_a_shard_that_was_cut_short_is_refused(copied):
    (path,) = shards(copied, "train")
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(ArtifactError, match=path.name):
        Artifact.open(copied, "labels")
    with pytest.raises(ArtifactError, match=f"{path.name}: not a whole Arrow file"):
        LabelShards([path])


def test_a_shard_of_tokens_is_no_shard_of_labels(pipeline):
    with pytest.raises(ArtifactError, match="not a label shard"):
        LabelShards(shards(pipeline.tokens, "train"))
