"""Norms of gradients over distance, against networks whose Jacobian is known and against autograd
one pair at a time."""

import pytest
import torch
import torch.nn.functional as F

from smtkit import IGNORE
from smtkit.config import CellConfig, DecoderConfig
from smtkit.evaluation import gradient_paths
from smtkit.evaluation.gradient_paths import (
    curve,
    distances_up_to,
    gradient_norms,
    through_cell,
    through_decoder,
)
from smtkit.networks.cells import build_cell
from smtkit.networks.decoder import FutureDecoder
from smtkit.networks.heads import MlpReadout

ROWS, LENGTH, SLOTS, WIDTH, VOCABULARY = 3, 9, 2, 4, 5
EVERY = ROWS * (LENGTH + 1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def memory():
    return torch.randn(ROWS, LENGTH + 1, SLOTS, WIDTH)


@pytest.fixture
def tokens():
    return torch.randint(VOCABULARY, (ROWS, LENGTH))


@pytest.fixture
def targets():
    return torch.randint(VOCABULARY, (ROWS, LENGTH + 1))


def _decoder() -> FutureDecoder:
    return FutureDecoder(DecoderConfig(width=8, layers=1, heads=2), VOCABULARY, SLOTS, WIDTH)


def _cell_and_readout():
    cell = build_cell(CellConfig(width=8, layers=1), VOCABULARY, SLOTS, WIDTH)
    return cell, MlpReadout(VOCABULARY, SLOTS, WIDTH, None)


def _paths(name):
    """The path, and the nll of one target the slow way."""
    if name == "decoder":
        decode = _decoder()

        def nll(memory, tokens, target):
            logits = decode(memory[None], tokens[None])[0, len(tokens)]
            return -logits.log_softmax(-1)[target]

        return through_decoder(decode), nll
    cell, readout = _cell_and_readout()

    def nll(memory, tokens, target):
        memory = memory[None]
        for token in tokens:
            memory = cell(memory, token[None])
        return -readout(memory)[0].log_softmax(-1)[target]

    return through_cell(cell, readout), nll


@pytest.mark.parametrize("name", ["decoder", "cell"])
def test_a_curve_is_the_mean_of_autograd_on_every_pair(name, memory, tokens, targets):
    targets[torch.rand(targets.shape) < 0.4] = IGNORE
    path, nll = _paths(name)
    points = curve(path, memory, tokens, targets, [0, 1, 2, 5, LENGTH], EVERY)
    for point in points:
        norms = []
        for row in range(ROWS):
            for i in range(LENGTH + 1 - point.distance):
                target = targets[row, i + point.distance]
                if target == IGNORE:
                    continue
                read = memory[row, i].clone().requires_grad_()
                nll(read, tokens[row, i : i + point.distance], target).backward()
                norms.append(float(read.grad.square().sum().sqrt()))
        assert point.samples == len(norms)
        assert point.norm == pytest.approx(sum(norms) / len(norms), rel=1e-4)
    asked = [d for d in (0, 1, 2, 5, LENGTH) if (targets[:, d:] != IGNORE).any()]
    assert [point.distance for point in points] == asked


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5])
def test_a_cell_that_scales_its_memory_scales_gradients_by_the_distance(
    factor, memory, tokens, targets
):
    """With a linear readout of a memory that is zero, d nll / d memory is the same everywhere but
    for a^d."""
    weight = torch.randn(SLOTS * WIDTH, VOCABULARY)
    path = through_cell(lambda memory, token: factor * memory, lambda m: m.flatten(1) @ weight)
    targets[:] = 2
    points = curve(path, 0 * memory, tokens, targets, range(LENGTH + 1), EVERY)
    uniform = torch.full((VOCABULARY,), 1 / VOCABULARY) - F.one_hot(torch.tensor(2), VOCABULARY)
    at_zero = float((weight @ uniform).norm())

    assert [point.norm for point in points] == pytest.approx(
        [at_zero * factor**distance for distance in range(LENGTH + 1)], rel=1e-5
    )


def test_norms_far_below_what_float32_can_square_are_measured(memory, tokens, targets):
    weight = torch.randn(SLOTS * WIDTH, VOCABULARY)
    path = through_cell(lambda memory, token: 1e-4 * memory, lambda m: m.flatten(1) @ weight)
    near, far = (curve(path, memory, tokens, targets, [d], EVERY)[0].norm for d in (0, 7))

    assert 0 < far < 1e-25
    assert far / near == pytest.approx(1e-28, rel=0.5)


@pytest.mark.parametrize(
    "decode",
    [
        lambda memory, future: torch.zeros(len(future), future.shape[1] + 1, VOCABULARY),
        lambda memory, future: (0 * memory.sum()).expand(len(future), future.shape[1] + 1, 5),
    ],
)
def test_a_decoder_that_ignores_the_memory_has_no_gradient(decode, memory, tokens, targets):
    points = curve(through_decoder(decode), memory, tokens, targets, [0, 1, 4], EVERY)

    assert [point.norm for point in points] == [0, 0, 0]


def test_a_decoder_with_weights_that_ignores_the_memory_has_no_gradient(memory, tokens, targets):
    embedding = torch.nn.Embedding(VOCABULARY, VOCABULARY)
    path = through_decoder(lambda memory, future: embedding(future))

    assert curve(path, memory, tokens, targets, [2], EVERY)[0].norm == 0


def test_how_many_pairs_are_computed_at_once_changes_nothing(monkeypatch, memory, tokens, targets):
    path, _ = _paths("decoder")
    whole = curve(path, memory, tokens, targets, [0, 3], EVERY)
    monkeypatch.setattr(gradient_paths, "_TOKENS", 5)
    pieces = curve(path, memory, tokens, targets, [0, 3], EVERY)

    assert [p.norm for p in pieces] == pytest.approx([p.norm for p in whole], rel=1e-5)


def test_pairs_are_drawn_by_the_seed(memory, tokens, targets):
    path, _ = _paths("cell")
    first, again, other = (curve(path, memory, tokens, targets, [1], 4, seed) for seed in (0, 0, 1))

    assert first == again
    assert first != other
    assert first[0].samples == 4


def test_nothing_asked_is_no_point(memory, tokens, targets):
    path, _ = _paths("cell")

    assert curve(path, memory, tokens, torch.full_like(targets, IGNORE), [0, 1], 4) == []


def test_frozen_networks_and_no_grad_are_no_hindrance(memory, tokens, targets):
    path, _ = _paths("cell")
    expected = gradient_norms(path, memory[:, 0], tokens[:, :2], targets[:, 2])
    with torch.no_grad():
        found = gradient_norms(path, memory[:, 0], tokens[:, :2], targets[:, 2])

    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("longest", "expected"),
    [
        (0, [0]),
        (1, [0, 1]),
        (2, [0, 1, 2]),
        (5, [0, 1, 2, 3, 4, 5]),
        (16, [0, 1, 2, 3, 4, 6, 8, 12, 16]),
        (20, [0, 1, 2, 3, 4, 6, 8, 12, 16, 20]),
    ],
)
def test_distances_are_as_many_in_every_octave(longest, expected):
    assert distances_up_to(longest) == expected
