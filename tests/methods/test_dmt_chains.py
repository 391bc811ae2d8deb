"""dmt: how windows are cut into chains, and what is drawn for them."""

import itertools
from collections import Counter

import pytest
import torch

from conftest import numbered_labels, tensor_fields
from smtkit.config import RolloutConfig, TransitionObjectiveConfig
from smtkit.labels.reader import LabelShards
from smtkit.methods.dmt import RolloutBatch, RolloutSampler

MIXED = [6, 6, 1, 5, 3, 2, 6, 4]


@pytest.fixture
def mixed(tmp_path) -> LabelShards:
    return numbered_labels(tmp_path / "train-00000.arrow", MIXED)


def _sampler(
    labels: LabelShards,
    batch_size: int = 8,
    seed: int = 0,
    objective: dict | None = None,
    **rollout: object,
) -> RolloutSampler:
    return RolloutSampler(
        labels,
        TransitionObjectiveConfig(**(objective or {})),
        rollout=RolloutConfig(**rollout),
        batch_size=batch_size,
        seed=seed,
    )


def _loss_tokens(batch: RolloutBatch) -> list[int]:
    """100 r + i of every step with a loss."""
    return batch.tokens.flatten()[batch.loss_steps].tolist()


def _all_tokens(lengths: list[int]) -> Counter[int]:
    return Counter(100 * row + i for row, length in enumerate(lengths) for i in range(length))


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 6, 7, 16])
@pytest.mark.parametrize("kind", ["segments", "sequential", "jacobi"])
def test_every_position_of_every_window_has_a_loss_once(mixed, kind, depth):
    sampler = _sampler(mixed, kind=kind, depth=depth)
    for step in range(12):
        assert Counter(_loss_tokens(sampler.batch(step))) == _all_tokens(MIXED)


def test_every_position_has_a_loss_once_at_any_length_and_depth(tmp_path):
    for window in (1, 2, 7, 13):
        lengths = [1 + 5 * row % window for row in range(8)]
        path = tmp_path / f"{window}.arrow"
        labels = numbered_labels(path, lengths, window)
        for depth in (1, 3, 4, window, window + 1):
            sampler = _sampler(labels, depth=depth)
            for step in range(6):
                assert Counter(_loss_tokens(sampler.batch(step))) == _all_tokens(lengths)


@pytest.mark.parametrize("depth", [1, 2, 4, 6, 9])
def test_chains_start_from_labels_and_follow_their_window(mixed, depth):
    sampler = _sampler(mixed, depth=depth)
    for step in range(12):
        batch = sampler.batch(step)
        targets = dict(zip(batch.loss_steps.tolist(), batch.target.tolist(), strict=True))
        after = dict(zip(batch.loss_steps.tolist(), batch.after, strict=True))
        steps = batch.tokens.shape[1]
        for chain in range(len(batch.start)):
            row, first = divmod(int(batch.start[chain, 0, 0]), 100)
            assert (batch.start[chain] == 100 * row + first).all()
            for offset in range(steps):
                number = chain * steps + offset
                if number in targets:
                    position = (first + offset) % MIXED[row]
                    assert batch.tokens[chain, offset] == 100 * row + position
                    assert (batch.after_steps[chain, offset] == 100 * row + position + 1).all()
                    assert (after[number] == 100 * row + position + 1).all()
                    assert targets[number] == 100 * row + position + 1 + 50


@pytest.mark.parametrize("kind", ["segments", "sequential", "jacobi"])
def test_chains_restart_exactly_where_a_window_begins(mixed, kind):
    sampler = _sampler(mixed, kind=kind, depth=4)
    for step in range(12):
        batch = sampler.batch(step)
        assert torch.equal(batch.restarts, batch.tokens % 100 == 0)


def test_chains_cross_from_the_end_of_a_window_to_its_beginning(tmp_path):
    labels = numbered_labels(tmp_path / "train-00000.arrow", [6])
    crossing = [
        (chain, batch.restarts)
        for step in range(20)
        for batch in [_sampler(labels, batch_size=1, depth=4).batch(step)]
        for chain in batch.tokens.tolist()
    ]
    seen = {tuple(chain) for chain, _ in crossing}

    assert (4, 5, 0, 1) in seen
    assert (5, 0, 1, 2) in seen
    for chain, restarts in crossing:
        for before, after in itertools.pairwise(chain):
            assert after == (before + 1) % 6
        assert [token == 0 for token in chain] in restarts.tolist()


@pytest.mark.parametrize("depth", [2, 4, 6])
def test_phases_are_uniform(tmp_path, depth):
    labels = numbered_labels(tmp_path / "train-00000.arrow", [6])
    sampler = _sampler(labels, batch_size=4, depth=depth)
    chains = -(-6 // depth)
    starts = torch.cat([sampler.batch(step).start[:, 0, 0] for step in range(300)])
    phases = Counter(starts[::chains].int().tolist())

    assert set(phases) == set(range(6))
    assert max(phases.values()) < 1.5 * min(phases.values())


def test_the_depth_grows_from_one(mixed):
    sampler = _sampler(mixed, depth=6, depth_ramp=10)
    depths = [sampler.depth(step) for step in range(14)]

    assert depths[0] == 1
    assert depths == sorted(depths)
    assert depths[9:] == [6] * 5
    assert depths[8] < 6
    for step, depth in enumerate(depths):
        assert depth == round(6 ** min(1, (step + 1) / 10))
        assert sampler.batch(step).tokens.shape[1] == depth
        assert Counter(_loss_tokens(sampler.batch(step))) == _all_tokens(MIXED)


def test_without_a_ramp_the_depth_is_that_of_the_config(mixed):
    assert [_sampler(mixed, depth=5).depth(step) for step in (0, 1, 99)] == [5, 5, 5]


def test_the_validations_depth_does_not_depend_on_the_step(mixed):
    assert _sampler(mixed, depth=5, depth_ramp=0).batch(0).tokens.shape[1] == 5


@pytest.mark.parametrize(("every", "expected"), [(1, 6), (2, 3), (3, 2), (4, 1), (6, 1), (50, 1)])
def test_every_nth_step_of_a_rollout_has_a_loss(tmp_path, every, expected):
    labels = numbered_labels(tmp_path / "train-00000.arrow", [6])
    batch = _sampler(labels, batch_size=1, kind="sequential", loss_every=every).batch(0)
    last = min(every, 6) - 1

    assert batch.tokens.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert batch.loss_steps.tolist() == list(range(last, 6, every))
    assert len(batch.loss_steps) == expected


def test_every_nth_step_of_a_segment_has_a_loss(mixed):
    sampler = _sampler(mixed, depth=4, loss_every=2)
    for step in range(12):
        batch = sampler.batch(step)
        steps = batch.tokens.shape[1]
        tokens = _loss_tokens(batch)
        assert len(tokens) == len(set(tokens))
        # Chains of a window of one or two tokens end before, at their last step.
        short = {2: 0, 5: 1}
        for number, token in zip(batch.loss_steps.tolist(), tokens, strict=True):
            assert number % steps in (1, 3) or number % steps == short.get(token // 100)
        assert {token // 100 for token in tokens} == set(range(8))


def test_a_sequential_rollout_is_one_chain_from_the_empty_memory(mixed):
    sampler = _sampler(mixed, kind="sequential")
    batch = sampler.batch(3)

    assert batch.tokens.shape == (8, 6)
    for chain in range(8):
        row, first = divmod(int(batch.start[chain, 0, 0]), 100)
        length = MIXED[row]
        assert first == 0
        assert batch.restarts[chain, :length].tolist() == [True] + [False] * (length - 1)
        assert batch.tokens[chain, :length].tolist() == [100 * row + i for i in range(length)]
        assert batch.after_steps[chain, :length, 1, 2].tolist() == [
            100 * row + i + 1 for i in range(length)
        ]
        targets = batch.target[batch.loss_steps // 6 == chain]
        assert targets.tolist() == [100 * row + i + 51 for i in range(length)]


def test_the_first_targets_are_those_of_the_empty_memory(mixed):
    batch = _sampler(mixed, kind="sequential").batch(0)

    assert batch.initial_target.tolist() == (batch.start[:, 0, 0].int() + 50).tolist()


OBJECTIVE = {"kl_weight": 1.0, "kl_future": 4, "kl_positions": 3, "noise": 1.0}


def _compared_tokens(batch: RolloutBatch) -> list[int]:
    """100 r + i of the steps whose futures are compared."""
    return batch.tokens.flatten()[batch.loss_steps][batch.compared].tolist()


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("kind", ["segments", "sequential", "jacobi"])
def test_compared_futures_follow_the_memory_and_end_with_the_window(mixed, kind, every):
    sampler = _sampler(mixed, objective=OBJECTIVE, kind=kind, depth=4, loss_every=every)
    for step in range(6):
        batch = sampler.batch(step)
        assert len(batch.compared) == 8 * 3
        assert batch.future.shape == (24, 4)
        for n, token in enumerate(_compared_tokens(batch)):
            row, position = divmod(token, 100)
            inside = min(4, MIXED[row] - position - 1)
            assert batch.future_length[n] == inside
            after = [100 * row + position + 1 + offset for offset in range(inside)]
            assert batch.future[n, :inside].tolist() == after


def test_futures_are_no_wider_than_a_window(mixed):
    wide, narrow = (
        _sampler(mixed, objective={**OBJECTIVE, "kl_future": future}).batch(0)
        for future in (10**9, 6)
    )

    assert wide.future.shape == (24, 6)
    for name in tensor_fields(narrow):
        assert torch.equal(getattr(narrow, name), getattr(wide, name)), name


def test_without_a_weight_no_futures_are_compared(mixed):
    batch = _sampler(mixed).batch(0)

    assert len(batch.compared) == len(batch.future) == len(batch.future_length) == 0
    assert batch.noise.numel() == 0


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_only_the_next_target_is_compared_without_future_tokens(mixed, weight):
    objective = {"kl_weight": weight, "kl_future": 0}
    batch = _sampler(mixed, objective=objective).batch(0)
    count = 64 if weight else 0

    assert batch.future.shape == (count, 0)
    assert batch.future_length.tolist() == [0] * count


@pytest.mark.parametrize("kind", ["segments", "jacobi"])
def test_noise_is_drawn_for_every_memory_it_is_added_to(mixed, kind):
    batch = _sampler(mixed, objective=OBJECTIVE, kind=kind, depth=4).batch(0)
    count = batch.tokens.numel() if kind == "jacobi" else len(batch.start)

    assert batch.noise.shape == (count, 2, 3)
    assert abs(float(batch.noise.mean())) < 0.3
    assert float(batch.noise.std()) == pytest.approx(1, abs=0.2)


def _chains(batch: RolloutBatch) -> list[tuple[int, ...]]:
    """Each chain: where it starts, and the tokens of its steps with a loss."""
    steps = batch.tokens.shape[1]
    with_loss: dict[int, list[int]] = {}
    for number in batch.loss_steps.tolist():
        chain, offset = divmod(number, steps)
        with_loss.setdefault(chain, []).append(int(batch.tokens[chain, offset]))
    return [(int(batch.start[chain, 0, 0]), *tokens) for chain, tokens in with_loss.items()]


@pytest.mark.parametrize("parts", [2, 4, 8])
@pytest.mark.parametrize("kind", ["segments", "sequential", "jacobi"])
def test_slices_of_a_batch_make_the_whole(mixed, kind, parts):
    sampler = _sampler(mixed, objective=OBJECTIVE, kind=kind, depth=4)
    whole = sampler.batch(5)
    slices = [sampler.batch(5, part, parts) for part in range(parts)]

    assert [chain for piece in slices for chain in _chains(piece)] == _chains(whole)
    assert [token for piece in slices for token in _compared_tokens(piece)] == _compared_tokens(
        whole
    )
    for name in ("initial_target", "future", "future_length"):
        pieces = [getattr(piece, name) for piece in slices]
        assert torch.equal(torch.cat(pieces), getattr(whole, name))
    if kind == "segments":
        assert torch.equal(torch.cat([piece.noise for piece in slices]), whole.noise)


def test_a_batch_is_a_function_of_seed_and_step(mixed):
    sampler = _sampler(mixed, objective=OBJECTIVE, depth=4)
    sampler.batch(0)
    once, again = sampler.batch(7), _sampler(mixed, objective=OBJECTIVE, depth=4).batch(7)
    other, later = _sampler(mixed, seed=1, objective=OBJECTIVE, depth=4).batch(7), sampler.batch(8)

    for name in tensor_fields(once):
        assert torch.equal(getattr(once, name), getattr(again, name)), name
    assert _chains(other) != _chains(once)
    assert not torch.equal(later.noise[:8], once.noise[:8])
