"""Labels that extraction writes: what the encoder computes, with the tokens of the corpus."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from conftest import (
    WINDOW,
    Pipeline,
    arrow_columns,
    encoder_config,
    label_rows,
    model_bytes,
    rnn_config,
    shards,
    split_tokens,
)
from smtkit import IGNORE
from smtkit.config import ExtractLabelsConfig
from smtkit.errors import ArtifactError
from smtkit.labels.format import LabelShape
from smtkit.labels.reader import LabelShards
from smtkit.networks.loading import load_teacher
from smtkit.stages import extract_labels, train_encoder, train_rnn
from smtkit.storage.artifact import Artifact

SLOTS, SLOT_WIDTH = 2, 8


@pytest.fixture(scope="module")
def full_precision(pipeline, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("labels") / "float32"
    config = ExtractLabelsConfig(dtype="float32", shard_bytes=30_000)
    extract_labels.run(config, pipeline.encoder, pipeline.tokens, out)
    return out


def _open(labels: Path, split: str) -> list[dict[str, Any]]:
    return label_rows(Artifact.open(labels, "labels").files(f"{split}-"))


def _encoded(pipeline: Pipeline, tokens: list[int]) -> np.ndarray:
    """Memories of one window, encoded alone."""
    teacher = load_teacher(Artifact.open(pipeline.encoder))
    with torch.no_grad():
        return teacher.encoder(torch.tensor([tokens], dtype=torch.int64))[0].numpy()


def _some_rows(labels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [labels[number] for number in (0, 1, len(labels) // 2, -1)]


def test_float32_labels_are_what_the_encoder_computes(pipeline, full_precision):
    labels = _open(full_precision, "train")
    for row in _some_rows(labels):
        expected = _encoded(pipeline, row["tokens"].tolist())
        # Another batch size may add in another order.
        np.testing.assert_allclose(row["memory"], expected, atol=1e-5)


def test_float16_labels_are_the_float32_labels_rounded(pipeline, full_precision):
    rounded, exact = _open(pipeline.labels, "train"), _open(full_precision, "train")
    assert len(rounded) == len(exact)
    for half, full in zip(rounded, exact, strict=True):
        assert half["memory"].dtype == np.float16
        assert (half["memory"] == full["memory"].astype(np.float16)).all()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_stored_tokens_and_targets_are_those_of_the_source(pipeline, split):
    source = split_tokens(pipeline.tokens, split)
    columns = arrow_columns(shards(pipeline.labels, split))
    for number, start in enumerate(columns["origin"]):
        ahead = source[start : start + WINDOW + 1]
        length = min(WINDOW, len(ahead))
        assert columns["length"][number] == length
        assert columns["tokens"][number] == ahead[:WINDOW] + [0] * (WINDOW - length)
        assert columns["targets"][number] == ahead + [IGNORE] * (WINDOW + 1 - len(ahead))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_windows_tile_the_source(pipeline, split):
    source = split_tokens(pipeline.tokens, split)
    columns = arrow_columns(shards(pipeline.labels, split))

    assert columns["origin"] == list(range(0, len(source), WINDOW))
    assert sum(columns["length"]) == len(source)


def test_a_short_last_window_is_padded(pipeline):
    (short,) = [
        row
        for split in ("train", "validation")
        for row in _open(pipeline.labels, split)[-1:]
        if row["length"] < WINDOW
    ][:1]
    length = int(short["length"])

    assert (short["tokens"][length:] == 0).all()
    assert (short["targets"][length:] == IGNORE).all()
    assert (short["targets"][:length] == short["tokens"][:length]).all()


def test_all_rows_start_from_the_same_empty_memory(pipeline, full_precision):
    labels = _open(full_precision, "train")
    stored = load(model_bytes(full_precision))["empty_memory"].numpy()

    np.testing.assert_allclose(stored, _encoded(pipeline, [])[0], atol=1e-6)
    for row in labels:
        np.testing.assert_allclose(row["memory"][0], stored, atol=1e-5)


def test_the_shape_is_in_the_metadata_of_every_shard(pipeline, full_precision):
    expected = LabelShape(WINDOW, SLOTS, SLOT_WIDTH, 257, "float32")
    statistics = Artifact.open(full_precision).manifest.statistics

    assert len(shards(full_precision, "train")) > 3
    for path in shards(full_precision, "train") + shards(full_precision, "validation"):
        assert LabelShards([path]).shape == expected
    assert statistics["window"] == WINDOW
    assert statistics["dtype"] == "float32"


def test_rows_of_many_shards_are_numbered_through(full_precision):
    labels = LabelShards(shards(full_precision, "train"))
    columns = arrow_columns(shards(full_precision, "train"))

    assert len(labels) == len(columns["origin"])
    assert labels.read(np.arange(len(labels))).tokens.tolist() == columns["tokens"]


def test_a_sample_of_windows_is_drawn_by_the_seed(pipeline, tmp_path):
    def origins(name: str, seed: int) -> list[int]:
        config = ExtractLabelsConfig(max_windows=40, max_validation_windows=5, seed=seed)
        extract_labels.run(config, pipeline.encoder, pipeline.tokens, tmp_path / name)
        assert len(_open(tmp_path / name, "validation")) == 5
        return arrow_columns(shards(tmp_path / name, "train"))["origin"]

    first, again, other = origins("first", 0), origins("again", 0), origins("other", 1)

    assert len(set(first)) == 40
    assert all(start % WINDOW == 0 for start in first)
    assert first == again == sorted(first)
    assert first != other


def test_the_batch_size_changes_no_label_beyond_rounding(pipeline, full_precision, tmp_path):
    config = ExtractLabelsConfig(dtype="float32", batch_size=7, max_windows=20)
    extract_labels.run(config, pipeline.encoder, pipeline.tokens, tmp_path)
    some, every = _open(tmp_path, "train"), _open(full_precision, "train")
    for row in some[:20]:
        other = every[int(row["origin"]) // WINDOW]
        np.testing.assert_allclose(row["memory"], other["memory"], atol=1e-5)


@pytest.fixture
def copied(pipeline, tmp_path) -> Path:
    return shutil.copytree(pipeline.labels, tmp_path / "copied")


def test_shards_of_different_shapes_are_refused(pipeline, full_precision):
    paths = [shards(pipeline.labels, "train")[0], shards(full_precision, "train")[0]]

    with pytest.raises(ArtifactError, match="shape is"):
        LabelShards(paths)


def test_tokens_of_another_tokenizer_are_refused(pipeline, character_pipeline, tmp_path):
    with pytest.raises(ArtifactError, match="tokenizer"):
        extract_labels.run(
            ExtractLabelsConfig(), pipeline.encoder, character_pipeline.tokens, tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def test_an_rnn_is_trained_from_the_labels_alone(pipeline, copied, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(pipeline.tokens, moved / "tokens")
    train_encoder.run(encoder_config(), moved / "tokens", moved / "encoder")
    extract_labels.run(ExtractLabelsConfig(), moved / "encoder", moved / "tokens", moved / "labels")
    shutil.rmtree(moved / "tokens")
    shutil.rmtree(moved / "encoder")
    train_rnn.run(rnn_config(), moved / "labels", moved / "rnn")

    assert model_bytes(moved / "rnn") == model_bytes(pipeline.rnn)


def test_labels_hold_no_weights_of_the_encoder(pipeline):
    names = load(model_bytes(pipeline.labels)).keys()

    assert {name.partition(".")[0] for name in names} == {
        "decoder",
        "transition",
        "readout",
        "empty_memory",
    }


@pytest.mark.parametrize("readout", ["mlp", "decoder"])
def test_an_rnn_can_start_from_the_co_trained_cell(pipeline, tmp_path, readout):
    encoder, labels, rnn = (tmp_path / name for name in ("encoder", "labels", "rnn"))
    train_encoder.run(
        encoder_config(readout={"kind": readout}, training={"max_steps": 3}),
        pipeline.tokens,
        encoder,
    )
    extract_labels.run(ExtractLabelsConfig(), encoder, pipeline.tokens, labels)
    # One step, too small to be seen in float32.
    train_rnn.run(
        rnn_config(
            init_from_labels=True,
            training={"max_steps": 1, "learning_rate": 1e-30, "weight_decay": 0.0},
        ),
        labels,
        rnn,
    )
    learned, started = load(model_bytes(encoder)), load(model_bytes(rnn))
    prefix = {"mlp": "readout.", "decoder": "decoder."}[readout]
    expected = {
        name: values for name, values in learned.items() if name.startswith(("transition.", prefix))
    }
    found = {
        name.replace("readout.decoder.", "decoder."): values
        for name, values in started.items()
        if name != "empty_memory"
    }

    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(found[name], values), name


def test_an_rnn_that_reads_with_the_decoder_starts_from_the_teachers(pipeline, tmp_path):
    config = rnn_config(
        readout={"kind": "decoder"},
        training={"max_steps": 1, "learning_rate": 1e-30, "weight_decay": 0.0},
    )
    train_rnn.run(config, pipeline.labels, tmp_path)
    started, learned = load(model_bytes(tmp_path)), load(model_bytes(pipeline.encoder))

    for name, values in learned.items():
        if name.startswith("decoder."):
            assert torch.equal(started[f"readout.{name}"], values), name


def test_an_rnn_keeps_the_empty_memory_of_its_labels(pipeline):
    rnn, labels = load(model_bytes(pipeline.rnn)), load(model_bytes(pipeline.labels))

    assert torch.equal(rnn["empty_memory"], labels["empty_memory"])
