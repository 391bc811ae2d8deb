"""Sufficiency against loops over pairs of a memory and a target, and in closed form."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import (
    WINDOW,
    Command,
    Recorder,
    arrow_columns,
    encoder_config,
    shards,
    validation_records,
)
from evaluations import evaluated, nll_of
from smtkit import IGNORE
from smtkit.config import ExtractLabelsConfig, TrainEncoderConfig
from smtkit.corpus.windows import Windows, open_windows
from smtkit.evaluation import sufficiency
from smtkit.evaluation.sufficiency import PairSampler, Sufficiency, draw_pairs, offsets_up_to
from smtkit.networks.architecture import Architecture
from smtkit.networks.encoders import CausalEncoder
from smtkit.networks.loading import load_teacher
from smtkit.networks.teacher import Teacher
from smtkit.stages import extract_labels, train_encoder
from smtkit.storage.artifact import Artifact

VOCABULARY = 7
HANDOFF = {
    "encoder": {"memory": "gated"},
    "decoder": {"kind": "handoff", "width": 128, "layers": 1, "heads": 4},
    "cell": {"normalize": "none"},
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _windows(*lengths: int, width: int = 20, missing: float = 0.3) -> Windows:
    random = np.random.default_rng(0)
    tokens = random.integers(0, VOCABULARY, (len(lengths), width))
    targets = random.integers(0, VOCABULARY, (len(lengths), width + 1))
    targets[random.random(targets.shape) < missing] = IGNORE
    for row, length in enumerate(lengths):
        tokens[row, length:], targets[row, length + 1 :] = 0, IGNORE
    return Windows(tokens, targets, np.array(lengths))


def _teacher(config: TrainEncoderConfig, window: int = WINDOW) -> Teacher:
    teacher = Teacher(Architecture.of_teacher(config, VOCABULARY, window))
    return teacher.eval().requires_grad_(False)


def _measured(teacher, future, window, windows):
    """`Sufficiency.by_offset` of all windows, added two at a time."""
    measure = Sufficiency(teacher, future, window, len(windows.tokens))
    for first in range(0, len(windows.tokens), 2):
        some = slice(first, first + 2)
        part = Windows(windows.tokens[some], windows.targets[some], windows.length[some])
        memory = teacher.encoder(torch.from_numpy(part.tokens))
        measure.add(memory, part, np.arange(first, first + len(part.tokens)))
    return {record["offset"]: record for record in measure.by_offset()}


@pytest.mark.parametrize(
    ("future", "window", "expected"),
    [
        (0, 16, [0]),
        (1, 16, [0, 1]),
        (12, 16, [0, 1, 2, 4, 8, 12]),
        (16, 128, [0, 1, 2, 4, 8, 16]),
        (40, 16, [0, 1, 2, 4, 8, 15]),
        ("rest", 16, [0, 1, 2, 4, 8]),
        ("rest", 17, [0, 1, 2, 4, 8, 16]),
        ("rest", 1, [0]),
    ],
)
def test_offsets_are_powers_of_two_that_the_decoder_reads(future, window, expected):
    assert offsets_up_to(future, window) == expected


def test_pairs_are_targets_with_a_memory_before_them():
    windows = _windows(20, 9, 5, 1)
    offsets = [0, 1, 4, 8]
    batch = draw_pairs(windows, np.arange(4), offsets, 3, 1, 15)
    for row, length in enumerate(windows.length.tolist()):
        for number, offset in enumerate(offsets):
            last = min(length, 15)
            eligible = {i for i in range(offset + 1, last + 1) if windows.targets[row, i] != IGNORE}
            found = [
                (int(position), int(target))
                for position, target in zip(
                    batch.positions[row, number], batch.targets[row, number], strict=True
                )
                if target != IGNORE
            ]
            assert len(found) == len(set(found)) == min(3, len(eligible))
            assert {position for position, _ in found} <= eligible
            assert all(windows.targets[row, position] == target for position, target in found)


def test_all_targets_are_drawn_equally_often():
    windows = _windows(*[20] * 4000, missing=0)
    batch = draw_pairs(windows, np.arange(4000), [4], 2, 1, 20)
    counts = np.bincount(batch.positions.flatten(), minlength=21)
    assert (counts[:5] == 0).all()
    assert counts[5:] == pytest.approx(8000 / 16, rel=0.2)


@pytest.mark.parametrize("changes", [{}, HANDOFF, {"readout": {"kind": "decoder"}}])
@pytest.mark.parametrize("future", [3, "rest"])
def test_every_pair_is_one_pass_of_encoder_and_decoder(monkeypatch, changes, future):
    monkeypatch.setattr(sufficiency, "_PAIRS", 200)  # more than there are
    monkeypatch.setattr(sufficiency, "_TOKENS", 17)
    teacher = _teacher(encoder_config(objective={"future_length": future}, **changes), 15)
    windows = _windows(20, 9, 15, 2, 14)
    found = _measured(teacher, future, 15, windows)

    assert list(found) == offsets_up_to(future, 15)
    for offset, record in found.items():
        decoded, full = [], []
        for row, length in enumerate(windows.length.tolist()):
            tokens = torch.from_numpy(windows.tokens[row])
            for at in range(offset + 1, min(length, 15) + 1):
                target = int(windows.targets[row, at])
                if target == IGNORE:
                    continue
                memory = teacher.encoder(tokens[None, : at - offset])[:, -1]
                logits = teacher.decode(memory, tokens[None, at - offset : at])
                decoded.append(nll_of(logits[0, offset], target))
                logits = teacher.read(teacher.encoder(tokens[None, :at])[:, -1])
                full.append(nll_of(logits[0], target))
        assert record["targets"] == len(decoded)
        assert record["nll"] == pytest.approx(np.mean(decoded), rel=1e-5)
        assert record["full_context_nll"] == pytest.approx(np.mean(full), rel=1e-5)
        gap = np.mean(decoded) - np.mean(full)
        assert record["gap"] == pytest.approx(gap, abs=1e-5)


@pytest.mark.parametrize("changes", [HANDOFF, {"readout": {"kind": "decoder"}}])
def test_at_offset_zero_a_readout_that_is_the_decoder_has_no_gap(changes):
    found = _measured(_teacher(encoder_config(**changes)), 4, WINDOW, _windows(16, 16, 9))

    assert found[0]["gap"] == 0
    assert abs(found[4]["gap"]) > 1e-4


class _Bigrams:
    """A teacher whose memory is the last token; logits are those of a table of bigrams."""

    def __init__(self, forgets: bool) -> None:
        self.table = torch.randn(VOCABULARY, VOCABULARY)
        self.architecture = SimpleNamespace(shape=(VOCABULARY, 1, 1))
        self._forgets = forgets

    def encoder(self, tokens):
        first = torch.zeros(len(tokens), 1, dtype=tokens.dtype)
        return torch.cat((first, tokens), dim=1)[:, :, None, None].float()

    def read(self, memory):
        return self.table[memory.flatten().long()]

    def decode(self, memory, future):
        read = torch.cat((memory[:, 0].long(), future), dim=1)
        return self.table[read] * (not self._forgets)


def test_a_predictive_state_has_no_gap_at_any_offset():
    teacher = _Bigrams(forgets=False)
    found = _measured(teacher, "rest", 20, _windows(20, 20, 13))

    assert [record["gap"] for record in found.values()] == pytest.approx([0] * 6, abs=1e-6)


def test_a_memory_from_which_nothing_is_decoded_has_the_gap_to_uniform():
    teacher = _Bigrams(forgets=True)
    found = _measured(teacher, "rest", 20, _windows(20, 20, 13))

    for record in found.values():
        assert record["nll"] == pytest.approx(math.log(VOCABULARY), rel=1e-6)
        assert record["gap"] == pytest.approx(math.log(VOCABULARY) - record["full_context_nll"])


def _all_rows(tokens):
    columns = arrow_columns(shards(tokens, "test"))
    return list(zip(columns["tokens"], columns["targets"], strict=True))


@torch.no_grad()
def _assert_all_pairs(evaluation, teacher, rows, offsets):
    """Compares the evaluation with all pairs of rows (tokens, targets)."""
    assert [record["offset"] for record in evaluation["sufficiency"]] == offsets
    for record in evaluation["sufficiency"]:
        offset, gaps = record["offset"], []
        for tokens, targets in rows:
            memory = teacher.encoder(torch.tensor([tokens]))[0]
            for at in range(offset + 1, len(targets)):
                if targets[at] == IGNORE:
                    continue
                between = torch.tensor([tokens[at - offset : at]], dtype=torch.int64)
                logits = teacher.decode(memory[at - offset][None], between)[0, -1]
                full = teacher.read(memory[at][None])[0]
                gaps.append(nll_of(logits, targets[at]) - nll_of(full, targets[at]))
        assert record["targets"] == len(gaps)
        assert record["gap"] == pytest.approx(np.mean(gaps), abs=1e-5)


def test_text_is_measured_within_the_window_of_training(pipeline, windows, tmp_path, monkeypatch):
    monkeypatch.setattr(sufficiency, "_PAIRS", WINDOW * len(windows))
    evaluation = evaluated(pipeline, tmp_path)
    teacher = load_teacher(Artifact.open(pipeline.encoder))
    rows = [(window[:WINDOW], window[: WINDOW + 1]) for window in windows]

    _assert_all_pairs(evaluation, teacher, rows, [0, 1, 2, 4])


def test_rows_of_a_task_are_measured_to_their_end(task_pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(sufficiency, "_PAIRS", 10_000)
    evaluation = evaluated(task_pipeline, tmp_path)
    teacher = load_teacher(Artifact.open(task_pipeline.encoder))

    _assert_all_pairs(evaluation, teacher, _all_rows(task_pipeline.tokens), [0, 1, 2, 4, 8])


def test_batches_do_not_change_which_pairs_are_measured(task_pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(sufficiency, "_PAIRS", 20)
    one, two = (
        evaluated(task_pipeline, tmp_path / str(size), batch_size=size)["sufficiency"]
        for size in (3, 20)
    )
    assert [record["targets"] for record in one] == [record["targets"] for record in two]
    assert [r["gap"] for r in one] == pytest.approx([r["gap"] for r in two], abs=1e-6)


def test_without_a_teacher_there_is_no_sufficiency(pipeline, tmp_path):
    assert evaluated(pipeline, tmp_path, encoder=None)["sufficiency"] is None
    assert [entry.logical_name for entry in Artifact.open(tmp_path).manifest.files] == [
        "evaluation.json"
    ]


def test_the_command_shows_a_table_and_draws_a_figure(task_pipeline, command: Command, tmp_path):
    pytest.importorskip("matplotlib")
    arguments = ["--tokens", task_pipeline.tokens, "--encoder", task_pipeline.encoder]
    result = command("eval", task_pipeline.rnn, *arguments, "--out", tmp_path)
    artifact = Artifact.open(tmp_path)

    assert "sufficiency of the teacher's memory, nats per target" in result.stdout
    lines = [line.split() for line in result.stdout.splitlines()]
    for record in artifact.manifest.statistics["sufficiency"]:
        numbers = (f"{record[key]:.3f}" for key in ("nll", "full_context_nll", "gap"))
        assert [str(record["offset"]), f"{record['targets']:,}", *numbers] in lines
    figure = artifact.verified("sufficiency.svg").read_text(encoding="utf-8")
    assert "<svg" in figure
    assert "with full context" in figure


@pytest.mark.parametrize("changes", [{}, {"encoder": {"kind": "bidirectional"}}, HANDOFF])
def test_validation_measures_one_pair_per_window(pipeline, tmp_path, changes):
    train_encoder.run(encoder_config(**changes), pipeline.tokens, tmp_path)
    record = validation_records(tmp_path)[-1]
    teacher = load_teacher(Artifact.open(tmp_path))
    rows = open_windows(Artifact.open(pipeline.tokens), "validation", WINDOW)
    sampler = PairSampler(rows, batch_size=8, seed=0, by_length=False, offsets=[1, 4])
    decoded: dict[int, list[float]] = {1: [], 4: []}
    gaps: dict[int, list[float]] = {1: [], 4: []}
    for step in range(min(16, rows.per_epoch) // 8):
        batch = sampler.batch(step)
        for row, tokens in enumerate(batch.tokens):
            for number, offset in enumerate([1, 4]):
                at, target = int(batch.positions[row, number]), int(batch.targets[row, number])
                assert at == len(tokens) or int(tokens[at]) == target
                memory = teacher.encoder(tokens[None, : at - offset])[:, -1]
                logits = teacher.decode(memory, tokens[None, at - offset : at])[0, -1]
                decoded[offset].append(nll_of(logits, target))
                full = teacher.read(teacher.encoder(tokens[None, :at])[:, -1])[0]
                gaps[offset].append(decoded[offset][-1] - nll_of(full, target))

    names = {name for name in record if name.startswith("sufficiency")}
    assert names == {f"sufficiency_{name}_{d}" for name in ("nll", "gap") for d in (1, 4)}
    for offset in (1, 4):
        assert record[f"sufficiency_nll_{offset}"] == pytest.approx(
            np.mean(decoded[offset]), rel=1e-4
        )
        assert record[f"sufficiency_gap_{offset}"] == pytest.approx(np.mean(gaps[offset]), abs=1e-4)


def _warnings(tokens, out, **changes) -> list[str]:
    recorder = Recorder()
    train_encoder.run(encoder_config(**changes), tokens, out, progress=recorder)
    return recorder.warnings


def test_a_readout_that_looks_back_is_warned_of(pipeline, tmp_path):
    """The dense term alone trains the encoder; nothing trains the decoder to read its memory."""
    warnings = _warnings(
        pipeline.tokens,
        tmp_path,
        objective={"decoding_weight": 1e-9},
        training={"max_steps": 100, "learning_rate": 1e-2},
    )
    (warning,) = (line for line in warnings if "looks back" in line)
    validated = Artifact.open(tmp_path).manifest.statistics["validation"]
    nll = np.mean([validated[f"sufficiency_nll_{d}"] for d in (1, 4)])
    full = nll - np.mean([validated[f"sufficiency_gap_{d}"] for d in (1, 4)])
    assert f"decoding is at {nll:.3g} nats" in warning
    assert f"with full context at {full:.3g}" in warning
    assert "`decoder.kind` = handoff" in warning


def test_a_run_that_ended_before_dynamics_is_warned_of(pipeline, tmp_path):
    short = {"max_steps": 2}
    for start in (2, "auto"):
        objective = {"dynamics_start": start}
        warnings = _warnings(
            pipeline.tokens, tmp_path / str(start), objective=objective, training=short
        )
        (warning,) = (line for line in warnings if "before dynamics began" in line)
        assert f"`objective.dynamics_start` = {start}" in warning
    warnings = _warnings(
        pipeline.tokens, tmp_path / "1", objective={"dynamics_start": 1}, training=short
    )
    assert not any("before dynamics began" in line for line in warnings)
    shares = {"dynamics_start": "10%", "dynamics_ramp": "50%"}
    warnings = _warnings(pipeline.tokens, tmp_path / "half", objective=shares, training=short)
    assert not any("before dynamics began" in line for line in warnings)


def test_a_teacher_that_was_warned_of_is_warned_of_again_when_labels_are_made(pipeline, tmp_path):
    warnings = _warnings(pipeline.tokens, tmp_path / "encoder", training={"max_steps": 2})
    assert len(warnings) == 2  # before dynamics began, and near the unigram
    assert Artifact.open(tmp_path / "encoder").manifest.statistics["warnings"] == warnings
    recorder = Recorder()
    paths = (tmp_path / "encoder", pipeline.tokens, tmp_path / "labels")
    extract_labels.run(ExtractLabelsConfig(max_windows=4), *paths, progress=recorder)
    assert recorder.warnings[:2] == [f"{tmp_path / 'encoder'}: {line}" for line in warnings]


def test_labels_that_hardly_differ_are_warned_of(pipeline, tmp_path, monkeypatch):
    """Those of a healthy teacher are not; the limits are those of memories in training."""

    def warned(out):
        recorder = Recorder()
        paths = (pipeline.encoder, pipeline.tokens, tmp_path / out)
        extract_labels.run(ExtractLabelsConfig(max_windows=40), *paths, progress=recorder)
        return [line for line in recorder.warnings if "hardly differ" in line]

    assert warned("healthy") == []
    encode = CausalEncoder.encode
    monkeypatch.setattr(
        CausalEncoder, "encode", lambda self, tokens: 1 + 1e-3 * encode(self, tokens)
    )
    (warning,) = warned("collapsed")
    assert "the labels hardly differ from each other: uniformity is" in warning
    assert "`objective.uniformity_weight`" in warning


def test_a_decoder_near_the_unigram_is_warned_of(pipeline, tmp_path):
    short = _warnings(pipeline.tokens, tmp_path / "short")
    assert any(line.startswith("decoding is at") for line in short)
    long = _warnings(
        pipeline.tokens, tmp_path / "long", training={"max_steps": 100, "learning_rate": 1e-2}
    )
    assert not any(line.startswith("decoding is at") for line in long)


def test_without_decoding_there_is_nothing_to_warn_of(pipeline, tmp_path):
    assert _warnings(pipeline.tokens, tmp_path, objective={"decoding_weight": 0.0}) == []
