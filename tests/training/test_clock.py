"""When training stops and validates: the goal, and seconds on the chosen clock."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from conftest import KilledError, Killer, Recorder, architecture, validation_records
from smtkit.config import (
    CellConfig,
    DecoderConfig,
    ReadoutConfig,
    TrainingConfig,
    TrainRnnConfig,
)
from smtkit.corpus.windows import open_windows
from smtkit.methods.bptt import BackpropagationThroughTime, SequenceBatch, SequenceSampler
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.stages import train_rnn
from smtkit.storage.artifact import Artifact
from smtkit.storage.manifest import METRICS
from smtkit.training.loop import Trainer
from smtkit.training.protocols import Validation


def test_training_stops_at_the_first_validation_that_reaches_the_goal(tmp_path, parity):
    training = {
        "batch_size": 8,
        "max_steps": 2000,
        "validate_every": 5,
        "validation_windows": 16,
        "stop_at_accuracy": 0.7,
        "learning_rate": 0.02,
    }
    config = TrainRnnConfig(method="bptt", cell={"kind": "gru", "width": 16}, training=training)
    manifest = train_rnn.run(config, parity, tmp_path / "rnn")
    *before, last = [
        record["free_running_accuracy"] for record in validation_records(tmp_path / "rnn")
    ]
    assert last >= 0.7
    assert all(accuracy < 0.7 for accuracy in before)
    assert manifest.statistics["steps"] == 5 * (len(before) + 1) < 2000
    assert manifest.statistics["validation"]["free_running_accuracy"] == last


class TimedSampler:
    """Batches of whole windows; each batch that is read advances the clocks."""

    def __init__(self, sampler: SequenceSampler, advance: Callable[[], None]) -> None:
        self._sampler, self._advance = sampler, advance

    def windows_of(self, step: int) -> list[int]:
        return self._sampler.windows_of(step)

    def batch(self, step: int, part: int = 0, parts: int = 1) -> SequenceBatch:
        self._advance()
        return self._sampler.batch(step, part, parts)


def timed_steps(
    tokens: Path, out: Path, training: TrainingConfig, progress: Recorder | None = None
) -> Trainer[SequenceBatch]:
    """Trains with bptt: a step takes 1 s of CPU time and 10 s of wall time, a validation 1000 s."""
    now = {"cpu": 0.0, "wall": 0.0}

    def advance(cpu: float, wall: float) -> None:
        now["cpu"], now["wall"] = now["cpu"] + cpu, now["wall"] + wall

    windows = open_windows(Artifact.open(tokens, "tokens"), "train", None)
    sampler = SequenceSampler(windows, batch_size=training.batch_size, seed=0)
    network = RecurrentNetwork(
        architecture(5, 2, 4, CellConfig(kind="gru"), ReadoutConfig(), DecoderConfig())
    )
    method = BackpropagationThroughTime(network, None)
    validation = Validation(method, TimedSampler(sampler, partial(advance, 1000, 1000)), 1)
    out.mkdir(exist_ok=True)
    clocks = {name: partial(now.get, name) for name in now}
    trainer = type("Timed", (Trainer,), {"clocks": clocks})(
        method,
        TimedSampler(sampler, partial(advance, 1, 10)),
        [validation],
        training,
        out,
        progress=progress,
    )
    trainer.run()
    return trainer


@pytest.mark.parametrize(("clock", "steps"), [("cpu", 20), ("wall", 2)])
def test_max_seconds_are_of_training_on_the_chosen_clock(tmp_path, parity, clock, steps):
    config = TrainingConfig(batch_size=8, max_seconds=20, clock=clock, validate_every=1)
    statistics = timed_steps(parity, tmp_path / "run", config).statistics()
    assert statistics["steps"] == steps
    assert statistics["seconds"] == 20


@pytest.mark.parametrize(
    ("limits", "total"),
    [({"max_steps": 9, "max_seconds": 6}, 6), ({"max_steps": 9, "max_seconds": 50}, 9)],
)
def test_progress_is_of_the_steps_that_will_be_made(tmp_path, parity, limits, total):
    """Whichever of two limits is reached first; a step takes 1 s."""

    class Totals(Recorder):
        def update(self, task, completed, total, **metrics):
            seen.append((completed, total))

    seen = []
    config = TrainingConfig(batch_size=8, clock="cpu", log_every=1, **limits)
    timed_steps(parity, tmp_path / "run", config, Totals())
    assert seen == [(step, total) for step in range(1, total + 1)]


@pytest.mark.parametrize("killed_at", [None, 4, 9])
def test_validate_seconds_are_seconds_of_training(tmp_path, parity, killed_at):
    """Also of a run that was killed after a checkpoint at every third step, and resumed."""
    config = TrainingConfig(
        batch_size=8,
        max_steps=12,
        clock="cpu",
        validate_seconds=4.5,
        validate_every=1,
        log_every=1,
        checkpoint_every=3,
    )
    if killed_at:
        with pytest.raises(KilledError):
            timed_steps(parity, tmp_path / "run", config, Killer(killed_at))
    timed_steps(parity, tmp_path / "run", config)
    lines = (tmp_path / "run" / METRICS).read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [r["step"] for r in records if r["split"] == "validation"] == [5, 10, 12]
