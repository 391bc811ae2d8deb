"""`training.sample_every`, in the stages that train."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Pipeline, Recorder, encoder_config, model_bytes, rnn_config
from image_files import write_npy
from smtkit.config import TokenizeConfig, TrainRnnConfig
from smtkit.corpus.pictures import shades
from smtkit.errors import UsageError
from smtkit.inference.trained import load_rnn
from smtkit.stages import tokenize, train_encoder, train_rnn


def test_the_last_sample_is_what_the_rnn_then_writes(pipeline: Pipeline, tmp_path: Path) -> None:
    recorder = Recorder()
    config = rnn_config(training={"sample_every": 5})
    train_rnn.run(config, pipeline.labels, tmp_path, progress=recorder)
    assert [title for title, _ in recorder.shown] == [
        f"sample at step {step}" for step in (5, 10, 12)
    ]
    rnn = load_rnn(tmp_path, device="cpu")
    written = rnn.generate(max_tokens=150, temperature=0.8, seed=0)
    assert recorder.shown[-1][1] == written
    # Sampling changes nothing else.
    assert model_bytes(tmp_path) == model_bytes(pipeline.rnn)


def test_a_teacher_samples_from_its_cell(pipeline: Pipeline, tmp_path: Path) -> None:
    recorder = Recorder()
    config = encoder_config(training={"sample_every": 12})
    train_encoder.run(config, pipeline.tokens, tmp_path, progress=recorder)
    ((title, text),) = recorder.shown
    assert title == "sample at step 12"
    assert text
    assert model_bytes(tmp_path) == model_bytes(pipeline.encoder)


def bptt(**training: Any) -> TrainRnnConfig:
    training = {"batch_size": 4, "max_steps": 2, "sample_every": 2, **training}
    return TrainRnnConfig(method="bptt", cell={"width": 8}, training=training)


def test_a_task_has_no_samples(parity: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"`training.sample_every`: a task has nothing to sample"):
        train_rnn.run(bptt(), parity, tmp_path)


def test_images_are_drawn_in_shades(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 3, 4), dtype=np.uint8)
    settings = {"validation_fraction": 0.2, "test_fraction": 0.2, "pixel": {"levels": 5}}
    images = write_npy(tmp_path / "images.npy", pixels)
    config = TokenizeConfig(inputs=[str(images)], tokenizer="pixel", **settings)
    tokenize.run(config, tmp_path / "tokens")
    recorder = Recorder()
    train_rnn.run(bptt(), tmp_path / "tokens", tmp_path / "rnn", progress=recorder)
    drawn = load_rnn(tmp_path / "rnn", device="cpu").complete(
        np.empty((1, 0), dtype=np.int64), 12, temperature=0.8, seed=0
    )
    assert recorder.shown == [("sample at step 2", shades(drawn.numpy().reshape(3, 4), 4))]
