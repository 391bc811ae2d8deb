"""The stream of labels: read ahead by threads, into reused buffers, from each type, and never a
wrong byte."""

import gc
import json
import os
import resource
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from conftest import label_rows, model_bytes, numbered_labels, rnn_config, shards, tensor_fields
from smtkit.config import (
    ExtractLabelsConfig,
    RolloutConfig,
    TrainRnnConfig,
    TransitionObjectiveConfig,
)
from smtkit.corpus.windows import Windows
from smtkit.errors import ArtifactError, InputOutputError
from smtkit.labels.buffers import Buffers
from smtkit.labels.codec import CODECS, EncodedMemory
from smtkit.labels.format import LabelShape
from smtkit.labels.reader import LabelShards
from smtkit.labels.writer import write_labels
from smtkit.methods.dmt import RolloutSampler
from smtkit.methods.smt import TransitionSampler
from smtkit.stages import extract_labels, train_rnn
from smtkit.training.order import SampleOrder
from smtkit.training.prefetch import Prefetch

DTYPES = list(CODECS)
READERS = [0, 1, 2, 3, 8]
LENGTHS = [6, 6, 1, 5, 3, 2, 6, 4, 6, 6, 5]
# What each number may be off by, as a share of itself: half of its last bit.
SHARE = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 0.0}


def _made(path: Path, memory: np.ndarray, dtype: str) -> LabelShards:
    """A shard of memories (B, T + 1, K, D), with tokens and targets that say where they are."""
    rows, positions, slots, width = memory.shape
    places = 100 * np.arange(rows)[:, None] + np.arange(positions)
    windows = Windows(places[:, :-1], places + 50, np.full(rows, positions - 1, dtype=np.int64))
    shape = LabelShape(positions - 1, slots, width, 60_000, dtype)
    write_labels(path, shape, windows, memory, np.arange(rows))
    return LabelShards([path])


def _stored(memory: EncodedMemory) -> torch.Tensor:
    return memory.columns["memory"]


def _normal(*size: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(size, dtype=np.float32)


def _sources(labels: LabelShards) -> list:
    objective = TransitionObjectiveConfig(kl_weight=1.0, kl_positions=2, noise=1.0)
    settings = {"batch_size": 4, "seed": 3}
    return [
        TransitionSampler(labels, objective, positions=2, **settings),
        TransitionSampler(labels, objective, positions=9, **settings),
        RolloutSampler(labels, objective, rollout=RolloutConfig(depth=3), **settings),
    ]


def _content(batch: object) -> dict[str, torch.Tensor]:
    """A copy of everything that a method can ask a batch for."""
    return {name: getattr(batch, name).clone() for name in tensor_fields(batch)}


def _assert_equal(found: object, expected: dict[str, torch.Tensor]) -> None:
    for name, value in _content(found).items():
        assert torch.equal(value, expected[name]), name


def _no_threads() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


# The same batches, whoever reads them.


@pytest.mark.parametrize("readers", READERS)
@pytest.mark.parametrize("kind", [0, 1, 2], ids=["pairs", "whole windows", "rollout"])
def test_batches_are_the_same_for_any_number_of_readers(tmp_path, kind, readers):
    labels = numbered_labels(tmp_path / "train-00000.arrow", LENGTHS)
    alone = _sources(labels)[kind]
    with Prefetch(_sources(labels)[kind], readers) as source:
        for step in range(40):
            # So a buffer that is written too early would show.
            _assert_equal(source.batch(step), _content(alone.batch(step)))


@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_parts_of_any_number_make_the_same_batches(tmp_path, parts, readers):
    labels = numbered_labels(tmp_path / "train-00000.arrow", [6] * 11)
    for kind in range(3):
        alone = _sources(labels)[kind]
        with Prefetch(_sources(labels)[kind], readers) as source:
            for step in range(10):
                slices = [source.batch(step, part, parts) for part in range(parts)]
                for name in ("before", "start", "after", "target", "initial_target"):
                    whole = getattr(alone.batch(step), name, None)
                    if whole is not None:
                        assert torch.equal(torch.cat([getattr(s, name) for s in slices]), whole)


def test_steps_may_be_asked_for_in_any_order(tmp_path):
    labels = numbered_labels(tmp_path / "train-00000.arrow", LENGTHS)
    (alone, *_), (read_ahead, *_) = _sources(labels), _sources(labels)
    with Prefetch(read_ahead, 2) as source:
        for step in (7, 8, 3, 3, 9, 10, 100, 0, 2):
            _assert_equal(source.batch(step), _content(alone.batch(step)))


@pytest.mark.parametrize("readers", [0, 1, 2, 3, 8])
def test_an_rnn_is_the_same_for_any_number_of_readers(pipeline, tmp_path, readers):
    config = rnn_config(data={"positions": 8, "readers": readers})
    train_rnn.run(config, pipeline.labels, tmp_path / "rnn")

    assert model_bytes(tmp_path / "rnn") == model_bytes(pipeline.rnn)
    # And a finished run is the same run.
    again = rnn_config(data={"positions": 8, "readers": readers + 1})
    assert train_rnn.run(again, pipeline.labels, tmp_path / "rnn", resume=True)


class _Slow:
    """A source that notes what is asked of it, and fails at a step."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.asked: list[int] = []
        self._fails_at = fails_at

    def batch(self, step: int, part: int = 0, parts: int = 1) -> int:
        self.asked.append(step)
        if step == self._fails_at:
            raise ArtifactError(f"step {step} is damaged")
        return step


@pytest.mark.parametrize("readers", [1, 2, 3])
def test_no_more_steps_are_read_ahead_than_there_are_readers(readers):
    slow = _Slow()
    with Prefetch(slow, readers) as source:
        for step in range(6):
            assert source.batch(step) == step
            time.sleep(0.02)
            assert max(slow.asked) <= step + readers
    assert sorted(slow.asked) == list(range(6 + readers))
    assert _no_threads()


def test_what_a_reader_raises_is_raised_at_its_step():
    with Prefetch(_Slow(fails_at=4), 3) as source:
        for step in range(4):
            assert source.batch(step) == step
        with pytest.raises(ArtifactError, match="step 4 is damaged"):
            source.batch(4)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_readers_end_with_whatever_ends_the_training(error):
    def interrupted() -> None:
        with Prefetch(_Slow(), 3) as source:
            source.batch(0)
            raise error

    with pytest.raises(error):
        interrupted()
    assert _no_threads()


# Buffers.


def test_a_buffer_is_lent_again_only_when_nothing_refers_to_it():
    buffers = Buffers()
    first = buffers.take(64)
    second = buffers.take(64)
    assert first.data_ptr() != second.data_ptr()
    kept, place = first.view(torch.float16)[3:5].reshape(2, 1), first.data_ptr()
    del first
    gc.collect()
    assert buffers.take(64).data_ptr() != place
    del kept
    gc.collect()
    lent = [buffers.take(60).data_ptr() for _ in range(3)]
    assert place in lent


def test_a_buffer_that_is_too_small_is_not_lent():
    buffers = Buffers()
    del (small := [buffers.take(10)])[0]
    assert len(buffers.take(1000)) == 1000
    assert small == []


# What is read is checked.


def _several_parts(path: Path) -> LabelShards:
    """Three rows of seven positions; three share a checksum."""
    labels = _made(path, _normal(3, 7, 2, 14000), "float16")
    assert labels.shape.part_length == 3
    return labels


def _flip(path: Path, content: bytes) -> None:
    """A bit of the first of these bytes in a file."""
    everything = bytearray(path.read_bytes())
    everything[everything.index(content)] ^= 1
    path.write_bytes(everything)


def test_of_a_row_only_what_is_read_is_checked(tmp_path):
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
    labels = _made(path, _normal(2, 7, 2, 2**14), dtype)
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
    _made(path, _normal(3, 7, 2, 8), "int8")
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


def test_no_flipped_bit_is_more_than_an_error_or_a_right_row(tmp_path):
    path = tmp_path / "train-00000.arrow"
    _made(path, _normal(2, 4, 1, 2), "int8")
    sound = path.read_bytes()
    rows = np.arange(2)
    expected = _stored(LabelShards([path]).memories(rows, range(4)))
    for place in range(0, len(sound), 3):
        content = bytearray(sound)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        try:
            labels = LabelShards([path])
            labels.read(rows)
            assert torch.equal(_stored(labels.memories(rows, range(4))), expected)
        except ArtifactError:
            pass


@pytest.mark.parametrize("window", [-1, 10**10, 1.5])
def test_a_shape_that_cannot_be_is_refused(tmp_path, window):
    path = tmp_path / "train-00000.arrow"
    _made(path, _normal(2, 4, 1, 2), "float16")
    table = pa.ipc.open_file(path).read_all()
    told = {**json.loads(table.schema.metadata[b"smtkit"]), "window": window}
    with pa.ipc.new_file(path, table.schema.with_metadata({"smtkit": json.dumps(told)})) as file:
        file.write_table(table.replace_schema_metadata({"smtkit": json.dumps(told)}))
    with pytest.raises(ArtifactError, match=str(path)):
        LabelShards([path])


def test_what_comes_in_pieces_is_put_together(tmp_path, monkeypatch):
    path = tmp_path / "train-00000.arrow"
    labels, rows = _several_parts(path), np.arange(3)
    expected = _stored(labels.memories(rows, range(7))).clone()
    read = os.preadv

    def some(file: int, buffers: tuple[memoryview], offset: int) -> int:
        return read(file, [buffers[0][:10_001]], offset)

    monkeypatch.setattr(os, "preadv", some)
    assert torch.equal(_stored(labels.memories(rows, range(7))), expected)


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


def test_too_many_open_files_are_one_line_that_says_what_to_do(tmp_path):
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


# Types.

finite = st.floats(-(2.0**15), 2.0**15, width=32).filter(lambda x: x == 0 or abs(x) > 1e-30)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@given(memory=arrays(np.float32, array_shapes(min_dims=3, max_dims=3), elements=finite))
def test_floats_come_back_to_half_of_their_last_bit(dtype, memory):
    columns = CODECS[dtype].encode(torch.from_numpy(memory))
    back = CODECS[dtype].decode(columns).numpy()

    assert columns.keys() == {"memory"}
    smallest = 2.0**-25 if dtype == "float16" else 0.0  # half of a subnormal's last bit
    assert (
        np.abs(back.astype(np.float64) - memory) <= SHARE[dtype] * np.abs(memory) + smallest
    ).all()


@given(memory=arrays(np.float32, array_shapes(min_dims=3, max_dims=3), elements=finite))
def test_int8_is_off_by_no_more_than_half_a_step_of_its_slot(memory):
    columns = CODECS["int8"].encode(torch.from_numpy(memory))
    back = CODECS["int8"].decode(columns).numpy()
    step = columns["scale"].numpy().astype(np.float64)[..., None]

    largest = np.abs(memory).max(-1, keepdims=True).astype(np.float64)
    np.testing.assert_allclose(step, largest / 127, rtol=1e-6)
    assert (np.abs(back.astype(np.float64) - memory) <= step / 2 * (1 + 1e-4)).all()


@given(
    steps=arrays(np.int8, (3, 2, 5), elements=st.integers(-127, 127)),
    exponent=st.integers(-60, 60),
    factor=st.integers(1, 2**15),
)
def test_int8_is_exact_on_its_grid(steps, exponent, factor):
    steps[..., 0] = 127
    memory = (steps * (factor * 2.0**exponent)).astype(np.float32)
    columns = CODECS["int8"].encode(torch.from_numpy(memory))

    assert (columns["memory"].numpy() == steps).all()
    assert (CODECS["int8"].decode(columns).numpy() == memory).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("positions", [range(7), range(2, 5), np.array([[0, 1, 5], [2, 3, 6]])])
def test_what_is_read_is_what_lies_there(tmp_path, dtype, positions):
    memory = _normal(4, 7, 2, 3)
    path = tmp_path / "train-00000.arrow"
    labels = _made(path, memory, dtype)
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


@pytest.mark.parametrize("dtype", DTYPES)
def test_batches_carry_the_numbers_as_they_are_stored(tmp_path, dtype):
    labels = _made(tmp_path / "train-00000.arrow", _normal(8, 7, 2, 3), dtype)
    for source in _sources(labels):
        batch = source.batch(0)
        columns = batch.memory.columns
        assert columns["memory"].dtype == getattr(torch, dtype)
        assert batch.after.dtype == torch.float32
        if dtype == "int8":
            assert columns["scale"].shape == columns["memory"].shape[:2]
        else:
            assert columns.keys() == {"memory"}


@pytest.fixture(scope="module", params=DTYPES)
def extracted(request, pipeline, tmp_path_factory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("labels") / request.param
    extract_labels.run(
        ExtractLabelsConfig(dtype=request.param), pipeline.encoder, pipeline.tokens, out
    )
    return request.param, out


@pytest.mark.parametrize("method", ["smt", "dmt"])
def test_an_rnn_is_trained_from_labels_of_each_type(pipeline, extracted, tmp_path, method):
    dtype, labels = extracted
    settings = rnn_config().model_dump(exclude_unset=True)
    settings = {**settings, "method": method, "data": {}}
    found, expected = (
        train_rnn.run(TrainRnnConfig(**settings), source, tmp_path / name).statistics["validation"]
        for name, source in (("found", labels), ("float16", pipeline.labels))
    )

    for name in ("dynamics", "readout"):
        assert found[name] == pytest.approx(expected[name], rel=0.02), dtype


# What cannot be stored is not.


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        ("float16", 70_000.0, "holds 70000.0, which float16 cannot represent"),
        ("float16", float("nan"), "not finite"),
        ("bfloat16", float("inf"), "not finite"),
        ("bfloat16", 3.4e38, "which bfloat16 cannot represent"),
        ("float32", float("nan"), "not finite"),
        ("int8", float("-inf"), "not finite"),
        ("int8", float("nan"), "not finite"),
    ],
)
def test_a_memory_that_does_not_fit_is_refused_and_named(tmp_path, dtype, value, message):
    memory = _normal(4, 7, 2, 3)
    memory[2, 5, 1, 0] = value
    with pytest.raises(
        ArtifactError, match=f"train-00000.arrow: row 2: the window at token 2 .*{message}"
    ):
        _made(tmp_path / "train-00000.arrow", memory, dtype)
    assert list(tmp_path.iterdir()) == []


def test_extraction_leaves_nothing_half_written_of_an_encoder_that_overflows(
    pipeline, tmp_path, monkeypatch
):
    of_encoder = extract_labels._Extraction._memories
    monkeypatch.setattr(
        extract_labels._Extraction, "_memories", lambda *given: 1e5 * of_encoder(*given)
    )
    with pytest.raises(ArtifactError, match="row 0: the window at token 0") as e:
        extract_labels.run(
            ExtractLabelsConfig(), pipeline.encoder, pipeline.tokens, tmp_path / "out"
        )
    assert "`dtype`" in str(e.value.hint)
    assert not (tmp_path / "out").exists()
