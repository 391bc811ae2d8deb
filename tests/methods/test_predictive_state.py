"""The teacher: its sampler, and its losses against slow loops."""

import dataclasses
import math
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load
from torch import Tensor, nn

from conftest import encoder_config, model_bytes, write_stream
from smtkit import IGNORE
from smtkit.config import EncoderConfig, PredictiveStateConfig
from smtkit.corpus.seeded import IntArray
from smtkit.corpus.shards import TokenShards
from smtkit.corpus.windows import TextWindows, Windows
from smtkit.methods.predictive_state import PredictiveState, TeacherBatch, TeacherSampler
from smtkit.networks.architecture import Architecture
from smtkit.networks.encoders import select
from smtkit.networks.teacher import Teacher
from smtkit.stages import train_encoder

VOCABULARY, WINDOW, LOOKAHEAD = 257, 16, 4
CONFIG = encoder_config()
RECIPES = Path(__file__).parents[2] / "pipelines"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class _Windows(TextWindows):
    """Windows that keep what was read last, after `change` was applied to it."""

    def __init__(self, stream: TokenShards, change: Callable[[Windows], Windows]) -> None:
        super().__init__(stream, WINDOW, LOOKAHEAD)
        self._change = change

    def read(self, starts: IntArray) -> Windows:
        self.last = self._change(super().read(starts))
        return self.last


def _unchanged(windows: Windows) -> Windows:
    return windows


Sampled = tuple[TeacherBatch, Tensor]
"""A batch, and the targets (B, T + F + 1) of its windows, as they were read."""


def _sampled(
    tmp_path: Path, length: int, change: Callable[[Windows], Windows] = _unchanged
) -> Sampled:
    """The first batch of a stream of `length` tokens."""
    tmp_path.mkdir(exist_ok=True)
    stream = write_stream(tmp_path, [[[1 + (7 * i) % 250 for i in range(length)]]])
    windows = _Windows(stream, change)
    objective = _objective(anchors=3, dynamics_positions=8, uniformity_positions=4)
    batch = TeacherSampler(windows, objective, batch_size=8, seed=0).batch(0)
    return batch, torch.from_numpy(windows.last.targets)


def _objective(**changes: object) -> PredictiveStateConfig:
    return PredictiveStateConfig(**{**CONFIG.objective.model_dump(), **changes})


@pytest.fixture
def batch(tmp_path) -> TeacherBatch:
    """Whole windows."""
    return _sampled(tmp_path, 500)[0]


@pytest.fixture
def short(tmp_path) -> Sampled:
    """Windows of a short stream, whose end cuts some of them, or their look-ahead."""
    batch, targets = _sampled(tmp_path, 26)
    missing = (targets == IGNORE).sum(1)
    assert (batch.length < 16).any()
    assert ((missing > 0) & (missing < LOOKAHEAD)).any()
    assert (missing == 0).any()
    return batch, targets


@pytest.fixture
def short_batch(short) -> TeacherBatch:
    return short[0]


def _teacher() -> Teacher:
    return Teacher(Architecture.of_teacher(CONFIG, VOCABULARY, WINDOW))


def _method(**changes: float) -> PredictiveState:
    return PredictiveState(_teacher(), _objective(**changes))


class _Calls:
    """The arguments of each call of a module."""

    def __init__(self, module: nn.Module) -> None:
        self.inputs: list[tuple[Tensor, ...]] = []
        module.register_forward_pre_hook(lambda _, inputs: self.inputs.append(inputs))


def test_the_teachers_cell_is_called_once_per_batch(batch):
    method = _method()
    calls = _Calls(method.network.transition)
    method.losses(batch)

    assert len(calls.inputs) == 1
    assert len(calls.inputs[0][0]) == batch.dynamics_positions.numel()


@pytest.mark.parametrize(
    "recipe", sorted(RECIPES.glob("*/paper/encoder.toml")), ids=lambda path: path.parts[-3]
)
def test_the_papers_recipes_encode_one_memory_and_its_successor_per_window(tmp_path, recipe):
    found = tomllib.loads(recipe.read_text(encoding="utf-8"))["objective"]
    objective = _objective(**{**found, "uniformity_group": 8})
    encoder = {"kind": "bidirectional", "slots": 2, "slot_width": 8, "width": 16, "heads": 2}
    changed = CONFIG.model_copy(update={"encoder": EncoderConfig(**encoder)})
    teacher = Teacher(Architecture.of_teacher(changed, VOCABULARY, WINDOW))
    method = PredictiveState(teacher, objective)
    stream = write_stream(tmp_path, [[[1 + (7 * i) % 250 for i in range(900)]]])
    windows = TextWindows(stream, WINDOW, found["future_length"])
    sampler = TeacherSampler(windows, objective, batch_size=8, seed=0, parallel=False)
    calls = _Calls(method.network.encoder.trunk)
    for step in range(20):
        losses = method.losses(sampler.batch(step))
        passes = sum(len(inputs[0]) for inputs in calls.inputs)
        assert losses["decoding"].isfinite()
        assert passes == 2 * 8 * (step + 1)


class _FixedMemory(nn.Module):
    """In place of an encoder: its memories are leaves of the graph."""

    def __init__(self, memory: Tensor) -> None:
        super().__init__()
        self.memory = memory.requires_grad_()

    def encode_at(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return select(self.memory, positions)


@pytest.mark.parametrize("position", [0, 7, 15])
def test_dynamics_reach_the_memories_of_one_transition_alone(batch, position):
    method = _method()
    method.network.encoder = _FixedMemory(torch.randn(8, 17, 2, 8))
    positions = torch.full((8, 1), position)
    one = dataclasses.replace(
        batch,
        dynamics_positions=positions,
        dynamics_tokens=batch.tokens[:, position, None],
        dynamics_targets=batch.tokens[:, position, None],
    )
    losses = method.losses(one)
    losses["dynamics"].backward()
    touched = method.network.encoder.memory.grad.flatten(2).abs().sum((0, 2)) > 0

    assert touched.nonzero().flatten().tolist() == [position, position + 1]


def test_dynamics_equal_a_loop_over_transitions(short_batch):
    method = _method()
    memory = method.network.encoder(short_batch.tokens)
    expected = 0.0
    for row in range(8):
        for i in short_batch.dynamics_positions[row].tolist():
            token = short_batch.tokens[row, i : i + 1]
            predicted = method.network.transition(memory[row, i : i + 1], token)[0]
            expected += float((predicted - memory[row, i + 1]).square().mean().detach())

    assert method.losses(short_batch)["dynamics"].item() == pytest.approx(expected, rel=1e-4)


def _minus_log_probability(logits: Tensor, target: int) -> float:
    return -float(logits.log_softmax(-1)[target].detach())


def test_decoding_equals_a_loop_over_anchors_and_offsets(short):
    method = _method()
    batch, targets = short
    memory = method.network.encoder(batch.tokens)
    expected = 0.0
    for row in range(8):
        for i in batch.anchors[row].tolist():
            for offset in range(LOOKAHEAD + 1):
                if targets[row, i + offset] == IGNORE:
                    continue
                # The decoder is causal: the future before the target gives the same logits.
                future = targets[row, i : i + offset][None]
                logits = method.network.decoder(memory[row, i][None], future)[0, offset]
                expected += _minus_log_probability(logits, targets[row, i + offset])

    assert method.losses(batch)["decoding"].item() == pytest.approx(expected, rel=1e-4)


def test_the_dense_term_equals_a_loop_over_positions_of_the_window(short):
    method = _method()
    batch, targets = short
    memory = method.network.encoder(batch.tokens)
    expected = 0.0
    for row in range(8):
        for i in range(17):
            if targets[row, i] != IGNORE:
                logits = method.network.read(memory[row, i][None])[0]
                expected += _minus_log_probability(logits, targets[row, i])

    assert method.losses(batch)["dense"].item() == pytest.approx(expected, rel=1e-4)


def test_the_readout_term_equals_a_loop_over_transitions(short):
    method = _method()
    batch, targets = short
    memory = method.network.encoder(batch.tokens)
    expected, count = 0.0, 0
    for row in range(8):
        for i in batch.dynamics_positions[row].tolist():
            if targets[row, i + 1] == IGNORE:
                continue
            token = batch.tokens[row, i : i + 1]
            predicted = method.network.transition(memory[row, i : i + 1], token)
            logits = method.network.read(predicted)[0]
            expected += _minus_log_probability(logits, targets[row, i + 1])
            count += 1

    assert method.losses(batch)["readout"].item() == pytest.approx(expected, rel=1e-4)
    assert method.counts(batch)["readout"] == count


def test_counts_equal_naive_counts(short):
    batch, targets = short
    naive = {"decoding": 0, "dense": 0, "dynamics": 0, "uniformity": 4}
    for row in range(8):
        row_targets = targets[row].tolist()
        naive["dense"] += sum(target != IGNORE for target in row_targets[:17])
        naive["dynamics"] += len(batch.dynamics_positions[row])
        for anchor in batch.anchors[row].tolist():
            future = row_targets[anchor : anchor + LOOKAHEAD + 1]
            naive["decoding"] += sum(target != IGNORE for target in future)
    counts = _method().counts(batch)

    assert {name: counts[name] for name in naive} == naive


def test_every_loss_has_a_count_and_a_weight(batch):
    method = _method()

    assert method.losses(batch).keys() == method.counts(batch).keys()
    assert method.losses(batch).keys() <= method.weights(0).keys()


def _values(losses: dict[str, Tensor]) -> dict[str, float]:
    return {name: total.item() for name, total in losses.items()}


def test_tokens_past_the_end_change_nothing(short_batch, tmp_path):
    def change(windows: Windows) -> Windows:
        inside = windows.targets[:, :-1] != IGNORE
        garbage = np.random.default_rng(0).integers(VOCABULARY, size=windows.tokens.shape)
        return dataclasses.replace(windows, tokens=np.where(inside, windows.tokens, garbage))

    method, (changed, _) = _method(), _sampled(tmp_path / "changed", 26, change)

    assert (changed.tokens != short_batch.tokens).any()
    assert (changed.future != short_batch.future).any()
    assert _values(method.losses(changed)) == pytest.approx(_values(method.losses(short_batch)))


def test_targets_past_the_length_change_nothing(short, tmp_path):
    def change(windows: Windows) -> Windows:
        length = windows.length[:, None]
        # What follows a whole window is look-ahead, not padding.
        padding = (np.arange(windows.targets.shape[1]) > length) & (length < 16)
        garbage = np.random.default_rng(0).integers(VOCABULARY, size=windows.targets.shape)
        return dataclasses.replace(windows, targets=np.where(padding, garbage, windows.targets))

    method, (batch, targets) = _method(), short
    changed, changed_targets = _sampled(tmp_path / "changed", 26, change)

    assert (changed_targets != targets).any()
    assert method.counts(changed) == method.counts(batch)
    assert _values(method.losses(changed)) == pytest.approx(_values(method.losses(batch)))


def test_dynamics_count_where_there_is_no_target(batch):
    method = _method()
    names = ("future_targets", "dense_targets", "dynamics_targets")
    masked = {name: torch.full_like(getattr(batch, name), IGNORE) for name in names}
    without_targets = dataclasses.replace(batch, **masked)
    counts, losses = method.counts(without_targets), method.losses(without_targets)

    assert counts["decoding"] == counts["dense"] == 0
    assert losses["decoding"].item() == losses["dense"].item() == 0
    assert counts["dynamics"] == 64
    assert losses["dynamics"].item() == pytest.approx(method.losses(batch)["dynamics"].item())


def test_rows_of_one_uniformity_group_are_compared_and_no_others(batch):
    method = _method(uniformity_group=4)
    changed_tokens = batch.tokens.clone()
    changed_tokens[:4] = torch.randint(VOCABULARY, (4, batch.tokens.shape[1]))
    changed = dataclasses.replace(batch, tokens=changed_tokens)
    of_last_half = {
        name: torch.stack([method.losses(half)["uniformity"] for half in _halves(each)])
        for name, each in (("before", batch), ("after", changed))
    }
    before, after = of_last_half["before"], of_last_half["after"]

    assert before[1].item() == after[1].item()
    assert before[0].item() != after[0].item()
    assert method.losses(batch)["uniformity"].item() == pytest.approx(before.sum().item())


def test_aligned_pairs_are_of_one_position_in_different_sequences(batch):
    """Against a loop over groups, positions, slots and pairs."""
    method = _method(uniformity_group=4, uniformity_pairs="aligned")
    memory = method.network.encoder.encode_at(batch.tokens, batch.uniformity_positions)
    unit = nn.functional.normalize(memory.detach(), dim=-1)
    rows, positions, slots, _ = unit.shape
    total = 0.0
    for first in range(0, rows, 4):
        for position in range(positions):
            for slot in range(slots):
                some = unit[first : first + 4, position, slot]
                potentials = [
                    math.exp(-2 * float((some[a] - some[b]).square().sum()))
                    for a in range(4)
                    for b in range(4)
                    if a != b
                ]
                total += math.log(sum(potentials) / len(potentials)) / slots / positions

    assert method.counts(batch)["uniformity"] == rows // 4
    assert method.losses(batch)["uniformity"].item() == pytest.approx(total, rel=1e-4)


def _halves(batch: TeacherBatch) -> list[TeacherBatch]:
    fields = {name: values.chunk(2) for name, values in vars(batch).items()}
    return [
        dataclasses.replace(batch, **{name: values[half] for name, values in fields.items()})
        for half in range(2)
    ]


def test_sums_and_counts_of_halves_add_up(short_batch):
    method = _method()
    whole, halves = method.losses(short_batch), _halves(short_batch)
    for name, total in whole.items():
        parts = sum(method.losses(half)[name].item() for half in halves)
        assert parts == pytest.approx(total.item(), rel=1e-4), name
    for name, count in method.counts(short_batch).items():
        assert count == sum(method.counts(half)[name] for half in halves), name


def test_dynamics_are_ramped_in_and_the_other_weights_are_constant():
    method = _method(dynamics_weight=0.8, dynamics_start=3, dynamics_ramp=4)
    weights = [method.weights(step) for step in range(10)]
    ramp = [0, 0, 0, 0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8]

    assert [each["dynamics"] for each in weights] == pytest.approx(ramp)
    for name in ("decoding", "dense", "uniformity"):
        assert len({each[name] for each in weights}) == 1


def test_the_readout_of_predicted_memories_is_ramped_in_with_dynamics():
    method = _method(readout_weight=0.4, dynamics_start=1, dynamics_ramp=2)

    assert [method.weights(step)["readout"] for step in range(4)] == pytest.approx(
        [0, 0.2, 0.4, 0.4]
    )


def test_without_a_ramp_dynamics_start_at_full_weight():
    method = _method(dynamics_weight=0.8, dynamics_start=2, dynamics_ramp=0)

    assert [method.weights(step)["dynamics"] for step in range(4)] == [0, 0, 0.8, 0.8]


def test_shares_of_the_run_ramp_dynamics_in_at_any_step():
    method = _method(dynamics_weight=0.8, dynamics_start="10%", dynamics_ramp="20%")
    done = [0.0, 0.09, 0.1, 0.15, 0.2, 0.3, 0.9]
    weights = [method.weights(step, share)["dynamics"] for step, share in enumerate(done)]

    assert weights == pytest.approx([0, 0, 0, 0.2, 0.4, 0.8, 0.8])
    at_once = _method(dynamics_weight=0.8, dynamics_start="10%", dynamics_ramp="0%")
    assert [at_once.weights(0, share)["dynamics"] for share in (0.09, 0.11)] == [0, 0.8]


@pytest.mark.parametrize("term", ["decoding", "dense", "uniformity"])
def test_terms_that_need_no_cell_reach_the_encoder(batch, term):
    method = _method()
    method.losses(batch)[term].backward()
    gradients = {name: p.grad for name, p in method.network.named_parameters()}

    assert gradients["encoder.projection.weight"].abs().sum() > 0
    assert all(g is None for name, g in gradients.items() if name.startswith("transition."))


def test_dynamics_reach_both_the_cell_and_the_encoder(batch):
    method = _method()
    method.losses(batch)["dynamics"].backward()

    assert method.network.encoder.projection.weight.grad.abs().sum() > 0
    assert method.network.transition.cell.to_memory.weight.grad.abs().sum() > 0


def test_diagnostics_leave_no_gradient(batch):
    method = _method()
    method.diagnostics(batch)

    assert all(parameter.grad is None for parameter in method.network.parameters())


def _healthy() -> dict[str, float]:
    return {"memory_uniformity": -2.0, "memory_variance": 0.9, "memory_effective_rank": 9.0}


def test_healthy_memories_give_no_warning():
    assert _method().warning(_healthy()) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("memory_uniformity", -0.01), ("memory_variance", 1e-4), ("memory_effective_rank", 1.01)],
)
def test_each_sign_of_collapse_gives_a_warning(name, value):
    warning = _method().warning({**_healthy(), name: value})

    assert warning is not None
    assert name in warning
    assert "objective.dynamics_weight" in warning


def _weights(artifact) -> dict[str, Tensor]:
    return load(model_bytes(artifact))


def _assert_near(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        torch.testing.assert_close(values, other[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("parts", [2, 4])
def test_gradient_accumulation_of_the_teacher_equals_the_full_batch(pipeline, tmp_path, parts):
    for accumulation in (1, parts):
        config = encoder_config(training={"max_steps": 5, "accumulation": accumulation})
        train_encoder.run(config, pipeline.tokens, tmp_path / str(accumulation))

    _assert_near(_weights(tmp_path / "1"), _weights(tmp_path / str(parts)))
