"""dmt: its losses against slow loops; the divergence through the decoder; noise."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence

from conftest import architecture, encoder_config, rnn_config
from smtkit import IGNORE
from smtkit.config import CellConfig, RolloutConfig, TransitionObjectiveConfig
from smtkit.corpus.windows import Windows
from smtkit.labels.format import LabelShape
from smtkit.labels.reader import LabelShards
from smtkit.labels.writer import write_labels
from smtkit.methods.dmt import DaggerMemoryTraining, RolloutBatch, RolloutSampler
from smtkit.networks.decoder import FutureDecoder
from smtkit.networks.rnn import RecurrentNetwork

VOCABULARY, WINDOW, SLOTS, SLOT_WIDTH = 13, 9, 2, 8
DECODER = encoder_config().decoder
ROLLOUTS = [
    {"kind": "segments", "depth": 4},
    {"kind": "segments", "depth": 4, "loss_every": 2},
    {"kind": "sequential"},
    {"kind": "jacobi", "sweeps": 3},
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> LabelShards:
    """Eight rows of random memories that start from ones; half of the targets are IGNORE."""
    draw = np.random.default_rng(0)
    memory = draw.normal(size=(8, WINDOW + 1, SLOTS, SLOT_WIDTH)).astype(np.float32)
    memory[:, 0] = 1
    targets = draw.integers(VOCABULARY, size=(8, WINDOW + 1))
    targets[draw.random(targets.shape) < 0.5] = IGNORE
    tokens = draw.integers(VOCABULARY, size=(8, WINDOW))
    windows = Windows(tokens, targets, np.array([9, 9, 9, 5, 9, 1, 9, 8]))
    path = tmp_path_factory.mktemp("labels") / "train-00000.arrow"
    shape = LabelShape(WINDOW, SLOTS, SLOT_WIDTH, VOCABULARY, "float32")
    write_labels(path, shape, windows, memory, np.arange(8))
    return LabelShards([path])


def _made(
    labels: LabelShards,
    rollout: dict,
    decoder: FutureDecoder | None = None,
    cell: CellConfig | None = None,
    **objective: object,
) -> tuple[DaggerMemoryTraining, RolloutBatch]:
    """The method, on a network with random weights, and a batch of all eight rows."""
    settings = TransitionObjectiveConfig(**{"kl_positions": 3, "kl_future": 4, **objective})
    config = rnn_config()
    parts = cell or config.cell, config.readout, DECODER
    network = RecurrentNetwork(architecture(VOCABULARY, SLOTS, SLOT_WIDTH, *parts))
    network.fix_empty_memory(torch.ones(SLOTS, SLOT_WIDTH))
    chains = RolloutConfig(**rollout)
    sampler = RolloutSampler(labels, settings, rollout=chains, batch_size=8, seed=0)
    return DaggerMemoryTraining(network, settings, chains, decoder), sampler.batch(1)


def _decoder() -> FutureDecoder:
    return FutureDecoder(DECODER, VOCABULARY, SLOTS, SLOT_WIDTH)


def _inputs(module: nn.Module) -> list[Tensor]:
    """The first argument of each call of a module, from here on."""
    seen: list[Tensor] = []
    module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    return seen


def _predicted(method: DaggerMemoryTraining, batch: RolloutBatch) -> Tensor:
    """Predicted memories of the loss: the first input of the readout."""
    seen = _inputs(method.network.readout)
    method.losses(batch)
    return seen[0]


def _rolled_alone(network: RecurrentNetwork, batch: RolloutBatch) -> list[tuple[int, Tensor]]:
    """Number of each step and the memory before it, one chain and one step at a time."""
    chains, steps = batch.tokens.shape
    states = []
    with torch.no_grad():
        for chain in range(chains):
            memory = batch.start[chain]
            for step in range(steps):
                if batch.restarts[chain, step]:
                    memory = network.empty_memory
                states.append((chain * steps + step, memory))
                memory = network.transition(memory[None], batch.tokens[chain, step][None])[0]
    return states


def _one_step_sums(network: RecurrentNetwork, batch: RolloutBatch) -> dict[str, Tensor]:
    """Sums of a loop over the steps with a loss, each from its detached memory."""
    sums = {"dynamics": torch.zeros(()), "readout": torch.zeros(())}
    steps, after = batch.loss_steps.tolist(), batch.after_steps.flatten(0, 1)
    for number, memory in _rolled_alone(network, batch):
        if number in steps:
            token = batch.tokens.flatten()[number]
            predicted = network.step(memory[None], token[None])[0]
            sums["dynamics"] += (predicted - after[number]).square().mean()
            sums["readout"] += _nll(network, predicted, batch.target[steps.index(number)])
    for target in batch.initial_target:
        sums["readout"] += _nll(network, network.empty_memory, target)
    return sums


def _nll(network: RecurrentNetwork, memory: Tensor, target: Tensor) -> Tensor:
    if target == IGNORE:
        return torch.zeros(())
    return -network.readout(memory[None])[0].log_softmax(-1)[target]


@pytest.mark.parametrize("rollout", ROLLOUTS[:3], ids=str)
def test_chains_equal_a_loop_of_one_step_at_a_time(labels, rollout):
    method, batch = _made(labels, rollout)
    losses, expected = method.losses(batch), _one_step_sums(method.network, batch)

    for name, total in expected.items():
        assert losses[name].item() == pytest.approx(total.item(), rel=1e-4)


@pytest.mark.parametrize("rollout", ROLLOUTS[:3], ids=str)
def test_the_gradient_is_that_of_one_step_from_the_rollout(labels, rollout):
    method, batch = _made(labels, rollout)
    parameters = [p for p in method.network.parameters() if p.requires_grad]
    sums = method.losses(batch), _one_step_sums(method.network, batch)
    found, expected = (torch.autograd.grad(sum(each.values()), parameters) for each in sums)

    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_no_gradient_comes_back_through_an_earlier_step(labels, monkeypatch):
    method, batch = _made(labels, {"kind": "segments", "depth": 3})
    own, before = torch.arange(batch.tokens.numel()).view_as(batch.tokens), batch.start
    for steps, reached in ((own[:, 0], True), (own[:, 2], False)):
        start = before.clone().requires_grad_()
        monkeypatch.setattr(RolloutBatch, "start", start)
        some = dataclasses.replace(
            batch,
            loss_steps=steps,
            index=batch.chain_index.flatten()[steps],
            target=torch.zeros_like(steps),
        )
        method.losses(some)["dynamics"].backward()
        assert (start.grad is not None and bool(start.grad.any())) == reached


def test_a_sequential_rollout_is_that_of_the_network(labels):
    method, batch = _made(labels, {"kind": "sequential"})
    memories = method.network.rollout(batch.tokens)[:, 1:].flatten(0, 1)

    torch.testing.assert_close(_predicted(method, batch), memories[batch.loss_steps])


@pytest.mark.parametrize("sweeps", [1, 2, 5, 9, 12])
def test_after_k_sweeps_a_memory_is_k_steps_from_a_label(labels, sweeps):
    method, batch = _made(labels, {"kind": "jacobi", "sweeps": sweeps})
    predicted = _predicted(method, batch)
    for number, memory in zip(batch.loss_steps.tolist(), predicted, strict=True):
        chain, step = divmod(number, WINDOW)
        begin = max(0, step + 1 - sweeps)
        label = batch.after_steps[chain, begin - 1] if begin else method.network.empty_memory
        tokens = batch.tokens[chain, begin : step + 1][None]
        expected = method.network.rollout(tokens, label[None])[0, -1]
        torch.testing.assert_close(memory, expected)


def test_a_sweep_passes_no_gradient_to_the_sweeps_before(labels):
    method, batch = _made(labels, {"kind": "jacobi", "sweeps": 3})
    seen = _inputs(method.network.transition)
    method.losses(batch)["dynamics"].backward()
    found, calls = method.network.transition.input.weight.grad, len(seen)
    last = method.network.transition(seen[2], batch.tokens.flatten()[batch.loss_steps])
    error = (last - batch.after).square().flatten(1).mean(1).sum()
    (expected,) = torch.autograd.grad(error, [method.network.transition.input.weight])

    assert calls == 3
    torch.testing.assert_close(found, expected)


def _all_with_a_graph(method: DaggerMemoryTraining, batch: RolloutBatch) -> dict[str, Tensor]:
    """Sums where every step builds a graph, and steps with a loss are selected at the end."""
    network, settings = method.network, method._rollout
    if settings.kind == "jacobi":
        first, memory = network.start(len(batch.tokens))[:, None], batch.after_steps
        for _ in range(settings.sweeps):
            before = torch.cat((first, memory.detach()[:, :-1]), dim=1).flatten(0, 1)
            memory = network.step(before, batch.tokens.flatten()).unflatten(0, batch.tokens.shape)
    else:
        memory, steps = batch.start, []
        for step in range(batch.tokens.shape[1]):
            restarts = batch.restarts[:, step, None, None]
            before = torch.where(restarts, network.empty_memory, memory.detach())
            memory = network.step(before, batch.tokens[:, step])
            steps.append(memory)
        memory = torch.stack(steps, dim=1)
    return method._sums(memory.flatten(0, 1)[batch.loss_steps], batch)


@pytest.mark.parametrize("every", [1, 2, 3, 50])
@pytest.mark.parametrize("rollout", [ROLLOUTS[0], *ROLLOUTS[2:]], ids=str)
def test_steps_without_a_graph_change_neither_loss_nor_gradient(labels, rollout, every):
    rollout = {**rollout, "loss_every": every}
    method, batch = _made(labels, rollout, _decoder(), kl_weight=1.0)
    parameters = [p for p in method.network.parameters() if p.requires_grad]
    sums = method.losses(batch), _all_with_a_graph(method, batch)
    found, expected = (torch.autograd.grad(sum(each.values()), parameters) for each in sums)

    for name, total in sums[1].items():
        torch.testing.assert_close(sums[0][name], total)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def _calls_of_the_cell(method: DaggerMemoryTraining, batch: RolloutBatch) -> list[tuple[bool, int]]:
    """Of each call: whether its output has a graph, and the number of memories."""
    calls: list[tuple[bool, int]] = []
    handle = method.network.transition.register_forward_hook(
        lambda _, inputs, output: calls.append((output.requires_grad, len(inputs[0])))
    )
    method.losses(batch)
    handle.remove()
    return calls


def _without_short_rows(batch: RolloutBatch) -> RolloutBatch:
    """The chains of the longest rows: shorter ones have losses at other steps."""
    steps, last = batch.tokens.shape[1], batch.loss_steps.max() % batch.tokens.shape[1]
    whole = torch.unique(batch.loss_steps[batch.loss_steps % steps == last] // steps)
    kept = torch.isin(batch.loss_steps // steps, whole)
    fields = {name: getattr(batch, name)[kept] for name in ("loss_steps", "index", "target")}
    return dataclasses.replace(batch, **fields)


@pytest.mark.parametrize("every", [1, 2, 3, 4, 5, 9, 50])
def test_only_steps_with_a_loss_build_a_graph(labels, every):
    method, batch = _made(labels, {"kind": "sequential", "loss_every": every})
    calls = _calls_of_the_cell(method, _without_short_rows(batch))
    last = min(every, WINDOW) - 1
    with_loss = list(range(last, WINDOW, every))

    # The rollout ends at the last step with a loss.
    assert [graph for graph, _ in calls] == [i in with_loss for i in range(with_loss[-1] + 1)]


def test_in_segments_only_steps_with_a_loss_build_a_graph(labels):
    method, batch = _made(labels, {"kind": "segments", "depth": 4, "loss_every": 2})
    steps = {int(number) % 4 for number in batch.loss_steps}
    calls = _calls_of_the_cell(method, batch)

    assert [graph for graph, _ in calls] == [step in steps for step in range(4)]


@pytest.mark.parametrize("every", [1, 3])
def test_the_last_sweep_computes_only_steps_with_a_loss(labels, every):
    method, batch = _made(labels, {"kind": "jacobi", "sweeps": 3, "loss_every": every})
    everything = batch.tokens.numel()

    assert _calls_of_the_cell(method, batch) == [
        (False, everything),
        (False, everything),
        (True, len(batch.loss_steps)),
    ]


@pytest.mark.parametrize(
    "rollout", [ROLLOUTS[1], ROLLOUTS[3], {"depth": 4, "backprop": 3, "loss_every": 2}], ids=str
)
def test_under_autocast_a_gradient_reaches_every_weight_of_the_cell(labels, rollout):
    """Steps without a graph cast the weights first; the casts must not be taken by the others."""
    method, batch = _made(labels, rollout)
    with torch.autocast("cpu", torch.bfloat16):
        losses = method.losses(batch)
    losses["dynamics"].backward()

    assert all(p.grad is not None and p.grad.any() for p in method.network.transition.parameters())


@pytest.mark.parametrize("rollout", ROLLOUTS, ids=str)
def test_counts_equal_naive_counts(labels, rollout):
    method, batch = _made(labels, rollout, _decoder(), kl_weight=1.0)
    counts = method.counts(batch)

    assert counts["dynamics"] == len(batch.loss_steps)
    assert counts["readout"] == sum(t != IGNORE for t in [*batch.target, *batch.initial_target])
    assert counts["divergence"] == sum(1 + int(length) for length in batch.future_length)
    assert method.losses(batch).keys() == counts.keys() == method.weights(0).keys()


def test_a_detached_readout_does_not_move_the_cell(labels):
    for detached in (True, False):
        method, batch = _made(labels, ROLLOUTS[0], detach_readout=detached)
        method.losses(batch)["readout"].backward()
        moved = [p.grad is not None for p in method.network.transition.parameters()]
        assert moved == [not detached] * len(moved)
        assert all(p.grad.any() for p in method.network.readout.parameters())


# Gradients through the rollout.

FUSED = [CellConfig(kind=kind, normalize="none", width=16) for kind in ("gru", "lstm")]
CELLS = [None, *FUSED]


def _truncated_sums(
    network: RecurrentNetwork, batch: RolloutBatch, backprop: int
) -> dict[str, Tensor]:
    """Sums of a loop over chains, one step at a time; a memory is cut off every `backprop`."""
    sums = {"dynamics": torch.zeros(()), "readout": torch.zeros(())}
    chains, steps = batch.tokens.shape
    numbers, after = batch.loss_steps.tolist(), batch.after_steps
    for chain in range(chains):
        memory = batch.start[chain]
        for step in range(steps):
            if step % backprop == 0:
                memory = memory.detach()
            if batch.restarts[chain, step]:
                memory = network.empty_memory
            memory = network.step(memory[None], batch.tokens[chain, step][None])[0]
            if (number := chain * steps + step) in numbers:
                target = batch.target[numbers.index(number)]
                sums["dynamics"] += (memory - after[chain, step]).square().mean()
                sums["readout"] += _nll(network, memory, target)
    for target in batch.initial_target:
        sums["readout"] += _nll(network, network.empty_memory, target)
    return sums


def _assert_truncated(
    method: DaggerMemoryTraining, batch: RolloutBatch, backprop: int
) -> dict[str, Tensor]:
    """Compares losses and gradients with those of the slow loop."""
    parameters = [p for p in method.network.parameters() if p.requires_grad]
    sums = method.losses(batch), _truncated_sums(method.network, batch, backprop)
    found, expected = (torch.autograd.grad(sum(each.values()), parameters) for each in sums)
    for name, total in sums[1].items():
        torch.testing.assert_close(sums[0][name], total, rtol=1e-4, atol=0)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    return sums[0]


@pytest.mark.parametrize("backprop", [1, 3, 4, 50])
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_gradients_flow_back_through_blocks_of_steps(labels, cell, every, backprop):
    rollout = {"depth": 4, "backprop": backprop, "loss_every": every}
    _assert_truncated(*_made(labels, rollout, cell=cell), backprop)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("backprop", [3, 9])
def test_gradients_flow_back_through_blocks_of_a_sequential_rollout(labels, backprop, every):
    rollout = {"kind": "sequential", "backprop": backprop, "loss_every": every}
    _assert_truncated(*_made(labels, rollout), backprop)


@pytest.mark.parametrize("backprop", [2, 3, 9])
@pytest.mark.parametrize("rollout", [{"depth": 4}, {"depth": 9}, ROLLOUTS[2]], ids=str)
@pytest.mark.parametrize("cell", FUSED, ids=str)
def test_the_kernel_computes_a_block_with_its_restarts(
    labels, monkeypatch, cell, rollout, backprop
):
    """On a GPU; here it is used although steps are as fast."""
    monkeypatch.setattr(DaggerMemoryTraining, "_uses_kernel", lambda *_: True)
    calls = []
    method, batch = _made(labels, {**rollout, "backprop": backprop, "loss_every": 2}, cell=cell)
    method.network.transition.cell.unit.register_forward_hook(lambda *_: calls.append(1))
    _assert_truncated(method, batch, backprop)

    # A block, or no more than the steps of two blocks without a loss between, is one call.
    assert 0 < len(calls) <= 2 * -(-batch.tokens.shape[1] // backprop)


def test_chains_in_the_middle_of_a_block_restart(labels):
    """The tests of blocks rely on restarts that are neither at a block's start nor padding."""
    _, batch = _made(labels, {"depth": 4, "backprop": 4})
    number = torch.arange(batch.tokens.numel()).view_as(batch.tokens)
    has_loss = torch.isin(number, batch.loss_steps)

    assert (batch.restarts & has_loss)[:, 1:].any()


@pytest.mark.parametrize("rollout", ROLLOUTS[:3], ids=str)
def test_blocks_of_one_step_are_dmt_without_gradients(labels, rollout):
    found = []
    for backprop in (0, 1):
        torch.manual_seed(0)
        method, batch = _made(labels, {**rollout, "backprop": backprop})
        sums = method.losses(batch)
        sum(sums.values()).backward()
        gradients = [p.grad for p in method.network.parameters() if p.requires_grad]
        found.append([*sums.values(), *gradients])

    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(("backprop", "graph"), [(2, "00101111"), (5, "11100111")])
def test_steps_before_a_loss_of_their_block_keep_their_graph(labels, backprop, graph):
    method, batch = _made(labels, {"kind": "sequential", "backprop": backprop})
    batch = _without_short_rows(batch)
    steps = batch.tokens.shape[1]
    chosen = torch.isin(batch.loss_steps % steps, torch.tensor([2, 5, 7]))
    fields = {name: getattr(batch, name)[chosen] for name in ("loss_steps", "index", "target")}
    calls = _calls_of_the_cell(method, dataclasses.replace(batch, **fields))

    assert "".join(str(int(has_graph)) for has_graph, _ in calls) == graph


def test_blocks_of_steps_roll_out_to_the_same_memories(labels):
    """With noise too: gradients are all that `backprop` changes."""
    found = []
    for backprop in (0, 3, 4):
        torch.manual_seed(0)
        method, batch = _made(labels, {"depth": 4, "backprop": backprop}, noise=1.0)
        method.observe(0, {"dynamics": torch.tensor(0.25)})
        found.append(_predicted(method, batch))

    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


# Divergence of the decoder's predictions.


@pytest.mark.parametrize("rollout", ROLLOUTS, ids=str)
def test_divergence_is_that_of_torchs_distributions_inside_the_window(labels, rollout):
    decoder = _decoder()
    method, batch = _made(labels, rollout, decoder, kl_weight=1.0)
    chosen = batch.loss_steps[batch.compared]
    predicted, expected = _predicted(method, batch)[batch.compared], 0.0
    for n, number in enumerate(chosen.tolist()):
        length = int(batch.future_length[n])
        future = batch.future[n : n + 1, :length]
        label = decoder(batch.after_steps.flatten(0, 1)[number][None], future)[0]
        predictions = decoder(predicted[n][None], future)[0]
        assert len(predictions) == length + 1
        expected += float(
            kl_divergence(Categorical(logits=label), Categorical(logits=predictions)).sum()
        )

    assert method.losses(batch)["divergence"].item() == pytest.approx(expected, rel=1e-4)


def test_futures_past_the_window_change_nothing(labels):
    method, batch = _made(labels, ROLLOUTS[2], _decoder(), kl_weight=1.0)
    past = torch.arange(4) >= batch.future_length[:, None]
    changed = dataclasses.replace(batch, future=torch.where(past, 5, batch.future))

    assert (changed.future != batch.future).any()
    assert torch.equal(method.losses(changed)["divergence"], method.losses(batch)["divergence"])


def test_equal_memories_do_not_diverge(labels, monkeypatch):
    method, batch = _made(labels, ROLLOUTS[2], _decoder(), kl_weight=1.0)
    assert method.losses(batch)["divergence"].item() > 1e-3

    monkeypatch.setattr(RolloutBatch, "after", _predicted(method, batch))
    assert method.losses(batch)["divergence"].item() == pytest.approx(0, abs=1e-5)


def test_divergence_moves_the_cell_and_neither_decoder_nor_readout(labels):
    decoder = _decoder()
    method, batch = _made(labels, ROLLOUTS[0], decoder, kl_weight=1.0)
    method.losses(batch)["divergence"].backward()

    assert all(p.grad is None and not p.requires_grad for p in decoder.parameters())
    assert all(p.grad is None for p in method.network.readout.parameters())
    assert method.network.transition.cell.to_memory.weight.grad.any()


# Noise.


@pytest.mark.parametrize("noise", [0.5, 3.0])
@pytest.mark.parametrize("rollout", [{"depth": 1}, {"kind": "jacobi", "sweeps": 1}], ids=str)
def test_memories_are_disturbed_by_multiples_of_the_last_measured_error(labels, rollout, noise):
    method, batch = _made(labels, rollout, noise=noise)
    seen = _inputs(method.network.transition)
    method.losses(batch)
    method.observe(0, {"dynamics": torch.tensor(0.04)})
    method.losses(batch)
    clean, disturbed = seen
    chosen = ~batch.restarts.flatten()[batch.loss_steps]
    added = (disturbed - clean)[chosen]

    assert added.square().mean().sqrt().item() == pytest.approx(noise * 0.2, rel=0.1)
    assert abs(added.mean().item()) < 0.1 * noise * 0.2


def test_validation_is_without_noise(labels):
    method, batch = _made(labels, {"depth": 1}, noise=5.0)
    method.observe(0, {"dynamics": torch.tensor(1.0)})
    method.network.eval()
    seen = _inputs(method.network.transition)
    method.losses(batch)

    assert torch.equal(seen[0], torch.where(batch.restarts[..., None], 1.0, batch.start))


def test_the_empty_memory_of_a_chain_is_not_disturbed(labels):
    method, batch = _made(labels, ROLLOUTS[0], noise=5.0)
    method.observe(0, {"dynamics": torch.tensor(1.0)})
    seen = _inputs(method.network.transition)
    method.losses(batch)

    for step in range(4):
        assert (seen[step][batch.restarts[:, step]] == 1).all()


def test_without_noise_memories_are_left_as_they_are(labels):
    method, batch = _made(labels, {"depth": 1})
    seen = _inputs(method.network.transition)
    method.losses(batch)

    assert len(seen) == 1
    assert torch.equal(seen[0], batch.start)


def test_noise_is_the_same_again(labels):
    method, batch = _made(labels, ROLLOUTS[0], noise=1.0)
    method.observe(0, {"dynamics": torch.tensor(1.0)})

    assert torch.equal(method.losses(batch)["dynamics"], method.losses(batch)["dynamics"])
