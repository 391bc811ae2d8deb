"""smt: its batches of transitions, and its losses against a slow loop."""

import dataclasses

import pytest
import torch
from safetensors.torch import load
from torch import Tensor, nn

from conftest import (
    architecture,
    encoder_config,
    model_bytes,
    numbered_labels,
    rnn_config,
    tensor_fields,
)
from smtkit import IGNORE
from smtkit.config import TransitionObjectiveConfig
from smtkit.labels.codec import CODECS, EncodedMemory
from smtkit.labels.reader import LabelShards
from smtkit.methods.smt import SupervisedMemoryTraining, TransitionBatch, TransitionSampler
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.stages import train_rnn

VOCABULARY = 257


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class _Calls:
    """The arguments of each call of a module."""

    def __init__(self, module: nn.Module) -> None:
        self.inputs: list[tuple[Tensor, ...]] = []
        module.register_forward_pre_hook(lambda _, inputs: self.inputs.append(inputs))


def _minus_log_probability(logits: Tensor, target: int) -> float:
    return -float(logits.log_softmax(-1)[target].detach())


def _network() -> RecurrentNetwork:
    config = rnn_config()
    parts = config.cell, config.readout, encoder_config().decoder
    network = RecurrentNetwork(architecture(VOCABULARY, 2, 8, *parts))
    network.fix_empty_memory(torch.randn(2, 8))
    return network


def _smt() -> SupervisedMemoryTraining:
    return SupervisedMemoryTraining(_network(), TransitionObjectiveConfig())


def _transitions(count: int = 6, rows: int = 2) -> TransitionBatch:
    return TransitionBatch(
        memory=EncodedMemory(CODECS["float32"], {"memory": torch.randn(2 * count, 2, 8)}),
        index=torch.arange(0, 2 * count, 2),
        token=torch.randint(VOCABULARY, (count,)),
        target=torch.randint(VOCABULARY, (count,)),
        initial_target=torch.randint(VOCABULARY, (rows,)),
        compared=torch.empty(0, dtype=torch.int64),
        future=torch.empty(0, 8, dtype=torch.int64),
        future_length=torch.empty(0, dtype=torch.int64),
        noise=torch.empty(0, 2, 8),
    )


def test_smt_calls_the_cell_once_per_batch():
    method = _smt()
    calls = _Calls(method.network.transition)
    method.losses(_transitions())

    assert [len(memory) for memory, _ in calls.inputs] == [6]


def test_smt_reads_stored_memories_alone():
    method, transitions = _smt(), _transitions()
    calls = _Calls(method.network.transition)
    method.losses(transitions)

    assert (calls.inputs[0][0] == transitions.before).all()
    assert not calls.inputs[0][0].requires_grad


@pytest.mark.parametrize("index", [0, 3, 5])
def test_a_transition_of_smt_reaches_no_other(index):
    method = _smt()
    transitions = _transitions()
    stored = transitions.memory.columns["memory"]
    together = stored.clone().requires_grad_()
    everything = transitions.memory.map(lambda _: together)
    method.losses(dataclasses.replace(transitions, memory=everything))["dynamics"].backward()
    own, memories = slice(index, index + 1), slice(2 * index, 2 * index + 2)
    alone = stored[memories].clone().requires_grad_()
    one = dataclasses.replace(
        transitions,
        memory=transitions.memory.map(lambda _: alone),
        index=transitions.index[:1],
        token=transitions.token[own],
        target=transitions.target[own],
        initial_target=transitions.initial_target[:1],
    )
    method.losses(one)["dynamics"].backward()

    torch.testing.assert_close(together.grad[memories], alone.grad)


def test_smt_equals_a_loop_over_transitions():
    method, transitions = _smt(), _transitions()
    transitions.target[1] = transitions.initial_target[0] = IGNORE
    network = method.network
    expected = {"dynamics": 0.0, "readout": 0.0}
    for n in range(6):
        predicted = network.transition(transitions.before[n][None], transitions.token[n][None])
        error = (predicted[0] - transitions.after[n]).square().mean()
        expected["dynamics"] += float(error.detach())
        if n != 1:
            logits = network.readout(predicted)[0]
            expected["readout"] += _minus_log_probability(logits, transitions.target[n])
    logits = network.readout(network.empty_memory[None])[0]
    expected["readout"] += _minus_log_probability(logits, transitions.initial_target[1])
    losses, counts = method.losses(transitions), method.counts(transitions)

    for name, total in expected.items():
        assert losses[name].item() == pytest.approx(total, rel=1e-4)
    assert counts["dynamics"] == 6
    assert counts["readout"] == 6


def test_smt_without_targets_learns_dynamics_alone():
    method, transitions = _smt(), _transitions()
    without_targets = dataclasses.replace(
        transitions,
        target=torch.full_like(transitions.target, IGNORE),
        initial_target=torch.full_like(transitions.initial_target, IGNORE),
    )
    losses, counts = method.losses(without_targets), method.counts(without_targets)
    losses["readout"].backward()

    assert counts["readout"] == 0
    assert losses["readout"].item() == 0
    assert all((p.grad == 0).all() for p in method.network.readout.parameters())
    assert losses["dynamics"].item() == method.losses(transitions)["dynamics"].item()


def _weights(artifact) -> dict[str, Tensor]:
    return load(model_bytes(artifact))


def _assert_near(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        torch.testing.assert_close(values, other[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("parts", [2, 4])
def test_gradient_accumulation_of_smt_equals_the_full_batch(pipeline, tmp_path, parts):
    for accumulation in (1, parts):
        config = rnn_config(training={"max_steps": 5, "accumulation": accumulation})
        train_rnn.run(config, pipeline.labels, tmp_path / str(accumulation))

    _assert_near(_weights(tmp_path / "1"), _weights(tmp_path / str(parts)))


def _sampler(labels: LabelShards, **settings: int) -> TransitionSampler:
    return TransitionSampler(labels, TransitionObjectiveConfig(), seed=0, **settings)


@pytest.mark.parametrize("positions", [1, 4, 6, 9])
def test_transitions_are_looked_up_in_the_rows(tmp_path, positions):
    lengths = [6, 6, 1, 6, 3, 6]
    labels = numbered_labels(tmp_path / "train-00000.arrow", lengths)
    sampler = _sampler(labels, batch_size=3, positions=positions)
    seen = set()
    for step in range(40):
        batch = sampler.batch(step)
        assert len(batch.token) == 3 * positions
        assert len(batch.initial_target) == 3
        for n in range(3 * positions):
            number = int(batch.before[n, 0, 0])
            row, i = divmod(number, 100)
            assert i < lengths[row]
            assert (batch.before[n] == number).all()
            assert batch.token[n] == number
            assert (batch.after[n] == number + 1).all()
            assert batch.target[n] == number + 1 + 50
            assert batch.initial_target[n // positions] == 100 * row + 50
            seen.add((row, i))

    assert seen == {(row, i) for row in range(6) for i in range(lengths[row])}


def test_slices_of_a_batch_of_transitions_make_the_whole(tmp_path):
    labels = numbered_labels(tmp_path / "train-00000.arrow", [6] * 8)
    sampler = _sampler(labels, batch_size=6, positions=4)
    whole = sampler.batch(5)
    slices = [sampler.batch(5, part, 3) for part in range(3)]

    for name in tensor_fields(whole):
        if name != "index":  # counted from the start of each
            pieces = torch.cat([getattr(piece, name) for piece in slices])
            assert torch.equal(pieces, getattr(whole, name)), name


MIXED = [6, 6, 1, 5, 3, 2, 6, 4]


@pytest.fixture
def mixed(tmp_path) -> LabelShards:
    return numbered_labels(tmp_path / "train-00000.arrow", MIXED)


OBJECTIVE = {"kl_weight": 1.0, "kl_future": 4, "kl_positions": 3, "noise": 1.0}


def test_compared_futures_of_smt_follow_the_memory_too(mixed):
    sampler = TransitionSampler(
        mixed, TransitionObjectiveConfig(**OBJECTIVE), batch_size=8, seed=0, positions=5
    )
    batch = sampler.batch(2)
    for n, number in enumerate(batch.token[batch.compared].tolist()):
        row, position = divmod(number, 100)
        inside = min(4, MIXED[row] - position - 1)
        assert batch.future_length[n] == inside
        assert batch.future[n, :inside].tolist() == [
            number + 1 + offset for offset in range(inside)
        ]
