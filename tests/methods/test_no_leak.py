"""On uniform random bytes nothing can be predicted: a model that does has seen the answer.

Tests of causality do not find targets that are off by one; these do.
"""

import dataclasses
import json
import math
import random
from pathlib import Path

import pytest
import torch

from conftest import (
    WINDOW,
    Pipeline,
    arrow_columns,
    build_pipeline,
    encoder_config,
    evaluate_config,
    rnn_config,
    shards,
    split_tokens,
    tokenized,
)
from smtkit import IGNORE
from smtkit.config import ExtractLabelsConfig, TrainEncoderConfig, TrainRnnConfig
from smtkit.corpus.windows import TextWindows
from smtkit.methods.smt import TransitionSampler
from smtkit.networks.loading import load_teacher
from smtkit.stages import evaluate, train_encoder, train_rnn
from smtkit.storage.artifact import Artifact

ENTROPY = math.log(256)
SIZE = 30_000
END_OF_DOCUMENT = 256

# Enough for a leak to be learned, as the last two tests show.
TRAINING = {
    "batch_size": 16,
    "max_steps": 250,
    "learning_rate": 1e-2,
    "log_every": 50,
    "validate_every": 125,
    "validation_windows": 160,
    "checkpoint_every": 1000,
}


def _encoder_config() -> TrainEncoderConfig:
    return encoder_config(
        encoder={"slots": 2, "slot_width": 16, "width": 32},
        cell={"width": 32},
        objective={"dynamics_start": 50, "dynamics_ramp": 50},
        training=TRAINING,
    )


def _rnn_config() -> TrainRnnConfig:
    return rnn_config(cell={"width": 32}, training=TRAINING)


@pytest.fixture(scope="module")
def noise() -> bytes:
    return random.Random(0).randbytes(SIZE)


@pytest.fixture(scope="module")
def random_pipeline(noise, tmp_path_factory) -> Pipeline:
    directory = tmp_path_factory.mktemp("noise")
    (directory / "noise.bin").write_bytes(noise)
    tokens = tokenized(directory / "noise.bin", directory / "tokens")
    return build_pipeline(
        directory, tokens, _encoder_config(), ExtractLabelsConfig(), _rnn_config()
    )


def test_the_splits_are_the_bytes_of_the_source(random_pipeline, noise):
    pieces = [
        split_tokens(random_pipeline.tokens, split) for split in ("train", "validation", "test")
    ]

    assert [piece.pop() for piece in pieces] == [END_OF_DOCUMENT] * 3
    assert bytes(token for piece in pieces for token in piece) == noise


@pytest.mark.parametrize("split", ["train", "validation"])
def test_labels_hold_the_bytes_of_the_source(random_pipeline, noise, split):
    start = 0 if split == "train" else len(split_tokens(random_pipeline.tokens, "train")) - 1
    size = len(split_tokens(random_pipeline.tokens, split)) - 1
    source = [*noise[start : start + size], END_OF_DOCUMENT]
    rows = arrow_columns(shards(random_pipeline.labels, split))
    for tokens, targets, length, origin in zip(
        rows["tokens"], rows["targets"], rows["length"], rows["origin"], strict=True
    ):
        assert tokens[:length] == source[origin : origin + length]
        present = [target for target in targets if target != IGNORE]
        assert present == source[origin : origin + WINDOW + 1]


def test_no_predictor_beats_chance(random_pipeline, tmp_path):
    evaluate.run(
        evaluate_config(),
        random_pipeline.rnn,
        random_pipeline.tokens,
        tmp_path,
        encoder=random_pipeline.encoder,
    )
    path = Artifact.open(tmp_path).file("evaluation.json")
    results = json.loads(path.read_text(encoding="utf-8"))["results"]

    assert {row["predictor"] for row in results} >= {
        "teacher, decoder",
        "teacher, readout",
        "rnn, one step",
        "rnn, free-running",
    }
    for row in results:
        assert row["nll"] > ENTROPY - 3 * row["nll_standard_error"], row


def _smallest_honest(deviation: float, targets: int) -> float:
    return ENTROPY - 3 * deviation / math.sqrt(targets)


@torch.no_grad()
def _deviation(pipeline: Pipeline) -> float:
    """Of the nll of one target, by the teacher's readout."""
    teacher = load_teacher(Artifact.open(pipeline.encoder))
    tokens = torch.tensor(split_tokens(pipeline.tokens, "validation")[: 100 * WINDOW])
    windows = tokens.view(-1, WINDOW)
    memory = teacher.encoder(windows)[:, :-1]
    logits = teacher.readout(memory.flatten(0, 1))
    return float(
        torch.nn.functional.cross_entropy(logits, windows.flatten(), reduction="none").std()
    )


def _validated(artifact: Path) -> dict[str, float]:
    return Artifact.open(artifact).manifest.statistics["validation"]


def test_the_teachers_validation_does_not_beat_chance(random_pipeline):
    validated = _validated(random_pipeline.encoder)
    deviation, windows = _deviation(random_pipeline), TRAINING["validation_windows"]

    assert validated["dense"] > _smallest_honest(deviation, windows * WINDOW)
    # The futures of two anchors overlap, so that only one of each counts as independent.
    futures = _encoder_config().objective.future_length + 1
    assert validated["decoding"] > _smallest_honest(deviation, windows * futures)


def test_the_rnns_validation_does_not_beat_chance(random_pipeline):
    validated = _validated(random_pipeline.rnn)
    targets = TRAINING["validation_windows"] * _rnn_config().data.positions

    assert validated["readout"] > _smallest_honest(_deviation(random_pipeline), targets)


def test_a_leak_into_the_teacher_would_be_seen(random_pipeline, tmp_path, monkeypatch):
    read = TextWindows.read

    def leaking(self, starts):
        windows = read(self, starts)
        targets = windows.targets.copy()
        targets[:, 1:] = windows.targets[:, :-1]  # the token that was read last
        return dataclasses.replace(windows, targets=targets)

    monkeypatch.setattr(TextWindows, "read", leaking)
    train_encoder.run(_encoder_config(), random_pipeline.tokens, tmp_path)

    assert _validated(tmp_path)["dense"] < ENTROPY - 1


def test_a_leak_into_the_rnn_would_be_seen(random_pipeline, tmp_path, monkeypatch):
    batch = TransitionSampler.batch

    def leaking(self, step, part=0, parts=1):
        transitions = batch(self, step, part, parts)
        return dataclasses.replace(transitions, target=transitions.token)

    monkeypatch.setattr(TransitionSampler, "batch", leaking)
    train_rnn.run(_rnn_config(), random_pipeline.labels, tmp_path)

    assert _validated(tmp_path)["readout"] < ENTROPY - 1
