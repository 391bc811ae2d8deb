"""Labels that start from the RNN's own memory, against a loop over rows and segments."""

import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artifacts import edit_manifest
from conftest import (
    KilledError,
    Pipeline,
    Recorder,
    build_pipeline,
    encoder_config,
    label_rows,
    on_ranks,
    rnn_config,
    shards,
)
from smtkit.config import ExtractLabelsConfig, TrainEncoderConfig, TrainRnnConfig
from smtkit.errors import ArtifactError, InterruptedRunError, UsageError
from smtkit.labels.reader import LabelShards
from smtkit.networks.loading import load_rnn, load_teacher
from smtkit.stages import extract_labels, train_encoder, train_rnn
from smtkit.storage.artifact import Artifact

CELL = {"normalize": "none"}


def _encoder_config(**changes: Any) -> TrainEncoderConfig:
    settings = {"encoder": {"memory": "gated"}, "cell": CELL, "training": {"max_steps": 4}}
    return encoder_config(**settings, **changes)


def _rnn_config(**changes: Any) -> TrainRnnConfig:
    return rnn_config(
        **{"cell": CELL, "training": {"max_steps": 6, "validate_every": 6}, **changes}
    )


def _of_method(method: str, **changes: Any) -> TrainRnnConfig:
    settings = _rnn_config(**changes).model_dump(exclude_unset=True)
    if method != "smt":
        del settings["data"]
    return TrainRnnConfig(**{**settings, "method": method})


def _config(context: int | None, **changes: Any) -> ExtractLabelsConfig:
    return ExtractLabelsConfig(**{"context": context, "dtype": "float32", **changes})


@pytest.fixture(scope="module")
def rows(tmp_path_factory, parity) -> Pipeline:
    """Rows of 4 and 9 tokens."""
    directory = tmp_path_factory.mktemp("rows")
    encoder = _encoder_config(data={"window": None})
    return build_pipeline(directory, parity, encoder, ExtractLabelsConfig(), _rnn_config())


@pytest.fixture(scope="module")
def text(tmp_path_factory, pipeline) -> Pipeline:
    """Windows of 16 tokens, of which the last ones are shorter."""
    directory = tmp_path_factory.mktemp("text")
    labels = ExtractLabelsConfig(max_windows=40)
    return build_pipeline(directory, pipeline.tokens, _encoder_config(), labels, _rnn_config())


def _extract(built: Pipeline, out: Path, config: ExtractLabelsConfig, **options: Any) -> Any:
    return extract_labels.run(config, built.encoder, built.tokens, out, rnn=built.rnn, **options)


@torch.no_grad()
def _by_loop(built: Pipeline, tokens: list[int], context: int) -> np.ndarray:
    """Memories of one row: segment by segment, the RNN's memory before it and the encoder's after
    each of its tokens."""
    encoder = load_teacher(Artifact.open(built.encoder)).encoder
    network = load_rnn(Artifact.open(built.rnn))
    own, stored = encoder.empty_memory()[None], []
    for first in range(0, len(tokens), context):
        segment = tokens[first : first + context]
        stored += encoder.encode(torch.tensor([segment]), own)[0].unbind()
        for token in segment:
            own = network.step(own, torch.tensor([token]))
    return torch.stack(stored).numpy()


def _equal_the_loop(built: Pipeline, labels: Path, split: str, context: int) -> set[int]:
    """Checks some rows; returns their lengths."""
    found = label_rows(shards(labels, split))
    lengths = set()
    for row in [*found[:3], *found[-3:]]:
        length = int(row["length"])
        expected = _by_loop(built, row["tokens"][:length].tolist(), context)
        np.testing.assert_allclose(row["memory"][: len(expected)], expected, atol=1e-5)
        lengths.add(length)
    return lengths


@pytest.mark.parametrize("context", [1, 3, 4, 8, 9])
def test_memories_of_rows_are_those_of_the_loop(rows, tmp_path, context):
    """Rows shorter than a segment, and last segments that are shorter."""
    _extract(rows, tmp_path / "labels", _config(context, batch_size=5))
    lengths = _equal_the_loop(rows, tmp_path / "labels", "train", context)
    lengths |= _equal_the_loop(rows, tmp_path / "labels", "validation", context)
    assert lengths == {4, 9}


@pytest.mark.parametrize("context", [5, 16])
def test_memories_of_text_are_those_of_the_loop(text, tmp_path, context):
    _extract(text, tmp_path / "labels", _config(context))
    lengths = _equal_the_loop(text, tmp_path / "labels", "train", context)
    assert len(lengths) > 1


def test_a_context_that_is_no_shorter_than_the_rows_changes_nothing(rows, tmp_path):
    _extract(rows, tmp_path / "far", _config(100))
    extract_labels.run(_config(None), rows.encoder, rows.tokens, tmp_path / "plain")
    far, plain = (label_rows(shards(tmp_path / name, "train")) for name in ("far", "plain"))
    for one, other in zip(far, plain, strict=True):
        np.testing.assert_allclose(one["memory"], other["memory"], atol=1e-5)


def test_int8_stores_the_memories_rounded(rows, tmp_path):
    for dtype in ("float32", "int8"):
        _extract(rows, tmp_path / dtype, _config(3, dtype=dtype))
    exact, rounded = (LabelShards(shards(tmp_path / name, "train")) for name in ("float32", "int8"))
    index, count = np.arange(len(exact)), exact.shape.memories
    assert count == 9 + 3
    every = torch.arange(len(exact) * count)
    memory, other = (
        labels.memories(index, range(count)).decode(every) for labels in (exact, rounded)
    )
    step = memory.abs().amax(-1, keepdim=True) / 127
    assert ((memory - other).abs() <= 0.51 * step).all()


def test_the_artifact_records_the_rnn_and_the_context(rows, tmp_path):
    manifest = _extract(rows, tmp_path / "labels", _config(3))
    digests = {parent.kind: parent.digest for parent in manifest.parents}
    assert digests["rnn"] == Artifact.open(rows.rnn).manifest.digest
    assert manifest.ancestor("encoder").digest == Artifact.open(rows.encoder).manifest.digest
    assert manifest.statistics["context"] == 3


@pytest.mark.parametrize("method", ["smt", "dmt"])
def test_training_goes_in_rounds(rows, tmp_path, method):
    config = _of_method(method)
    first, second = tmp_path / "first", tmp_path / "second"
    _extract(rows, first, _config(3))
    train_rnn.run(config, first, tmp_path / "tuned", init=rows.rnn)
    tuned = Pipeline(rows.tokens, rows.encoder, first, tmp_path / "tuned")
    _extract(tuned, second, _config(3))
    assert Artifact.open(first).manifest.digest != Artifact.open(second).manifest.digest
    _equal_the_loop(tuned, second, "train", 3)
    train_rnn.run(config, second, tmp_path / "again", init=tmp_path / "tuned")


# Inputs that do not fit.


def _refused(error: type[Exception], config: ExtractLabelsConfig, *paths: Path, rnn: Any) -> str:
    *inputs, out = paths
    for attempt in (extract_labels.run, extract_labels.run_part):
        part = (1, 1) if attempt is extract_labels.run_part else ()
        with pytest.raises(error) as caught:
            attempt(config, *inputs, out, *part, rnn=rnn)
        assert not out.exists()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_rnn_and_context_are_given_together(rows, tmp_path, command):
    paths = (rows.encoder, rows.tokens, tmp_path / "out")
    assert "found `context` alone" in _refused(UsageError, _config(3), *paths, rnn=None)
    assert "found `rnn` alone" in _refused(UsageError, _config(None), *paths, rnn=rows.rnn)
    arguments = ("extract-labels", rows.encoder, "--tokens", rows.tokens, "--out", paths[-1])
    result = command(*arguments, "--context", 3)
    assert result.code == 2
    assert result.line() == "--rnn and --context: found --context alone, allowed: both or neither"


def test_an_encoder_that_cannot_start_from_a_memory_is_refused(pipeline, tmp_path):
    message = _refused(
        UsageError,
        _config(3),
        pipeline.encoder,
        pipeline.tokens,
        tmp_path / "out",
        rnn=pipeline.rnn,
    )
    assert f"`context`: {pipeline.encoder} cannot start from a memory" in message
    assert message.endswith("encoder.memory is projection, allowed: gated")


def test_an_rnn_of_another_encoder_is_refused(rows, tmp_path):
    other = tmp_path / "other"
    train_encoder.run(_encoder_config(data={"window": None}, seed=1), rows.tokens, other)
    message = _refused(
        ArtifactError, _config(3), other, rows.tokens, tmp_path / "out", rnn=rows.rnn
    )
    assert message.startswith(f"{other} (")
    assert f"not the encoder that {rows.rnn} learned from: {rows.encoder}" in message


def test_an_rnn_that_learned_from_no_encoder_is_refused(rows, tmp_path):
    config = _of_method("bptt", memory={"slots": 2, "slot_width": 8})
    train_rnn.run(config, rows.tokens, tmp_path / "bptt")
    message = _refused(
        ArtifactError,
        _config(3),
        rows.encoder,
        rows.tokens,
        tmp_path / "out",
        rnn=tmp_path / "bptt",
    )
    assert message.endswith("learned from: none")


def test_an_rnn_of_another_tokenizer_is_refused(rows, pipeline, tmp_path):
    message = _refused(
        ArtifactError,
        _config(3),
        rows.encoder,
        rows.tokens,
        tmp_path / "out",
        rnn=pipeline.rnn,
    )
    assert "tokenizer" in message


def test_an_rnn_with_another_memory_is_refused(rows, tmp_path):
    """Which no lineage allows, unless the manifest was edited."""
    config = _of_method("bptt", memory={"slots": 4, "slot_width": 8})
    train_rnn.run(config, rows.tokens, tmp_path / "bptt")
    parents = [Artifact.open(rows.encoder).as_parent().model_dump()]
    edit_manifest(tmp_path / "bptt", parents=parents)
    message = _refused(
        ArtifactError,
        _config(3),
        rows.encoder,
        rows.tokens,
        tmp_path / "out",
        rnn=tmp_path / "bptt",
    )
    assert message.endswith("its memory is 4 x 8, allowed: 2 x 8, that of the encoder")


# Interrupted and divided runs.

SMALL_SHARDS = _config(3, shard_bytes=2_000)


@pytest.fixture(scope="module")
def whole(rows, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "labels"
    _extract(rows, out, SMALL_SHARDS)
    assert len(shards(out, "train")) > 3
    return out


class Stop(Recorder):
    """Kills or interrupts the run after its second shard."""

    def __init__(self, *, kill: bool) -> None:
        super().__init__()
        self._kill, self._updates = kill, 0

    def update(self, *_: Any, **__: Any) -> None:
        self._updates += 1
        if self._updates == 2:
            if self._kill:
                raise KilledError
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("kill", [True, False])
def test_an_interrupted_extraction_resumes_bit_equal(rows, whole, tmp_path, kill):
    with pytest.raises((KilledError, InterruptedRunError)):
        _extract(rows, tmp_path, SMALL_SHARDS, progress=Stop(kill=kill))
    assert len(shards(tmp_path, "train")) == 2
    manifest = _extract(rows, tmp_path, SMALL_SHARDS, resume=True)
    assert manifest.digest == Artifact.open(whole).manifest.digest


def test_another_rnn_or_context_is_another_run(rows, whole, tmp_path):
    labels = shutil.copytree(whole, tmp_path / "labels")
    train_rnn.run(_rnn_config(seed=1), rows.labels, tmp_path / "other")
    other = Pipeline(rows.tokens, rows.encoder, rows.labels, tmp_path / "other")
    with pytest.raises(UsageError, match="cannot resume: input rnn was"):
        _extract(other, labels, SMALL_SHARDS, resume=True)
    with pytest.raises(UsageError, match="cannot resume: context was 3, is 4"):
        _extract(rows, labels, SMALL_SHARDS.model_copy(update={"context": 4}), resume=True)
    with pytest.raises(UsageError, match="cannot resume: "):
        extract_labels.run(
            SMALL_SHARDS.model_copy(update={"context": None}),
            rows.encoder,
            rows.tokens,
            labels,
            resume=True,
        )
    assert _extract(rows, labels, SMALL_SHARDS, resume=True).digest


def test_parts_make_the_artifact_that_one_process_makes(rows, whole, tmp_path, command):
    out = tmp_path / "labels"
    arguments = ["extract-labels", rows.encoder, "--tokens", rows.tokens, "--out", out]
    arguments += ["--rnn", rows.rnn, "--context", 3, "--dtype", "float32", "--quiet"]
    arguments += ["--set", "shard_bytes=2000"]
    for flags in (["--part", "2/2"], ["--part", "1/2"], ["--finalize"]):
        assert command(*arguments, *flags).code == 0
    assert Artifact.open(out).manifest.digest == Artifact.open(whole).manifest.digest


def test_ranks_make_the_artifact_that_one_process_makes(rows, whole, tmp_path):
    out, options = tmp_path / "labels", {"rnn": str(rows.rnn)}
    on_ranks(2, ("extract_labels", SMALL_SHARDS, rows.encoder, rows.tokens, out, options))
    assert Artifact.open(out).manifest.digest == Artifact.open(whole).manifest.digest
