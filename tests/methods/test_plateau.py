"""Dynamics that begin when decoding has left its plateau: `objective.dynamics_start = "auto"`."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from conftest import (
    KilledError,
    Killer,
    arrow_columns,
    encoder_config,
    model_bytes,
    shards,
    split_tokens,
    tokenized,
)
from smtkit import IGNORE
from smtkit.config import SynthesizeConfig, TrainEncoderConfig
from smtkit.methods.predictive_state import PlateauGate, PredictiveState
from smtkit.networks.architecture import Architecture
from smtkit.networks.teacher import Teacher
from smtkit.stages import synthesize, train_encoder
from smtkit.training.checkpoint import TrainingState

AUTO = {"dynamics_start": "auto", "dynamics_ramp": 4}


def _gate(plateau: float = 3.0, limit: float = 2.4) -> PlateauGate:
    return PlateauGate(plateau, limit)


def _observed(gate: PlateauGate, losses: list[float], first: int = 0) -> list[int | None]:
    """`gate.step` after each update."""
    steps = []
    for step, loss in enumerate(losses, first):
        gate.observe(step, torch.tensor(loss))
        steps.append(gate.step)
    return steps


def _first_below(losses: list[float], plateau: float, limit: float) -> int | None:
    """The update after the one that brings an average, a tenth of each loss, below the limit."""
    average = plateau
    for step, loss in enumerate(losses):
        average = 0.9 * average + 0.1 * loss
        if average < limit:
            return step + 1
    return None


@pytest.mark.parametrize("loss", [0.0, 1.0, 2.0, 2.3])
def test_the_gate_opens_when_the_average_is_below_the_limit(loss):
    losses = [loss] * 60
    opened = _first_below(losses, 3.0, 2.4)
    steps = _observed(_gate(), losses)

    assert opened is not None
    assert steps == [None] * (opened - 1) + [opened] * (60 - opened + 1)


@pytest.mark.parametrize("loss", [2.41, 3.0, 5.5])
def test_the_gate_stays_shut_on_the_plateau(loss):
    assert _observed(_gate(), [loss] * 200) == [None] * 200


def test_a_single_low_loss_does_not_open_the_gate():
    assert _observed(_gate(), [3.0] * 5 + [0.1] + [3.0] * 20)[-1] is None


def test_the_gate_never_closes():
    gate = _gate()
    opened = _observed(gate, [0.5] * 10)[-1]

    assert opened is not None
    assert _observed(gate, [100.0] * 50, first=10) == [opened] * 50
    assert gate.average > 2.4


def test_the_gate_is_saved_and_restored(tmp_path):
    for losses in ([3.0] * 4, [0.5] * 10):
        gate, other = _gate(), _gate()
        _observed(gate, losses)
        network = torch.nn.Linear(2, 2)
        optimizer = torch.optim.AdamW(network.parameters())
        TrainingState(network, optimizer, gate).save(tmp_path)
        assert TrainingState(network, optimizer, other).load(tmp_path)
        assert other.step == gate.step
        assert torch.equal(other.average, gate.average)
        assert _observed(other, [1.0] * 9, 20) == _observed(gate, [1.0] * 9, 20)


def test_an_open_gate_takes_over_the_state_of_one_that_is_shut():
    gate, shut = _gate(), _gate()
    _observed(gate, [0.5] * 10)
    _observed(shut, [2.9] * 10)
    gate.load_state_dict(shut.state_dict())

    assert gate.step is None
    assert _observed(gate, [0.5] * 9, 20) == _observed(shut, [0.5] * 9, 20)


def test_an_open_gate_does_not_read_from_the_device():
    gate = _gate()
    opened = _observed(gate, [0.5] * 10)[-1]
    # Tensors of this device hold no values: to read one is an error.
    gate.to("meta")
    for step in range(10, 20):
        gate.observe(step, torch.tensor(0.5, device="meta"))
        assert gate.step == opened


def _method(unigram_nll: float = 3.0, **changes: object) -> PredictiveState:
    settings = encoder_config(objective={**encoder_config().objective.model_dump(), **changes})
    teacher = Teacher(Architecture.of_teacher(settings, 13, 16))
    return PredictiveState(teacher, settings.objective, unigram_nll=unigram_nll)


def _watch(method: PredictiveState, losses: list[float]) -> list[dict[str, float]]:
    """Weights at every step, where the decoding loss is `losses`."""
    weights = []
    for step, loss in enumerate(losses):
        weights.append(method.weights(step))
        method.observe(step, {"decoding": torch.tensor(loss)})
    return weights


@pytest.mark.parametrize("ramp", [0, 1, 5])
@pytest.mark.parametrize("plateau", [0.5, 0.8])
def test_the_ramp_starts_from_the_update_after_the_gate_opened(ramp, plateau):
    losses = [4.0] * 10 + [1.0] * 40
    opened = _first_below(losses, 3.0, plateau * 3.0)
    method = _method(**{**AUTO, "dynamics_ramp": ramp}, plateau=plateau, dynamics_weight=0.7)
    weights = _watch(method, losses)

    assert opened is not None
    for step, each in enumerate(weights):
        share = 0.0 if step < opened else min(1.0, (step - opened + 1) / max(ramp, 1))
        assert each["dynamics"] == pytest.approx(0.7 * share)
        assert each["readout"] == pytest.approx(2.0 * share)
        assert each["decoding"] == each["dense"] == 1.0


def test_updates_without_decoding_do_not_open_the_gate():
    method = _method(**AUTO)
    for step in range(50):
        method.observe(step, {"dynamics": torch.tensor(0.1)})

    assert method.weights(50)["dynamics"] == 0


def test_a_number_of_steps_needs_no_gate():
    method = _method(dynamics_start=3, dynamics_ramp=2)

    assert [each["dynamics"] for each in _watch(method, [9.0] * 6)] == [0, 0, 0, 1.0, 2.0, 2.0]
    assert not method.state.state_dict()


# The stage.


@pytest.fixture(scope="module")
def alphabet(tmp_path_factory) -> Path:
    """Tokens of a text that is soon learned: letters in a fixed order, all equally often."""
    directory = tmp_path_factory.mktemp("alphabet")
    text = directory / "text.txt"
    text.write_text("abcdefghijkl" * 200, encoding="utf-8")
    return tokenized(text, directory / "tokens", "char")


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory) -> Path:
    """Rows with one target each, at their end."""
    out = tmp_path_factory.mktemp("retrieval") / "tokens"
    task = SynthesizeConfig(
        task="retrieval", lengths=[16], sequences=64, validation_sequences=16, test_sequences=16
    )
    synthesize.run(task, out)
    return out


def _config(training: dict | None = None, **objective: object) -> TrainEncoderConfig:
    return encoder_config(
        objective={**encoder_config().objective.model_dump(), **AUTO, **objective},
        training={
            "max_steps": 40,
            "learning_rate": 1e-2,
            "schedule": "constant",
            "log_every": 1,
            "checkpoint_every": 3,
            "validate_every": 1000,
            **(training or {}),
        },
    )


def _task_config(training: dict | None = None, **objective: object) -> TrainEncoderConfig:
    config = _config(training, **objective).model_dump(exclude_unset=True)
    return TrainEncoderConfig(**{**config, "data": {}})


def _records(directory: Path) -> list[dict]:
    (path,) = directory.rglob("metrics.jsonl")
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [record for record in lines if record["split"] == "train"]


def _ramp(record: dict, config: TrainEncoderConfig) -> float:
    """The share of their weight with which dynamics went into the loss of a record."""
    objective = config.objective
    others = (
        objective.decoding_weight * record["decoding"]
        + objective.dense_weight * record["dense"]
        + objective.uniformity_weight * record["uniformity"]
    )
    dynamics = (
        objective.dynamics_weight * record["dynamics"]
        + objective.readout_weight * record["readout"]
    )
    return (record["loss"] - others) / dynamics


def test_dynamics_begin_when_decoding_has_left_its_plateau(alphabet, tmp_path):
    config = _config()
    train_encoder.run(config, alphabet, tmp_path)
    records = _records(tmp_path)
    unigram = _nll(Counter(split_tokens(alphabet, "train")))
    opened = _first_below([record["decoding"] for record in records], unigram, 0.8 * unigram)

    assert opened is not None
    assert 3 < opened < 30
    for step, record in enumerate(records):
        share = 0.0 if step < opened else min(1.0, (step - opened + 1) / 4)
        assert _ramp(record, config) == pytest.approx(share, abs=1e-4)


def _nll(counts: Counter[int]) -> float:
    total = sum(counts.values())
    return -sum(count / total * math.log(count / total) for count in counts.values())


def test_dynamics_stay_out_while_decoding_is_on_its_plateau(retrieval, tmp_path):
    config = _task_config({"learning_rate": 1e-4}, future_length="rest")
    train_encoder.run(config, retrieval, tmp_path)
    records = _records(tmp_path)

    assert all(record["decoding"] > 0 for record in records)
    assert [_ramp(record, config) for record in records] == pytest.approx([0] * 40, abs=1e-4)


def test_updates_without_an_answer_do_not_start_dynamics(retrieval, tmp_path):
    """With so short a future most anchors see no answer."""
    config = _task_config({"learning_rate": 1e-4}, future_length=0, anchors=1)
    train_encoder.run(config, retrieval, tmp_path)
    records = _records(tmp_path)

    assert sum(record["decoding"] == 0 for record in records) > 15
    assert [_ramp(record, config) for record in records] == pytest.approx([0] * 40, abs=1e-4)


def test_a_run_killed_before_or_after_the_gate_opened_resumes_bit_for_bit(alphabet, tmp_path):
    config = _config()
    train_encoder.run(config, alphabet, tmp_path / "whole")
    ramps = [_ramp(record, config) for record in _records(tmp_path / "whole")]
    opened = next(step for step, ramp in enumerate(ramps) if ramp > 0.01)
    for step in (opened - 3, opened + 1, opened + 9):
        out = tmp_path / f"killed-{step}"
        with pytest.raises(KilledError):
            train_encoder.run(config, alphabet, out, progress=Killer(step))
        train_encoder.run(config, alphabet, out, resume=True)
        assert model_bytes(out) == model_bytes(tmp_path / "whole")
        assert [_ramp(record, config) for record in _records(out)] == ramps


def _unigram_of(config: TrainEncoderConfig, tokens: Path, out: Path, monkeypatch) -> float:
    """The nll that the stage passes to its method."""
    passed: list[float | None] = []

    class Watched(PredictiveState):
        def __init__(self, *arguments, **named) -> None:
            super().__init__(*arguments, **named)
            passed.append(float(self.state.average) if self.state.state_dict() else None)

    monkeypatch.setattr(train_encoder, "PredictiveState", Watched)
    train_encoder.run(config, tokens, out)
    (nll,) = passed
    return nll


def test_the_unigram_of_a_text_is_that_of_its_tokens(pipeline, tmp_path, monkeypatch):
    config = _config({"max_steps": 1})
    tokens = split_tokens(pipeline.tokens, "train")
    # Look-ahead is counted too, so that tokens near a border count twice.
    hand = Counter(
        token for start in range(0, len(tokens), 16) for token in tokens[start : start + 16 + 4 + 1]
    )
    found = _unigram_of(config, pipeline.tokens, tmp_path, monkeypatch)

    assert found == pytest.approx(_nll(hand), rel=1e-6)
    assert found == pytest.approx(_nll(Counter(tokens)), rel=1e-2)


@pytest.mark.parametrize("future_length", [2, "rest"])
def test_the_unigram_of_rows_is_that_of_their_answers(
    retrieval, tmp_path, monkeypatch, future_length
):
    config = _task_config({"max_steps": 1}, future_length=future_length)
    targets = arrow_columns(shards(retrieval, "train"))["targets"]
    hand = Counter(target for row in targets for target in row if target != IGNORE)
    found = _unigram_of(config, retrieval, tmp_path, monkeypatch)

    assert sum(hand.values()) == 64
    assert found == pytest.approx(_nll(hand), rel=1e-6)


def test_a_fixed_start_needs_no_unigram(pipeline, tmp_path, monkeypatch):
    config = _config({"max_steps": 1}, dynamics_start=2)

    assert _unigram_of(config, pipeline.tokens, tmp_path, monkeypatch) is None
