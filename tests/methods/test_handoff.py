"""The hand-off: the encoder as its own decoder, against a loop over rows and anchors."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import encoder_config, rnn_config, write_keys_values, write_stream
from smtkit import IGNORE
from smtkit.config import ExtractLabelsConfig, TrainEncoderConfig
from smtkit.corpus.windows import TextWindows, WindowReader, open_windows
from smtkit.errors import UsageError
from smtkit.methods.predictive_state import PredictiveState, TeacherSampler
from smtkit.networks.architecture import Architecture
from smtkit.networks.teacher import Teacher
from smtkit.stages import extract_labels, train_encoder, train_rnn
from smtkit.storage.artifact import Artifact

WINDOW = 16


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _config(**objective: Any) -> TrainEncoderConfig:
    settings = {"future_length": 4, "anchors": 2, "dynamics_positions": 6, **objective}
    return encoder_config(
        encoder={"memory": "gated", "layers": 1},
        decoder={"kind": "handoff", "width": 128, "layers": 1, "heads": 4},
        cell={"normalize": "none"},
        objective={**settings, "dynamics_start": 0, "dynamics_ramp": 0},
    )


def _text(directory: Path) -> TextWindows:
    tokens = torch.randint(257, (100,)).tolist()
    return TextWindows(write_stream(directory, [[tokens]]), WINDOW, lookahead=WINDOW)


def _rows(directory: Path) -> WindowReader:
    write_keys_values(directory / "tokens")
    return open_windows(Artifact.open(directory / "tokens", "tokens"), "train", None, 12)


def _method(config: TrainEncoderConfig, windows: WindowReader) -> PredictiveState:
    teacher = Teacher(Architecture.of_teacher(config, 257, windows.window)).double()
    return PredictiveState(teacher, config.objective)


def _sampler(config: TrainEncoderConfig, windows: WindowReader) -> TeacherSampler:
    size = config.training.batch_size
    return TeacherSampler(windows, config.objective, batch_size=size, seed=3, handoff=True)


@pytest.mark.parametrize("future", [4, "rest"])
@pytest.mark.parametrize("own", [0.0, 1.0])
@pytest.mark.parametrize("data", [_text, _rows])
def test_terms_are_those_of_a_loop_over_rows_and_anchors(tmp_path, data, own, future):
    config = _config(own_memory=own, future_length=future)
    windows = data(tmp_path)
    method, batch = _method(config, windows), _sampler(config, windows).batch(0)
    method.observe(0, {})
    sums, counts = method.losses(batch), method.counts(batch)

    teacher, nll, error, answers, transitions = method.network, [], [], [], 0
    for row in range(len(batch.tokens)):
        tokens = batch.tokens[row : row + 1]
        memory = teacher.encoder.encode(tokens)
        pairs = [
            (memory[0, i], memory[0, i + 1], int(tokens[0, i]))
            for i in batch.dynamics_positions[row]
        ]
        labels = batch.dynamics_targets[row].tolist()
        for a, anchor in enumerate(batch.anchors[row].tolist()):
            start = memory[:, anchor]
            if own:
                start = teacher.encoder.empty_memory()[None]
                for i in range(anchor):
                    start = teacher.step(start, tokens[:, i])
            future_tokens = batch.future[row, a]
            after = teacher.encoder.encode(future_tokens[None], start)[0]
            for i, target in enumerate(batch.future_targets[row, a].tolist()):
                if target != IGNORE:
                    nll.append(-teacher.read(after[i : i + 1])[0].log_softmax(-1)[target])
            for i in batch.handoff_positions[row, a].tolist():
                pairs.append((after[i], after[i + 1], int(future_tokens[i])))
                labels.append(int(batch.future_targets[row, a, i + 1]))
        for (before, expected, token), label in zip(pairs, labels, strict=True):
            predicted = teacher.step(before[None], torch.tensor([token]))
            error.append((predicted[0] - expected).square().mean())
            transitions += 1
            if label != IGNORE:
                answers.append(-teacher.read(predicted)[0].log_softmax(-1)[label])

    assert counts["decoding"] == len(nll)
    assert counts["dynamics"] == transitions
    assert counts["readout"] == len(answers)
    assert math.isclose(sums["decoding"].item(), sum(nll).item(), rel_tol=1e-6)
    assert math.isclose(sums["dynamics"].item(), sum(error).item(), rel_tol=1e-6)
    assert math.isclose(sums["readout"].item(), sum(answers).item(), rel_tol=1e-6)


@pytest.mark.parametrize("own", [0.0, 1.0])
def test_what_follows_a_cut_trains_the_memory_at_the_cut(tmp_path, own):
    """Also where the value is the cell's: then the cell itself has no gradient of decoding."""
    config = _config(own_memory=own)
    windows = _text(tmp_path)
    method, sampler = _method(config, windows), _sampler(config, windows)
    method.observe(0, {})
    method.losses(sampler.batch(0))["decoding"].backward()

    # The empty memory is read by the pass before the cut alone.
    assert method.network.encoder.initial.grad.abs().sum() > 0
    assert all(p.grad is None or not p.grad.any() for p in method.network.transition.parameters())


def test_validation_hands_over_the_encoders_memory(tmp_path):
    windows = _text(tmp_path)
    sums = []
    for own in (0.0, 1.0):
        torch.manual_seed(0)
        config = _config(own_memory=own)
        method = _method(config, windows)
        method.observe(0, {})
        method.network.eval()
        sums.append(method.losses(_sampler(config, windows).batch(0))["decoding"].item())
    assert sums[0] == sums[1]


@pytest.mark.parametrize("data", [_text, _rows])
@pytest.mark.parametrize("future", [4, "rest"])
def test_a_cut_leaves_a_token_to_read_and_transitions_lie_after_it(tmp_path, data, future):
    windows = data(tmp_path)
    sampler = _sampler(_config(future_length=future), windows)
    for step in range(20):
        batch = sampler.batch(step)
        assert (batch.anchors >= 0).all()
        assert (batch.anchors < batch.length[:, None]).all()
        read = batch.length[:, None, None] - batch.anchors[..., None]
        assert (batch.handoff_positions < read).all()
        assert (batch.handoff_positions < batch.future.shape[2]).all()
        if future == "rest":
            assert batch.future.shape[2] == int(batch.length.max()) - int(batch.anchors.min())
            share = batch.anchors / batch.length[:, None]
            assert ((share.max(0).values - share.min(0).values) < 1 / batch.length.min()).all()


def test_cuts_do_not_depend_on_how_a_batch_is_divided(tmp_path):
    sampler = _sampler(_config(future_length="rest"), _text(tmp_path))
    parts = [sampler.batch(5, part, 4).anchors for part in range(4)]
    assert (torch.cat(parts) == sampler.batch(5).anchors).all()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"encoder": {"memory": "projection"}}, "needs `encoder.memory` = gated"),
        ({"readout": {"kind": "decoder"}}, "`readout.kind` = mlp"),
        ({"cell": {"normalize": "slot"}}, "set `cell.normalize` = none"),
    ],
)
def test_parts_that_do_not_fit_are_refused(settings, named):
    config = _config().model_dump(exclude_unset=True)
    for section, values in settings.items():
        config[section] = {**config.get(section, {}), **values}
    with pytest.raises(UsageError) as caught:
        Teacher(Architecture.of_teacher(TrainEncoderConfig(**config), 257, WINDOW))
    assert named in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"readout": {"kind": "decoder"}}, "`readout.kind` = decoder"),
        ({"objective": {"kl_weight": 1.0}}, "`objective.kl_weight`"),
    ],
)
def test_an_rnn_cannot_use_the_decoder_that_the_teacher_lacks(parity, tmp_path, settings, named):
    encoder, labels = tmp_path / "encoder", tmp_path / "labels"
    teacher = _config().model_copy(update={"data": encoder_config(data={"window": None}).data})
    train_encoder.run(teacher, parity, encoder)
    extract_labels.run(ExtractLabelsConfig(), encoder, parity, labels)
    with pytest.raises(UsageError) as caught:
        train_rnn.run(rnn_config(**settings), labels, tmp_path / "rnn")
    assert f"{caught.value}".startswith(f"{named}: the teacher of these labels has no decoder")
