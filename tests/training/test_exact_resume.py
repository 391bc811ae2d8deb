"""Runs that are killed, interrupted or resumed: the result is bit-equal to an uninterrupted run."""

import os
import signal
from pathlib import Path

import pytest
from regression import (
    KilledError,
    Trap,
    kill,
    records,
    reported,
    send,
)

from conftest import encoder_config, model_bytes, rnn_config
from smtkit.config import ExtractLabelsConfig
from smtkit.errors import ArtifactError, InterruptedRunError, UsageError
from smtkit.stages import extract_labels, train_encoder, train_rnn
from smtkit.storage.artifact import Artifact
from smtkit.training.interrupts import stop_signals
from subprocesses import python


@pytest.mark.parametrize("stopped_at", [2, 4, 10])
def test_a_killed_teacher_resumes_bit_equal(pipeline, tmp_path, stopped_at):
    config = encoder_config()
    with pytest.raises(KilledError):
        train_encoder.run(
            config,
            pipeline.tokens,
            tmp_path,
            progress=Trap("training", stopped_at, kill),
        )
    manifest = train_encoder.run(config, pipeline.tokens, tmp_path, resume=True)

    assert model_bytes(tmp_path) == model_bytes(pipeline.encoder)
    assert manifest.digest == Artifact.open(pipeline.encoder).manifest.digest


@pytest.mark.parametrize("stopped_at", [2, 4, 10])
def test_a_killed_rnn_resumes_bit_equal(pipeline, tmp_path, stopped_at):
    config = rnn_config()
    with pytest.raises(KilledError):
        train_rnn.run(
            config, pipeline.labels, tmp_path, progress=Trap("training", stopped_at, kill)
        )
    manifest = train_rnn.run(config, pipeline.labels, tmp_path, resume=True)

    assert model_bytes(tmp_path) == model_bytes(pipeline.rnn)
    assert manifest.digest == Artifact.open(pipeline.rnn).manifest.digest


SMALL_SHARDS = ExtractLabelsConfig(shard_bytes=20_000, max_windows=200)


@pytest.fixture(scope="module")
def sharded_labels(pipeline, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sharded") / "labels"
    extract_labels.run(SMALL_SHARDS, pipeline.encoder, pipeline.tokens, out)
    assert len(list(out.glob("run-*/train-*.arrow"))) > 3
    return out


@pytest.mark.parametrize("act", [kill, send(signal.SIGTERM)], ids=["killed", "interrupted"])
def test_extraction_resumes_bit_equal(pipeline, sharded_labels, tmp_path, act):
    rows = Artifact.open(sharded_labels).rows("train-")
    trap = Trap("extracting train", rows[0] + rows[1], act)
    with pytest.raises((KilledError, InterruptedRunError)):
        extract_labels.run(SMALL_SHARDS, pipeline.encoder, pipeline.tokens, tmp_path, progress=trap)
    written = sorted(tmp_path.glob("run-*/train-*.arrow"))
    times = [path.stat().st_mtime_ns for path in written]
    manifest = extract_labels.run(
        SMALL_SHARDS, pipeline.encoder, pipeline.tokens, tmp_path, resume=True
    )

    assert len(written) == 2
    assert [path.stat().st_mtime_ns for path in written] == times
    assert manifest.digest == Artifact.open(sharded_labels).manifest.digest


_RUN_AND_KILL = """
import os, signal, sys
import torch
from smtkit.config import TrainEncoderConfig
from smtkit.training.progress import Silent
from smtkit.stages import train_encoder

class Killer(Silent):
    def update(self, task, completed, total, **metrics):
        if completed == 10:
            os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
config = TrainEncoderConfig.model_validate_json(sys.argv[1])
train_encoder.run(config, sys.argv[2], sys.argv[3], progress=Killer())
"""


def test_a_process_ended_by_sigkill_resumes_bit_equal(pipeline, tmp_path):
    config = encoder_config()
    arguments = [config.model_dump_json(), str(pipeline.tokens), str(tmp_path)]
    process = python("-c", _RUN_AND_KILL, *arguments)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "manifest.json").exists()
    train_encoder.run(config, pipeline.tokens, tmp_path, resume=True)

    assert model_bytes(tmp_path) == model_bytes(pipeline.encoder)


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=["int", "term", "hup"],
)
def test_a_signal_saves_the_state_and_stops_the_run(pipeline, tmp_path, number, exit_code):
    config = encoder_config(training={"checkpoint_every": 1000})
    before = signal.getsignal(number)
    with pytest.raises(InterruptedRunError, match="saved at step 6") as caught:
        train_encoder.run(
            config, pipeline.tokens, tmp_path, progress=Trap("training", 6, send(number))
        )
    assert caught.value.exit_code == exit_code
    assert caught.value.hint is not None
    assert "`resume`" in caught.value.hint
    assert signal.getsignal(number) is before
    train_encoder.run(config, pipeline.tokens, tmp_path, resume=True)

    assert model_bytes(tmp_path) == model_bytes(pipeline.encoder)


def test_a_second_signal_has_its_usual_effect():
    def handler(number, frame):
        raise KilledError

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with stop_signals() as received:
            os.kill(os.getpid(), signal.SIGTERM)
            assert received == [signal.SIGTERM]
            with pytest.raises(KilledError):
                os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as received:
            os.kill(os.getpid(), signal.SIGHUP)
            assert received == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_resumed_run_logs_each_step_once(pipeline, tmp_path):
    config = encoder_config(training={"log_every": 1, "validate_every": 2})
    with pytest.raises(KilledError):
        train_encoder.run(config, pipeline.tokens, tmp_path, progress=Trap("training", 11, kill))
    train_encoder.run(config, pipeline.tokens, tmp_path, resume=True)

    assert [record["step"] for record in reported(tmp_path, "train")] == list(range(1, 13))
    validated = [record["step"] for record in reported(tmp_path, "validation")]
    assert validated == [2, 4, 6, 8, 10, 12]


def test_a_signal_in_the_last_step_does_not_stop_the_run(pipeline, tmp_path):
    train_encoder.run(
        encoder_config(),
        pipeline.tokens,
        tmp_path,
        progress=Trap("training", 12, send(signal.SIGTERM)),
    )
    assert model_bytes(tmp_path) == model_bytes(pipeline.encoder)
    assert [record["step"] for record in reported(tmp_path, "validation")] == [6, 12]


@pytest.mark.parametrize(
    ("log_every", "checkpoint_every", "stopped_at"), [(2, 4, 10), (5, 4, 10), (11, 3, 11)]
)
@pytest.mark.parametrize("act", [kill, send(signal.SIGTERM)], ids=["killed", "interrupted"])
def test_a_resumed_run_logs_the_same_as_an_uninterrupted_one(
    pipeline, tmp_path, log_every, checkpoint_every, stopped_at, act
):
    """Each record averages over all updates since the one before, also over those that were made
    before the checkpoint."""
    training = {"log_every": log_every, "checkpoint_every": checkpoint_every}
    config = encoder_config(training=training)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train_encoder.run(config, pipeline.tokens, whole)
    progress = Trap("training", stopped_at, act)
    with pytest.raises((KilledError, InterruptedRunError)):
        train_encoder.run(config, pipeline.tokens, stopped, progress=progress)
    train_encoder.run(config, pipeline.tokens, stopped, resume=True)
    clocks = {"seconds", "tokens_per_second"}
    resumed, uninterrupted = (
        [{key: value for key, value in record.items() if key not in clocks} for record in lines]
        for lines in (records(stopped), records(whole))
    )

    assert resumed == uninterrupted


def test_a_complete_run_is_not_trained_again(pipeline, tmp_path):
    config = rnn_config(training={"max_steps": 2})
    first = train_rnn.run(config, pipeline.labels, tmp_path)
    again = train_rnn.run(
        config, pipeline.labels, tmp_path, resume=True, progress=Trap("training", 2, kill)
    )

    assert again == first


def test_a_run_is_not_resumed_with_another_config(pipeline, tmp_path):
    with pytest.raises(KilledError):
        train_rnn.run(rnn_config(), pipeline.labels, tmp_path, progress=Trap("training", 6, kill))
    other = rnn_config(training={"learning_rate": 0.5})

    with pytest.raises(UsageError, match=r"training\.learning_rate was 0\.003, is 0\.5"):
        train_rnn.run(other, pipeline.labels, tmp_path, resume=True)


def test_a_damaged_checkpoint_is_refused(pipeline, tmp_path):
    with pytest.raises(KilledError):
        train_rnn.run(rnn_config(), pipeline.labels, tmp_path, progress=Trap("training", 6, kill))
    (path,) = tmp_path.glob("run-*/checkpoint-*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    with pytest.raises(ArtifactError, match=r"checkpoint-000000004\.safetensors: damaged"):
        train_rnn.run(rnn_config(), pipeline.labels, tmp_path, resume=True)


def test_a_committed_run_keeps_its_last_checkpoint_alone(pipeline):
    names = {path.name for path in pipeline.encoder.glob("run-*/*")}

    assert names == {
        "model.safetensors",
        "tokenizer.json",
        "metrics.jsonl",
        "checkpoint.json",
        "checkpoint-000000012.safetensors",
    }
    assert {entry.logical_name for entry in Artifact.open(pipeline.encoder).manifest.files} == names


def test_a_stopped_run_with_overwrite_resumes(pipeline, tmp_path):
    """Even if the artifact that it replaces is complete and has the same config."""
    config = encoder_config()
    train_encoder.run(config, pipeline.tokens, tmp_path)
    (finished,) = tmp_path.glob("run-*")
    with pytest.raises(KilledError):
        train_encoder.run(
            config,
            pipeline.tokens,
            tmp_path,
            overwrite=True,
            progress=Trap("training", 10, kill),
        )
    (unfinished,) = set(tmp_path.glob("run-*")) - {finished}
    train_encoder.run(config, pipeline.tokens, tmp_path, overwrite=True, resume=True)
    assert [folder.name for folder in tmp_path.glob("run-*")] == [unfinished.name]
    assert model_bytes(tmp_path) == model_bytes(pipeline.encoder)
