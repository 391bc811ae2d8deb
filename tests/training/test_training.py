"""The loop: resume, interruption, schedules, clipping, decay, and what it warns of."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from conftest import (
    Recorder,
    encoder_config,
    model_bytes,
    rnn_config,
)
from smtkit.config import ExtractLabelsConfig, TrainingConfig
from smtkit.errors import ArtifactError, InterruptedRunError, NonFiniteLossError, UsageError
from smtkit.stages import extract_labels, train_encoder, train_rnn
from smtkit.storage.artifact import Artifact
from smtkit.training.distributed import choose_device
from smtkit.training.interrupts import stop_signals
from smtkit.training.loop import CLOCKS, Trainer, moved
from smtkit.training.metrics import MetricsFile
from smtkit.training.optimizer import schedule
from smtkit.training.protocols import Validation

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Rows:
    """A batch of `inputs` (B, 3), `outputs` (B, 2) and which of them count."""

    inputs: Tensor
    outputs: Tensor
    counted: Tensor

    @property
    def tokens_read(self) -> int:
        return len(self.inputs)


class RowsSource:
    """Four rows a step, of which the n-th of a step counts only where n < step % 4 + 1."""

    def batch(self, step: int, part: int = 0, parts: int = 1) -> Rows:
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(4, 3, generator=generator)
        outputs = torch.randn(4, 2, generator=generator)
        counted = torch.arange(4) <= step % 4
        share = 4 // parts
        own = slice(part * share, (part + 1) * share)
        return Rows(inputs[own], outputs[own], counted[own])


class Regression:
    """Least squares of a linear map; the loss is scaled by `scale(step)`."""

    def __init__(self, scale: Callable[[int], float] = lambda step: 1.0) -> None:
        torch.manual_seed(0)
        self.network = nn.Linear(3, 2)
        self.state = nn.Module()
        self._scale = scale

    def weights(self, step: int) -> dict[str, float]:
        return {"error": self._scale(step)}

    def counts(self, batch: Rows) -> dict[str, int]:
        return {"error": int(batch.counted.sum())}

    def losses(self, batch: Rows) -> dict[str, Tensor]:
        errors = (self.network(batch.inputs) - batch.outputs).square().sum(1)
        return {"error": errors[batch.counted].sum()}

    def observe(self, step: int, means: dict[str, Tensor]) -> None:
        pass

    def diagnostics(self, batch: Rows) -> dict[str, float]:
        return {}

    def warning(self, metrics: dict[str, float]) -> str | None:
        return None


def training_config(**changes) -> TrainingConfig:
    settings = {
        "batch_size": 4,
        "max_steps": 10,
        "learning_rate": 0.1,
        "weight_decay": 0.0,
        "clip": 1e9,
        "schedule": "constant",
        "warmup_steps": 0,
        "log_every": 1,
        "validate_every": 100,
        "checkpoint_every": 100,
    }
    return TrainingConfig(**{**settings, **changes})


def trainer(
    directory: Path, method, config: TrainingConfig, progress=None, clocks=CLOCKS
) -> Trainer:
    source = RowsSource()
    return Trainer(
        method,
        source,
        [Validation(method, source, 2)],
        config,
        directory,
        progress=progress,
        clocks=clocks,
    )


def records(directory: Path) -> list[dict]:
    (path,) = directory.rglob("metrics.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def reported(directory: Path, split: str) -> list[dict]:
    return [record for record in records(directory) if record["split"] == split]


class KilledError(Exception):
    """Stands for the end of the process."""


class Trap(Recorder):
    """Does `act` when `task` has come to `at`."""

    def __init__(self, task: str, at: float, act: Callable[[], None]) -> None:
        super().__init__()
        self._task, self._at, self._act = task, at, act

    def update(self, task: str, completed: float, total: float | None, **metrics) -> None:
        if task == self._task and completed == self._at:
            self._act()


def _raise() -> None:
    raise KilledError


def _send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


# Resume: a run that was stopped anywhere ends bit-equal to one that was not.


@pytest.mark.parametrize("stopped_at", [2, 4, 10])
def test_a_killed_teacher_resumes_bit_for_bit(pipeline, tmp_path, stopped_at):
    config = encoder_config()
    with pytest.raises(KilledError):
        train_encoder.run(
            config,
            pipeline.tokens,
            tmp_path,
            progress=Trap("training", stopped_at, _raise),
        )
    manifest = train_encoder.run(config, pipeline.tokens, tmp_path, resume=True)

    assert model_bytes(tmp_path) == model_bytes(pipeline.encoder)
    assert manifest.digest == Artifact.open(pipeline.encoder).manifest.digest


@pytest.mark.parametrize("stopped_at", [2, 4, 10])
def test_a_killed_rnn_resumes_bit_for_bit(pipeline, tmp_path, stopped_at):
    config = rnn_config()
    with pytest.raises(KilledError):
        train_rnn.run(
            config, pipeline.labels, tmp_path, progress=Trap("training", stopped_at, _raise)
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


@pytest.mark.parametrize("act", [_raise, _send(signal.SIGTERM)], ids=["killed", "interrupted"])
def test_extraction_resumes_bit_for_bit(pipeline, sharded_labels, tmp_path, act):
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


_RUN_AND_DIE = """
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


def test_a_process_that_was_killed_outright_resumes_bit_for_bit(pipeline, tmp_path):
    config = encoder_config()
    arguments = [config.model_dump_json(), str(pipeline.tokens), str(tmp_path)]
    process = subprocess.run([sys.executable, "-c", _RUN_AND_DIE, *arguments], check=False)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "manifest.json").exists()
    train_encoder.run(config, pipeline.tokens, tmp_path, resume=True)

    assert model_bytes(tmp_path) == model_bytes(pipeline.encoder)


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"]
)
def test_a_signal_stops_the_run_with_its_state_saved(pipeline, tmp_path, number, exit_code):
    config = encoder_config(training={"checkpoint_every": 1000})
    before = signal.getsignal(number)
    with pytest.raises(InterruptedRunError, match="saved at step 6") as caught:
        train_encoder.run(
            config, pipeline.tokens, tmp_path, progress=Trap("training", 6, _send(number))
        )
    assert caught.value.exit_code == exit_code
    assert caught.value.hint is not None
    assert "`resume`" in caught.value.hint
    assert signal.getsignal(number) is before
    train_encoder.run(config, pipeline.tokens, tmp_path, resume=True)

    assert model_bytes(tmp_path) == model_bytes(pipeline.encoder)


def test_a_second_signal_acts_at_once():
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


def test_a_resumed_run_reports_each_step_once(pipeline, tmp_path):
    config = encoder_config(training={"log_every": 1, "validate_every": 2})
    with pytest.raises(KilledError):
        train_encoder.run(config, pipeline.tokens, tmp_path, progress=Trap("training", 11, _raise))
    train_encoder.run(config, pipeline.tokens, tmp_path, resume=True)

    assert [record["step"] for record in reported(tmp_path, "train")] == list(range(1, 13))
    validated = [record["step"] for record in reported(tmp_path, "validation")]
    assert validated == [2, 4, 6, 8, 10, 12]


def test_a_signal_in_the_last_step_lets_the_run_complete(pipeline, tmp_path):
    train_encoder.run(
        encoder_config(),
        pipeline.tokens,
        tmp_path,
        progress=Trap("training", 12, _send(signal.SIGTERM)),
    )
    assert model_bytes(tmp_path) == model_bytes(pipeline.encoder)
    assert [record["step"] for record in reported(tmp_path, "validation")] == [6, 12]


def test_a_resumed_run_logs_what_an_undisturbed_one_logs(pipeline, tmp_path):
    config = encoder_config(training={"log_every": 2, "checkpoint_every": 4})
    with pytest.raises(KilledError):
        train_encoder.run(config, pipeline.tokens, tmp_path, progress=Trap("training", 10, _raise))
    train_encoder.run(config, pipeline.tokens, tmp_path, resume=True)
    clocks = {"seconds", "tokens_per_second"}
    resumed, undisturbed = (
        [{key: value for key, value in record.items() if key not in clocks} for record in lines]
        for lines in (records(tmp_path), records(pipeline.encoder))
    )

    assert resumed == undisturbed


def test_a_complete_run_is_not_trained_again(pipeline, tmp_path):
    config = rnn_config(training={"max_steps": 2})
    first = train_rnn.run(config, pipeline.labels, tmp_path)
    again = train_rnn.run(
        config, pipeline.labels, tmp_path, resume=True, progress=Trap("training", 2, _raise)
    )

    assert again == first


def test_a_run_is_not_resumed_with_another_config(pipeline, tmp_path):
    with pytest.raises(KilledError):
        train_rnn.run(rnn_config(), pipeline.labels, tmp_path, progress=Trap("training", 6, _raise))
    other = rnn_config(training={"learning_rate": 0.5})

    with pytest.raises(UsageError, match=r"training\.learning_rate was 0\.003, is 0\.5"):
        train_rnn.run(other, pipeline.labels, tmp_path, resume=True)


def test_a_damaged_checkpoint_is_refused(pipeline, tmp_path):
    with pytest.raises(KilledError):
        train_rnn.run(rnn_config(), pipeline.labels, tmp_path, progress=Trap("training", 6, _raise))
    (path,) = tmp_path.glob("run-*/checkpoint-*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    with pytest.raises(ArtifactError, match=r"checkpoint-000000004\.safetensors: damaged"):
        train_rnn.run(rnn_config(), pipeline.labels, tmp_path, resume=True)


def test_a_committed_run_leaves_no_checkpoint_behind(pipeline):
    names = {path.name for path in pipeline.encoder.glob("run-*/*")}

    assert names == {"model.safetensors", "tokenizer.json", "metrics.jsonl"}


def test_metrics_after_the_step_and_torn_lines_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 1}', '{"step": 2}', '{"step": 3}']
    path.write_text("\n".join(lines) + '\n{"step": 1', encoding="utf-8")
    MetricsFile(path).truncate(2)

    assert path.read_text(encoding="utf-8").splitlines() == lines[:2]


# Losses that are not finite.


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_no_update_is_made_with_a_loss_that_is_not_finite(tmp_path, factor):
    method = Regression(lambda step: factor if step == 3 else 1.0)
    undisturbed = Regression()
    trainer(tmp_path / "a", undisturbed, _made(tmp_path / "a", max_steps=3)).run()
    with pytest.raises(NonFiniteLossError, match="step 3: loss is") as caught:
        trainer(tmp_path / "b", method, _made(tmp_path / "b")).run()

    assert caught.value.exit_code == 5
    for one, other in zip(
        method.network.parameters(), undisturbed.network.parameters(), strict=True
    ):
        assert torch.equal(one, other)


def _made(directory: Path, **changes) -> TrainingConfig:
    directory.mkdir()
    return training_config(**changes)


def test_a_gradient_that_is_not_finite_is_caught_too(tmp_path):
    method = Regression()
    weight = method.network.weight
    weight.register_hook(lambda gradient: gradient * math.inf)
    before = weight.detach().clone()

    with pytest.raises(NonFiniteLossError, match="gradient norm"):
        trainer(tmp_path, method, training_config()).run()
    assert torch.equal(weight, before)


def test_the_last_checkpoint_survives_a_loss_that_is_not_finite(pipeline, tmp_path, monkeypatch):
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


# The schedule, the clock, clipping and decay.


def test_the_constant_schedule_warms_up_and_stays():
    config = training_config(warmup_steps=4, schedule="constant")
    factors = [schedule(config, step, step / 10) for step in range(8)]

    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])


def test_the_cosine_schedule_falls_to_zero():
    config = training_config(warmup_steps=0, schedule="cosine")
    shares = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5]
    expected = [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0, 0]

    assert [schedule(config, 7, share) for share in shares] == pytest.approx(expected)


def test_warm_up_multiplies_the_cosine():
    config = training_config(warmup_steps=4, schedule="cosine")

    assert schedule(config, 1, 0.5) == pytest.approx(0.5 * 0.5)


def test_the_learning_rate_of_each_step_follows_the_schedule(tmp_path):
    config = training_config(max_steps=5, schedule="cosine", warmup_steps=2)
    trainer(tmp_path, Regression(), config).run()
    rates = [record["learning_rate"] for record in reported(tmp_path, "train")]
    expected = [
        0.1 * min(1, (step + 1) / 2) * 0.5 * (1 + math.cos(math.pi * step / 5)) for step in range(5)
    ]

    assert rates == pytest.approx(expected)


def ticking_clock() -> dict[str, Callable[[], float]]:
    """A clock that advances by one second at every reading."""
    return {"wall": partial(next, itertools.count(1.0))}


def test_max_seconds_ends_a_run(tmp_path):
    config = training_config(max_steps=None, max_seconds=7)
    run = trainer(tmp_path, Regression(), config, clocks=ticking_clock())
    run.run()

    assert run.state.step == 7


def test_the_nearer_of_two_limits_ends_a_run(tmp_path):
    config = training_config(max_steps=4, max_seconds=7)
    run = trainer(tmp_path, Regression(), config, clocks=ticking_clock())
    run.run()

    assert run.state.step == 4


def test_the_cosine_follows_the_clock_where_it_ends_first(tmp_path):
    config = training_config(max_steps=1000, max_seconds=4, schedule="cosine")
    trainer(tmp_path, Regression(), config, clocks=ticking_clock()).run()
    rates = [record["learning_rate"] for record in reported(tmp_path, "train")]
    expected = [0.1 * 0.5 * (1 + math.cos(math.pi * seconds / 4)) for seconds in range(4)]

    assert rates == pytest.approx(expected)


def test_seconds_go_on_after_a_resume(tmp_path):
    config = training_config(max_steps=None, max_seconds=8, checkpoint_every=2)
    killed = trainer(tmp_path, Regression(), config, Trap("training", 5, _raise), ticking_clock())
    with pytest.raises(KilledError):
        killed.run()
    resumed = trainer(tmp_path, Regression(), config, clocks=ticking_clock())
    resumed.run()

    # Saved at step 4, when 4 seconds had passed.
    assert resumed.state.step == 8


def _norms_at_updates(run: Trainer) -> list[float]:
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
    free = _norms_at_updates(trainer(tmp_path / "free", Regression(), training_config()))
    clipped = _norms_at_updates(
        trainer(tmp_path / "clipped", Regression(), training_config(clip=0.25))
    )

    assert min(free) > 0.25
    assert clipped == pytest.approx([0.25] * 10, rel=1e-3)


def test_the_norm_that_is_logged_is_the_one_before_clipping(tmp_path):
    method = Regression()
    batch = RowsSource().batch(0)
    errors = method.network(batch.inputs) - batch.outputs
    (errors[:1].square().sum()).backward()
    expected = float(torch.cat([p.grad.flatten() for p in method.network.parameters()]).norm())
    method.network.zero_grad()
    trainer(tmp_path, method, training_config(max_steps=1, clip=1e-3)).run()

    assert reported(tmp_path, "train")[0]["gradient_norm"] == pytest.approx(expected, rel=1e-4)


def test_only_matrices_decay(tmp_path):
    method = Regression(lambda step: 0.0)
    weight, bias = (p.detach().clone() for p in method.network.parameters())
    config = training_config(learning_rate=0.1, weight_decay=0.5, max_steps=3)
    trainer(tmp_path, method, config).run()

    torch.testing.assert_close(method.network.weight.detach(), weight * (1 - 0.1 * 0.5) ** 3)
    assert torch.equal(method.network.bias, bias)


def test_frozen_weights_do_not_move(tmp_path):
    method = Regression()
    method.network.bias.requires_grad_(False)
    before = method.network.bias.clone()
    trainer(tmp_path, method, training_config(weight_decay=0.5)).run()

    assert torch.equal(method.network.bias, before)


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_a_mean_is_over_all_parts_of_a_batch(tmp_path, accumulation):
    # Rows that count are spread unevenly over the parts; some parts have none.
    method, reference = Regression(), Regression()
    config = training_config(accumulation=accumulation)
    trainer(tmp_path, method, config).run()
    optimizer = torch.optim.AdamW(
        reference.network.parameters(), lr=0.1, betas=config.betas, weight_decay=0
    )
    for step in range(10):
        batch = RowsSource().batch(step)
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
        batch = RowsSource().batch(step)
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


def test_the_last_validation_is_returned_and_reported(tmp_path):
    returned = trainer(tmp_path, Regression(), training_config()).run()
    last = reported(tmp_path, "validation")[-1]

    assert last["step"] == 10
    assert returned == {"error": last["error"]}


def test_training_lowers_the_loss(pipeline, tmp_path):
    config = encoder_config(training={"max_steps": 60, "learning_rate": 1e-2, "log_every": 10})
    train_encoder.run(config, pipeline.tokens, tmp_path)
    first, *_, last = [record["dense"] for record in reported(tmp_path, "train")]

    assert last < first - 1


# What the user is told.


def test_memories_that_collapse_are_warned_of(pipeline, tmp_path):
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
    listener = Recorder()
    train_encoder.run(config, pipeline.tokens, tmp_path, progress=listener)

    assert len(listener.warnings) == 1
    assert "memory collapses" in listener.warnings[0]
    assert "objective.dynamics_weight" in listener.warnings[0]


def test_a_healthy_run_warns_of_nothing(pipeline, tmp_path):
    listener = Recorder()
    train_encoder.run(encoder_config(), pipeline.tokens, tmp_path, progress=listener)

    assert listener.warnings == []


class Worrying(Regression):
    """A concern where the loss of the step is above what `limit` says."""

    def __init__(self, concerns: list[str | None]) -> None:
        super().__init__()
        self._concerns = iter(concerns)

    def warning(self, metrics: dict[str, float]) -> str | None:
        return next(self._concerns)


def test_a_concern_is_told_once_until_it_is_over(tmp_path):
    method = Worrying([None, "low", "low", None, "low", "low"])
    listener = Recorder()
    trainer(tmp_path, method, training_config(max_steps=6), listener).run()

    assert listener.warnings == ["step 2: low", "step 5: low"]


def test_a_batch_goes_to_a_device_from_pinned_memory_where_it_holds_anything(monkeypatch):
    pinned: list[int] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor.numel())
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    batch = Rows(torch.ones(4, 3), torch.ones(4, 2), torch.ones(0))
    there = moved(batch, torch.device("meta"))

    assert pinned == [12, 8]
    assert {tensor.device.type for tensor in vars(there).values()} == {"meta"}
    assert moved(batch, CPU) is batch


def test_a_device_that_is_not_there_is_a_usage_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert choose_device("auto") == CPU
    assert choose_device("cpu") == CPU
    with pytest.raises(UsageError, match="no CUDA device"):
        choose_device("cuda")


def test_an_overwriting_run_that_was_stopped_goes_on(pipeline, tmp_path):
    """Also where the artifact it would replace is complete and was made with the same settings."""
    config = encoder_config()
    train_encoder.run(config, pipeline.tokens, tmp_path)
    with pytest.raises(KilledError):
        train_encoder.run(
            config,
            pipeline.tokens,
            tmp_path,
            overwrite=True,
            progress=Trap("training", 10, _raise),
        )
    (unfinished,) = tmp_path.glob("run-*/checkpoint.json")
    train_encoder.run(config, pipeline.tokens, tmp_path, overwrite=True, resume=True)
    assert [folder.name for folder in tmp_path.glob("run-*")] == [unfinished.parent.name]
    assert model_bytes(tmp_path) == model_bytes(pipeline.encoder)
