"""`resume` with a larger limit: a finished or an interrupted run goes on from where it ended."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from regression import KilledError, Trap, kill, records

from conftest import Pipeline, encoder_config, model_bytes, on_ranks, rnn_config
from object_store import named, objects
from smtkit.errors import ArtifactError, UsageError
from smtkit.stages import train_encoder, train_rnn
from smtkit.storage.artifact import Artifact

CONSTANT = {"schedule": "constant"}


def encoder(steps: int | None, **training: Any) -> Any:
    return encoder_config(training={"max_steps": steps, **training})


def rnn(steps: int | None, **training: Any) -> Any:
    return rnn_config(training={"max_steps": steps, **training})


@pytest.fixture(scope="module")
def long_encoder(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of 20 updates at a constant learning rate."""
    out = tmp_path_factory.mktemp("long") / "encoder"
    train_encoder.run(encoder(20, **CONSTANT), pipeline.tokens, out)
    return out


@pytest.mark.parametrize("shorter", [12, 15])
def test_a_finished_run_goes_on_to_what_a_longer_one_is(
    pipeline: Pipeline, long_encoder: Path, tmp_path: Path, shorter: int
) -> None:
    """Bit for bit, where the learning rate does not depend on the length."""
    short = train_encoder.run(encoder(shorter, **CONSTANT), pipeline.tokens, tmp_path)
    longer = train_encoder.run(encoder(20, **CONSTANT), pipeline.tokens, tmp_path, resume=True)
    assert model_bytes(tmp_path) == model_bytes(long_encoder)
    assert longer.digest == Artifact.open(long_encoder).manifest.digest != short.digest
    assert longer.config["training"]["max_steps"] == longer.statistics["steps"] == 20
    steps = [record["step"] for record in records(tmp_path) if record["split"] == "validation"]
    assert steps == sorted({6, shorter, 12, 18, 20})
    (folder,) = tmp_path.glob("run-*")
    assert len(list(folder.glob("checkpoint-*"))) == 1
    again = train_encoder.run(encoder(20, **CONSTANT), pipeline.tokens, tmp_path, resume=True)
    assert again == longer


def test_a_killed_run_goes_on_to_a_larger_limit(
    pipeline: Pipeline, long_encoder: Path, tmp_path: Path
) -> None:
    with pytest.raises(KilledError):
        train_encoder.run(
            encoder(12, **CONSTANT), pipeline.tokens, tmp_path, progress=Trap("training", 10, kill)
        )
    with pytest.raises(KilledError):  # and is killed again
        train_encoder.run(
            encoder(20, **CONSTANT),
            pipeline.tokens,
            tmp_path,
            resume=True,
            progress=Trap("training", 18, kill),
        )
    with pytest.raises(UsageError, match=r"training\.max_steps was 20, is 12"):
        train_encoder.run(encoder(12, **CONSTANT), pipeline.tokens, tmp_path, resume=True)
    train_encoder.run(encoder(20, **CONSTANT), pipeline.tokens, tmp_path, resume=True)
    assert model_bytes(tmp_path) == model_bytes(long_encoder)


def test_the_old_artifact_stays_until_the_longer_run_is_finished(
    pipeline: Pipeline, long_encoder: Path, tmp_path: Path
) -> None:
    short = train_encoder.run(encoder(12, **CONSTANT), pipeline.tokens, tmp_path)
    with pytest.raises(KilledError):
        train_encoder.run(
            encoder(20, **CONSTANT),
            pipeline.tokens,
            tmp_path,
            resume=True,
            progress=Trap("training", 18, kill),
        )
    assert Artifact.open(tmp_path).manifest == short
    kept = train_encoder.run(encoder(12, **CONSTANT), pipeline.tokens, tmp_path, resume=True)
    assert kept == short
    train_encoder.run(encoder(20, **CONSTANT), pipeline.tokens, tmp_path, resume=True)
    assert model_bytes(tmp_path) == model_bytes(long_encoder)


def test_the_learning_rate_is_that_of_the_longer_run(pipeline: Pipeline, tmp_path: Path) -> None:
    """In closed form: a cosine over the new length, from where the old run ended."""
    train_rnn.run(rnn(12, log_every=1), pipeline.labels, tmp_path)
    train_rnn.run(rnn(24, log_every=1), pipeline.labels, tmp_path, resume=True)
    rates = [record["learning_rate"] for record in records(tmp_path) if record["split"] == "train"]
    assert len(rates) == 24
    length = [12] * 12 + [24] * 12
    for step, (rate, steps) in enumerate(zip(rates, length, strict=True)):
        warmup = min(1.0, (step + 1) / 2)
        expected = 3e-3 * warmup * (1 + math.cos(math.pi * step / steps)) / 2
        assert rate == pytest.approx(expected), step


def test_a_limit_of_seconds_can_be_raised_or_removed(pipeline: Pipeline, tmp_path: Path) -> None:
    first = train_rnn.run(rnn(None, max_seconds=1e-6), pipeline.labels, tmp_path)
    assert first.statistics["steps"] == 1
    second = train_rnn.run(rnn(None, max_seconds=2e-6), pipeline.labels, tmp_path, resume=True)
    assert second.statistics["steps"] == 1  # the first update had taken longer
    assert second.digest == first.digest
    with pytest.raises(UsageError, match=r"training\.max_steps was None, is 3"):
        train_rnn.run(rnn(3, max_seconds=2e-6), pipeline.labels, tmp_path, resume=True)
    train_rnn.run(rnn(5, max_seconds=1e-6), pipeline.labels, tmp_path / "both")
    both = train_rnn.run(rnn(5), pipeline.labels, tmp_path / "both", resume=True)
    assert both.statistics["steps"] == 5


def test_other_settings_and_smaller_limits_are_still_refused(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    train_rnn.run(rnn(4), pipeline.labels, tmp_path)
    for config, message in (
        (rnn(3), "max_steps was 4, is 3"),
        (rnn(8, learning_rate=0.1), "learning_rate was"),
    ):
        with pytest.raises(UsageError, match=message):
            train_rnn.run(config, pipeline.labels, tmp_path, resume=True)
    with pytest.raises(UsageError, match="exists"):
        train_rnn.run(rnn(8), pipeline.labels, tmp_path)


def test_with_overwrite_a_longer_run_starts_anew(pipeline: Pipeline, tmp_path: Path) -> None:
    """Pipelines say both, and depend on nothing but their settings."""
    train_rnn.run(rnn(4), pipeline.labels, tmp_path / "short")
    train_rnn.run(rnn(8), pipeline.labels, tmp_path / "short", resume=True, overwrite=True)
    train_rnn.run(rnn(8), pipeline.labels, tmp_path / "long")
    assert model_bytes(tmp_path / "short") == model_bytes(tmp_path / "long")


def test_without_its_state_a_run_cannot_go_on(pipeline: Pipeline, tmp_path: Path) -> None:
    train_rnn.run(rnn(4, keep_state=False), pipeline.labels, tmp_path)
    assert not list(tmp_path.glob("run-*/checkpoint*"))
    with pytest.raises(UsageError, match=r"finished without `training\.keep_state`"):
        train_rnn.run(rnn(8), pipeline.labels, tmp_path, resume=True)
    assert len(list(tmp_path.glob("run-*"))) == 1


def test_a_damaged_state_is_noticed_before_anything_is_written(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    train_rnn.run(rnn(4), pipeline.labels, tmp_path)
    (path,) = tmp_path.glob("run-*/checkpoint-*")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=path.name):
        train_rnn.run(rnn(8), pipeline.labels, tmp_path, resume=True)
    assert len(list(tmp_path.glob("run-*"))) == 1
    assert Artifact.open(tmp_path).manifest.statistics["steps"] == 4


def test_a_run_that_is_killed_before_its_commit_validates_once(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("smtkit.storage.store.LocalStore.commit", _die)
        with pytest.raises(KilledError):
            train_rnn.run(rnn(12), pipeline.labels, tmp_path)
    train_rnn.run(rnn(12), pipeline.labels, tmp_path, resume=True)
    assert model_bytes(tmp_path) == model_bytes(pipeline.rnn)
    (path,) = tmp_path.glob("run-*/metrics.jsonl")
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["step"] for r in found if r["split"] == "validation"] == [6, 12]


def test_a_run_that_reached_its_accuracy_stays_ended(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it is killed between its last checkpoint and its commit."""
    easy = {"stop_at_accuracy": 1e-9, "validate_every": 3, "learning_rate": 0.05}
    whole = train_rnn.run(rnn(12, **easy), pipeline.labels, tmp_path / "whole")
    assert whole.statistics["steps"] in (3, 6, 9)
    with monkeypatch.context() as patched:
        patched.setattr("smtkit.storage.store.LocalStore.commit", _die)
        with pytest.raises(KilledError):
            train_rnn.run(rnn(12, **easy), pipeline.labels, tmp_path / "killed")
    killed = train_rnn.run(rnn(12, **easy), pipeline.labels, tmp_path / "killed", resume=True)
    assert killed.digest == whole.digest
    longer = train_rnn.run(rnn(24, **easy), pipeline.labels, tmp_path / "whole", resume=True)
    assert longer.digest == whole.digest


def _die(*_: object) -> None:
    raise KilledError


def test_a_run_at_a_uri_goes_on_elsewhere(
    pipeline: Pipeline, long_encoder: Path, store: str, another_machine: Any
) -> None:
    """On a machine that has nothing of it, from what was uploaded."""
    train_encoder.run(encoder(12, **CONSTANT), pipeline.tokens, store)
    another_machine()
    longer = train_encoder.run(encoder(20, **CONSTANT), pipeline.tokens, store, resume=True)
    assert longer.digest == Artifact.open(long_encoder).manifest.digest
    assert objects(store) == named(longer)


def test_ranks_go_on_together(pipeline: Pipeline, tmp_path: Path) -> None:
    short, longer = (rnn(steps, **CONSTANT) for steps in (4, 8))
    on_ranks(
        2,
        ("train_rnn", short, pipeline.labels, tmp_path / "short"),
        ("train_rnn", longer, pipeline.labels, tmp_path / "short", {"resume": True}),
        ("train_rnn", longer, pipeline.labels, tmp_path / "long"),
    )
    assert model_bytes(tmp_path / "short") == model_bytes(tmp_path / "long")
    assert Artifact.open(tmp_path / "short").manifest.statistics["steps"] == 8
