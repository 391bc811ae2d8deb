"""The training loop: clocks, clipping, means, validation, non-finite losses, warnings."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from regression import (
    KilledError,
    Regression,
    Rows,
    RowSampler,
    Trap,
    kill,
    reported,
    trainer,
    training_config,
)
from torch import Tensor

from conftest import Recorder, encoder_config, model_bytes, rnn_config
from smtkit.config import TrainingConfig
from smtkit.errors import NonFiniteLossError
from smtkit.stages import train_encoder, train_rnn
from smtkit.training.loop import Trainer
from smtkit.training.protocols import moved


def ticking_clock() -> dict[str, Callable[[], float]]:
    """A clock that advances by one second at every reading."""
    return {"wall": partial(next, itertools.count(1.0))}


def test_max_seconds_ends_a_run(tmp_path):
    config = training_config(max_steps=None, max_seconds=7)
    run = trainer(tmp_path, Regression(), config, clocks=ticking_clock())
    run.run()

    assert run.state.step == 7


class Shares(Regression):
    """Remembers the share of the run that is over at each update."""

    def __init__(self) -> None:
        super().__init__()
        self.weighted: list[float] = []
        self.observed: list[float] = []

    def weights(self, step: int, done: float = 0.0) -> dict[str, float]:
        self.weighted.append(done)
        return super().weights(step, done)

    def observe(self, step: int, means: dict[str, Tensor], done: float = 0.0) -> None:
        self.observed.append(done)


@pytest.mark.parametrize(("steps", "seconds"), [(4, None), (4, 100), (None, 4), (100, 4)])
def test_methods_see_the_share_of_the_run_that_is_over(tmp_path, steps, seconds):
    method = Shares()
    config = training_config(max_steps=steps, max_seconds=seconds)
    trainer(tmp_path, method, config, clocks=ticking_clock()).run()

    assert method.weighted[-4:] == pytest.approx([0, 0.25, 0.5, 0.75])
    assert method.observed == method.weighted[-4:]


def test_samples_are_shown_and_recorded(tmp_path):
    texts = iter(["first", "second", "last"])
    recorder = Recorder()
    config = training_config(max_steps=5, sample_every=2)
    run = trainer(tmp_path, Regression(), config, sample=lambda: next(texts), progress=recorder)
    run.run()

    shown = [("sample at step 2", "first"), ("sample at step 4", "second")]
    assert recorder.shown == [*shown, ("sample at step 5", "last")]
    assert reported(tmp_path, "sample") == [
        {"step": step, "split": "sample", "text": text}
        for step, text in ((2, "first"), (4, "second"), (5, "last"))
    ]


def test_the_first_of_two_limits_ends_a_run(tmp_path):
    config = training_config(max_steps=4, max_seconds=7)
    run = trainer(tmp_path, Regression(), config, clocks=ticking_clock())
    run.run()

    assert run.state.step == 4


def test_the_cosine_follows_max_seconds_if_it_ends_first(tmp_path):
    config = training_config(max_steps=1000, max_seconds=4, schedule="cosine")
    trainer(tmp_path, Regression(), config, clocks=ticking_clock()).run()
    rates = [record["learning_rate"] for record in reported(tmp_path, "train")]
    expected = [0.1 * 0.5 * (1 + math.cos(math.pi * seconds / 4)) for seconds in range(4)]

    assert rates == pytest.approx(expected)


def test_seconds_continue_after_resume(tmp_path):
    config = training_config(max_steps=None, max_seconds=8, checkpoint_every=2)
    killed = trainer(tmp_path, Regression(), config, Trap("training", 5, kill), ticking_clock())
    with pytest.raises(KilledError):
        killed.run()
    resumed = trainer(tmp_path, Regression(), config, clocks=ticking_clock())
    resumed.run()

    # Saved at step 4, when 4 seconds had passed.
    assert resumed.state.step == 8


def norms_at_updates(run: Trainer) -> list[float]:
    norms: list[float] = []

    def note(optimizer, *_):
        gradients = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]
        norms.append(float(torch.cat(gradients).norm()))

    run.state.optimizer.register_step_pre_hook(note)
    run.run()
    return norms


def test_gradients_are_clipped_to_the_norm(tmp_path):
    (tmp_path / "free").mkdir()
    (tmp_path / "clipped").mkdir()
    free = norms_at_updates(trainer(tmp_path / "free", Regression(), training_config()))
    clipped = norms_at_updates(
        trainer(tmp_path / "clipped", Regression(), training_config(clip=0.25))
    )

    assert min(free) > 0.25
    assert clipped == pytest.approx([0.25] * 10, rel=1e-3)


def test_the_logged_norm_is_that_before_clipping(tmp_path):
    method = Regression()
    batch = RowSampler().batch(0)
    errors = method.network(batch.inputs) - batch.outputs
    (errors[:1].square().sum()).backward()
    expected = float(torch.cat([p.grad.flatten() for p in method.network.parameters()]).norm())
    method.network.zero_grad()
    trainer(tmp_path, method, training_config(max_steps=1, clip=1e-3)).run()

    assert reported(tmp_path, "train")[0]["gradient_norm"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_the_loss_is_a_mean_over_all_parts_of_a_batch(tmp_path, accumulation):
    # Counted rows are spread unevenly over the parts; some parts have none.
    method, reference = Regression(), Regression()
    config = training_config(accumulation=accumulation)
    trainer(tmp_path, method, config).run()
    optimizer = torch.optim.AdamW(
        reference.network.parameters(), lr=0.1, betas=config.betas, weight_decay=0
    )
    for step in range(10):
        batch = RowSampler().batch(step)
        optimizer.zero_grad()
        errors = (reference.network(batch.inputs) - batch.outputs).square().sum(1)
        errors[batch.counted].mean().backward()
        optimizer.step()

    for one, other in zip(method.network.parameters(), reference.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_logged_means_are_over_all_rows_since_the_last_record(tmp_path):
    method = Regression(lambda step: 0.0)
    config = training_config(max_steps=4, log_every=4, accumulation=2)
    trainer(tmp_path, method, config).run()
    total, count = 0.0, 0
    for step in range(4):
        batch = RowSampler().batch(step)
        for n in range(4):
            if batch.counted[n]:
                error = method.network(batch.inputs[n]) - batch.outputs[n]
                total += float(error.square().sum().detach())
                count += 1
    (record,) = reported(tmp_path, "train")

    assert record["error"] == pytest.approx(total / count, rel=1e-5)
    assert record["loss"] == 0
    assert record["tokens"] == 16


def test_validation_makes_no_update(tmp_path):
    (tmp_path / "often").mkdir()
    (tmp_path / "seldom").mkdir()
    often, seldom = Regression(), Regression()
    trainer(tmp_path / "often", often, training_config(validate_every=1)).run()
    trainer(tmp_path / "seldom", seldom, training_config()).run()

    assert torch.equal(often.network.weight, seldom.network.weight)


def test_the_last_validation_is_returned_and_logged(tmp_path):
    returned = trainer(tmp_path, Regression(), training_config()).run()
    last = reported(tmp_path, "validation")[-1]

    assert last["step"] == 10
    assert returned == {"error": last["error"]}


def test_training_lowers_the_loss(pipeline, tmp_path):
    config = encoder_config(training={"max_steps": 60, "learning_rate": 1e-2, "log_every": 10})
    train_encoder.run(config, pipeline.tokens, tmp_path)
    first, *_, last = [record["dense"] for record in reported(tmp_path, "train")]

    assert last < first - 1


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_non_finite_loss_makes_no_update(tmp_path, factor):
    method = Regression(lambda step: factor if step == 3 else 1.0)
    uninterrupted = Regression()
    trainer(tmp_path / "a", uninterrupted, config_in(tmp_path / "a", max_steps=3)).run()
    with pytest.raises(NonFiniteLossError, match="step 3: loss is") as caught:
        trainer(tmp_path / "b", method, config_in(tmp_path / "b")).run()

    assert caught.value.exit_code == 5
    for one, other in zip(
        method.network.parameters(), uninterrupted.network.parameters(), strict=True
    ):
        assert torch.equal(one, other)


def config_in(directory: Path, **changes) -> TrainingConfig:
    directory.mkdir()
    return training_config(**changes)


def test_a_non_finite_gradient_makes_no_update(tmp_path):
    method = Regression()
    weight = method.network.weight
    weight.register_hook(lambda gradient: gradient * math.inf)
    before = weight.detach().clone()

    with pytest.raises(NonFiniteLossError, match="gradient norm"):
        trainer(tmp_path, method, training_config()).run()
    assert torch.equal(weight, before)


def test_a_non_finite_loss_keeps_the_last_checkpoint(pipeline, tmp_path, monkeypatch):
    losses = train_rnn.SupervisedMemoryTraining.losses
    calls = []

    def spoiled(self, batch):
        calls.append(batch)
        sums = losses(self, batch)
        return {**sums, "dynamics": sums["dynamics"] * (math.nan if len(calls) > 5 else 1)}

    config = rnn_config(training={"validate_every": 1000})
    monkeypatch.setattr(train_rnn.SupervisedMemoryTraining, "losses", spoiled)
    with pytest.raises(NonFiniteLossError, match="step 5"):
        train_rnn.run(config, pipeline.labels, tmp_path)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.glob("run-*/checkpoint-*.safetensors")] == [
        "checkpoint-000000004.safetensors"
    ]
    train_rnn.run(config, pipeline.labels, tmp_path, resume=True)

    assert model_bytes(tmp_path) == model_bytes(pipeline.rnn)


def test_a_collapse_of_memories_causes_a_warning(pipeline, tmp_path):
    config = encoder_config(
        objective={
            "dynamics_weight": 1000.0,
            "dynamics_start": 0,
            "dynamics_ramp": 0,
            "decoding_weight": 0.0,
            "dense_weight": 0.0,
            "uniformity_weight": 0.0,
        },
        training={"max_steps": 80, "learning_rate": 1e-2, "log_every": 5},
    )
    recorder = Recorder()
    train_encoder.run(config, pipeline.tokens, tmp_path, progress=recorder)

    assert len(recorder.warnings) == 1
    assert "memory collapses" in recorder.warnings[0]
    assert "objective.dynamics_weight" in recorder.warnings[0]


def test_a_healthy_run_causes_no_warning(pipeline, tmp_path):
    recorder = Recorder()
    config = encoder_config(
        objective={"dynamics_start": 60, "dynamics_ramp": 60},
        training={"max_steps": 150, "learning_rate": 1e-2},
    )
    train_encoder.run(config, pipeline.tokens, tmp_path, progress=recorder)

    assert recorder.warnings == []


class MethodWithWarnings(Regression):
    """A method with a given warning per step."""

    def __init__(self, warnings: list[str | None]) -> None:
        super().__init__()
        self._warnings = iter(warnings)

    def warning(self, metrics: dict[str, float]) -> str | None:
        return next(self._warnings)


def test_a_warning_is_shown_once_until_it_ceases(tmp_path):
    method = MethodWithWarnings([None, "low", "low", None, "low", "low"])
    recorder = Recorder()
    trainer(tmp_path, method, training_config(max_steps=6), recorder).run()

    assert recorder.warnings == ["step 2: low", "step 5: low"]


def test_a_review_of_the_validations_gives_one_warning(tmp_path):
    seen: list[list[float]] = []

    def review(records) -> str | None:
        seen.append([record["step"] for record in records])
        return "rising" if len(records) >= 2 else None

    recorder, config = Recorder(), training_config(max_steps=4, validate_every=1)
    trainer(tmp_path, Regression(), config, recorder, review=review).run()

    assert seen == [[1], [1, 2]]
    assert recorder.warnings == ["step 2: rising"]


def test_a_resumed_run_reviews_the_validations_from_before(tmp_path):
    reviewed: list[list[dict]] = []

    def review(records) -> None:
        reviewed.append([dict(record) for record in records])

    config = training_config(max_steps=6, validate_every=2, checkpoint_every=3)
    with pytest.raises(KilledError):
        trainer(tmp_path, Regression(), config, Trap("training", 5, kill), review=review).run()
    trainer(tmp_path, Regression(), config, review=review).run()
    steps = [[record["step"] for record in records] for records in reviewed]

    # The checkpoint is of step 3: the validation at step 4 was made again.
    assert steps == [[2], [2, 4], [2, 4], [2, 4, 6]]
    assert reviewed[-1] == reported(tmp_path, "validation")


def test_tensors_move_to_a_device_from_pinned_memory_unless_empty(monkeypatch):
    pinned: list[int] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor.numel())
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    batch = Rows(torch.ones(4, 3), torch.ones(4, 2), torch.ones(0))
    on_device = moved(batch, torch.device("meta"))

    assert pinned == [12, 8]
    assert {tensor.device.type for tensor in vars(on_device).values()} == {"meta"}
    assert moved(batch, torch.device("cpu")) is batch


@dataclass(frozen=True)
class Pair:
    """Two tensors that are moved together."""

    left: Tensor
    right: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> "Pair":
        return Pair(function(self.left), function(self.right))


@dataclass(frozen=True)
class PairBatch:
    pair: Pair
    tokens: Tensor


def test_fields_with_map_move_to_a_device(monkeypatch):
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    batch = PairBatch(Pair(torch.ones(2), torch.zeros(3)), torch.ones(4))
    on_device = moved(batch, torch.device("meta"))

    tensors = [on_device.pair.left, on_device.pair.right, on_device.tokens]
    assert [(tensor.device.type, len(tensor)) for tensor in tensors] == [
        ("meta", 2),
        ("meta", 3),
        ("meta", 4),
    ]
