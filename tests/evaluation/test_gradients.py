"""Norms of gradients over distance, against networks with a closed-form Jacobian and against
autograd one pair at a time."""

import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import (
    WINDOW,
    Command,
    Recorder,
    arrow_columns,
    evaluate_config,
    shards,
    split_tokens,
)
from evaluations import evaluated
from smtkit import IGNORE
from smtkit.config import CellConfig, DecoderConfig, TrainRnnConfig
from smtkit.corpus.windows import Windows
from smtkit.evaluation import gradients
from smtkit.evaluation.gradients import (
    curve,
    distances_up_to,
    gradient_norms,
    through_cell,
    through_decoder,
)
from smtkit.evaluation.subject import Subject
from smtkit.networks.decoder import FutureDecoder
from smtkit.networks.heads import MlpReadout
from smtkit.networks.loading import load_rnn, load_teacher
from smtkit.networks.transition import Transition
from smtkit.stages import evaluate, train_rnn
from smtkit.storage.artifact import Artifact

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
    transition = Transition(CellConfig(width=8, layers=1), VOCABULARY, SLOTS, WIDTH)
    return transition, MlpReadout(VOCABULARY, SLOTS, WIDTH, None)


def _paths(name):
    """A path, and a function that computes the nll of one target."""
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
    present = [d for d in (0, 1, 2, 5, LENGTH) if (targets[:, d:] != IGNORE).any()]
    assert [point.distance for point in points] == present


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5])
def test_a_cell_that_scales_its_memory_scales_gradients_by_the_distance(
    factor, memory, tokens, targets
):
    """With a linear readout of a zero memory, every pair has the same gradient times a^d."""
    weight = torch.randn(SLOTS * WIDTH, VOCABULARY)
    path = through_cell(lambda memory, token: factor * memory, lambda m: m.flatten(1) @ weight)
    targets[:] = 2
    points = curve(path, 0 * memory, tokens, targets, range(LENGTH + 1), EVERY)
    uniform = torch.full((VOCABULARY,), 1 / VOCABULARY) - F.one_hot(torch.tensor(2), VOCABULARY)
    at_zero = float((weight @ uniform).norm())

    assert [point.norm for point in points] == pytest.approx(
        [at_zero * factor**distance for distance in range(LENGTH + 1)], rel=1e-5
    )


def test_norms_whose_square_underflows_float32_are_measured(memory, tokens, targets):
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


def test_the_number_of_pairs_computed_at_once_changes_nothing(monkeypatch, memory, tokens, targets):
    path, _ = _paths("decoder")
    whole = curve(path, memory, tokens, targets, [0, 3], EVERY)
    monkeypatch.setattr(gradients, "_TOKENS", 5)
    pieces = curve(path, memory, tokens, targets, [0, 3], EVERY)

    assert [p.norm for p in pieces] == pytest.approx([p.norm for p in whole], rel=1e-5)


def test_pairs_are_drawn_by_the_seed(memory, tokens, targets):
    path, _ = _paths("cell")
    first, again, other = (curve(path, memory, tokens, targets, [1], 4, seed) for seed in (0, 0, 1))

    assert first == again
    assert first != other
    assert first[0].samples == 4


def test_a_distance_without_targets_has_no_point(memory, tokens, targets):
    path, _ = _paths("cell")

    assert curve(path, memory, tokens, torch.full_like(targets, IGNORE), [0, 1], 4) == []


def test_norms_are_computed_for_frozen_networks_under_no_grad(memory, tokens, targets):
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
def test_there_are_two_distances_per_octave(longest, expected):
    assert distances_up_to(longest) == expected


# The stage.


@pytest.fixture(scope="module")
def decay(pipeline, tmp_path_factory) -> tuple[dict, Artifact]:
    out = tmp_path_factory.mktemp("gradients")
    return evaluated(pipeline, out, gradients=True), Artifact.open(out)


def test_both_paths_are_measured_before_and_after_training(decay):
    records = decay[0]["gradients"]
    assert [(record["path"], record["weights"]) for record in records] == [
        ("decoder", "trained"),
        ("cell", "trained"),
        ("decoder", "initial"),
        ("cell", "initial"),
    ]
    for record in records:
        furthest = 4 if record["path"] == "decoder" else WINDOW
        distances = [point["distance"] for point in record["curve"]]
        assert distances == [d for d in (0, 1, 2, 3, 4, 6, 8, 12, 16) if d <= furthest]
        assert all(point["norm"] > 0 for point in record["curve"])
        assert record["fits"]["better"] in ("power law", "exponential", "flat")
        assert record["fits"]["left_out"] == 0
    assert records[0]["curve"] != records[2]["curve"]
    assert records[1]["curve"] != records[3]["curve"]


def test_gradients_at_distance_zero_are_those_of_the_readout(pipeline, decay):
    """The mean over a sample is within four standard errors of the mean over all positions."""
    network = load_rnn(Artifact.open(pipeline.rnn))
    tokens = split_tokens(pipeline.tokens, "test")
    count = len(tokens) // WINDOW
    chosen = np.linspace(0, count - 1, min(count, 256)).round().astype(int)
    pairs, norms = 0, []
    for start in chosen * WINDOW:
        window = tokens[start : start + WINDOW + 1]
        memories = network.rollout(torch.tensor([window[:WINDOW]]))[0]
        pairs += len(window)
        for memory, target in zip(memories, window, strict=False):
            read = memory.detach()[None].requires_grad_()
            (-network.readout(read)[0].log_softmax(-1)[target]).backward()
            norms.append(float(read.grad.norm()))
    found = decay[0]["gradients"][1]["curve"][0]

    assert found["samples"] == min(pairs, 256)
    deviation = 4 * np.std(norms) / math.sqrt(found["samples"])
    assert found["norm"] == pytest.approx(np.mean(norms), abs=deviation)


def test_initial_weights_have_a_fixed_seed_and_leave_the_generator_alone(pipeline):
    network = load_rnn(Artifact.open(pipeline.rnn))
    teacher = load_teacher(Artifact.open(pipeline.encoder))
    before = torch.get_rng_state()
    pairs = []
    for _ in range(2):
        initial = gradients.with_initial_weights(Subject(network, teacher, 4))
        pairs.append((initial.network, initial.teacher))
    one, two = pairs

    assert torch.equal(torch.get_rng_state(), before)
    for first, second, trained in zip(one, two, (network, teacher), strict=True):
        states = first.state_dict(), second.state_dict(), trained.state_dict()
        assert states[0].keys() == states[2].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])
    assert torch.equal(one[0].empty_memory, network.empty_memory)


def test_the_figure_is_part_of_the_artifact(decay):
    pytest.importorskip("matplotlib")
    figure = decay[1].verified("gradients.svg").read_text(encoding="utf-8")

    assert "<svg" in figure
    assert "through the decoder (SMT), trained" in figure
    assert "through d steps of the cell (BPTT), at initialisation" in figure


def test_without_matplotlib_there_is_a_warning_and_no_figure(task_pipeline, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    recorder = Recorder()
    evaluate.run(
        evaluate_config(gradients=True),
        task_pipeline.rnn,
        task_pipeline.tokens,
        tmp_path,
        encoder=task_pipeline.encoder,
        progress=recorder,
    )

    assert recorder.warnings == [
        "no sufficiency.svg, gradients.svg: matplotlib is not installed "
        "(pip install 'smtkit[figures]')"
    ]
    assert [entry.logical_name for entry in Artifact.open(tmp_path).manifest.files] == [
        "evaluation.json"
    ]


def test_gradients_of_task_rows_are_of_their_targets(task_pipeline, tmp_path):
    evaluation = evaluated(task_pipeline, tmp_path, gradients=True)
    targets = arrow_columns(shards(task_pipeline.tokens, "test"))["targets"]
    for record in evaluation["gradients"]:
        for point in record["curve"]:
            count = sum(t != IGNORE for row in targets for t in row[point["distance"] :])
            assert point["samples"] == min(count, 256)


def _mean_norm(encode, nll, tokens: torch.Tensor, targets: torch.Tensor, distance: int) -> float:
    """Mean over all pairs, one at a time, of memories that `encode` makes of each row."""
    norms = []
    for row, expected in zip(tokens, targets, strict=True):
        memories = encode(row[None])[0].detach()
        for i in range(len(memories) - distance):
            if expected[i + distance] != IGNORE:
                memory = memories[i : i + 1].clone().requires_grad_()
                nll(memory, row[None, i : i + distance], expected[i + distance]).backward()
                norms.append(float(memory.grad.norm()))
    return float(np.mean(norms))


@pytest.mark.parametrize("path", ["cell", "decoder"])
def test_the_cell_starts_from_the_rollout_and_the_decoder_from_the_teacher(pipeline, path):
    """Windows are few enough that all pairs are used; memories of the other network give another
    norm."""
    network = load_rnn(Artifact.open(pipeline.rnn))
    teacher = load_teacher(Artifact.open(pipeline.encoder))
    stream = split_tokens(pipeline.tokens, "test")
    targets = torch.tensor([stream[WINDOW * n :][: WINDOW + 1] for n in range(3)])
    tokens = targets[:, :WINDOW]
    read = Windows(tokens.numpy(), targets.numpy(), np.full(3, WINDOW))
    subject = Subject(network, teacher, future_length=4)
    records = gradients.measure(subject, read, Recorder())

    def through_cell(memory, between, target):
        for token in between.unbind(1):
            memory = network.step(memory, token)
        return -network.readout(memory)[0].log_softmax(-1)[target]

    def through_decoder(memory, between, target):
        return -teacher.decoder(memory, between)[0, -1].log_softmax(-1)[target]

    nll = through_cell if path == "cell" else through_decoder
    right, wrong = network.rollout, teacher.encoder
    if path == "decoder":
        right, wrong = wrong, right
    (record,) = (r for r in records if (r["path"], r["weights"]) == (path, "trained"))
    norms = {point["distance"]: point["norm"] for point in record["curve"]}
    for distance in (0, 1, 4):
        expected = _mean_norm(right, nll, tokens, targets, distance)
        assert norms[distance] == pytest.approx(expected, rel=1e-4)
        other = _mean_norm(wrong, nll, tokens, targets, distance)
        assert other != pytest.approx(expected, rel=1e-3)


def test_without_the_teacher_there_is_only_the_path_of_the_cell(pipeline, decay, tmp_path):
    alone = evaluated(pipeline, tmp_path, encoder=None, gradients=True)["gradients"]

    assert [(r["path"], r["weights"]) for r in alone] == [("cell", "trained"), ("cell", "initial")]
    beside = [record for record in decay[0]["gradients"] if record["path"] == "cell"]
    for one, two in zip(alone, beside, strict=True):
        assert [p["distance"] for p in one["curve"]] == [p["distance"] for p in two["curve"]]
        for point, other in zip(one["curve"], two["curve"], strict=True):
            assert point["norm"] == pytest.approx(other["norm"], rel=1e-4)


def test_an_rnn_trained_by_bptt_has_the_path_of_its_cell(command: Command, pipeline, tmp_path):
    config = TrainRnnConfig(
        method="bptt",
        cell={"kind": "gru", "width": 8},
        memory={"slots": 2, "slot_width": 4},
        data={"window": WINDOW},
        training={"batch_size": 8, "max_steps": 2},
    )
    train_rnn.run(config, pipeline.tokens, tmp_path / "rnn")
    arguments = ["eval", tmp_path / "rnn", "--tokens", pipeline.tokens, "--out", tmp_path / "out"]
    result = command(*arguments, "--gradients")

    assert result.code == 0
    assert "cell, trained" in result.stdout
    assert "decoder, trained" not in result.stdout
