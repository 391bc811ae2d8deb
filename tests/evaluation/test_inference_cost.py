"""Time and memory of the next token."""

from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import Recorder, encoder_config, evaluate_config
from evaluations import evaluated
from smtkit.config import EncoderConfig
from smtkit.evaluation import inference_cost
from smtkit.networks.architecture import Architecture
from smtkit.networks.loading import load_rnn
from smtkit.networks.teacher import Teacher
from smtkit.stages import evaluate
from smtkit.storage.artifact import Artifact


def test_there_is_a_record_for_each_number_of_tokens(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(inference_cost, "TOKENS", (10, 150, 400))
    records = evaluated(pipeline, tmp_path, windows=1, cost=True)["cost"]
    rnn, teacher = ([r for r in records if r["predictor"] == name] for name in ("rnn", "teacher"))

    for found in (rnn, teacher):
        assert [record["tokens"] for record in found] == [10, 150, 400]
    assert all(record["seconds_per_token"] > 0 for record in rnn)
    assert {record["bytes"] for record in rnn} == {4 * 2 * 8}
    assert all(record["seconds_per_token"] > 0 for record in teacher)
    assert {record["skipped"] for record in records} == {None}
    sizes = [record["bytes"] for record in teacher]
    assert sizes == [8 * n + 4 * 4 * 16 * (n + 1) for n in (10, 150, 400)]
    assert {record["peak_bytes"] for record in records} == {None}


def test_the_rnn_reads_every_token(pipeline, monkeypatch):
    monkeypatch.setattr(inference_cost, "TOKENS", (10, 250, 1000))
    network = load_rnn(Artifact.open(pipeline.rnn))
    steps, read = network.step, []
    monkeypatch.setattr(network, "step", lambda m, t: read.append(t) or steps(m, t))
    list(inference_cost.measure_rnn(network, Recorder()))

    assert len(read) == 1000


def test_what_would_take_too_long_is_skipped_with_a_warning(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(inference_cost, "TOKENS", (10, 1000, 2000))
    monkeypatch.setattr(inference_cost, "_RNN_SECONDS", 0.0)
    monkeypatch.setattr(inference_cost, "_SECONDS", 0.0)
    recorder = Recorder()
    evaluate.run(
        evaluate_config(windows=1, cost=True),
        pipeline.rnn,
        pipeline.tokens,
        tmp_path,
        encoder=pipeline.encoder,
        progress=recorder,
    )
    records = Artifact.open(tmp_path).manifest.statistics["cost"]

    timed = [(r["predictor"], r["tokens"]) for r in records if r["seconds_per_token"] is not None]
    assert timed == [("rnn", 10), ("teacher", 10)]
    untimed = [record for record in records if record["seconds_per_token"] is None]
    assert recorder.warnings == [
        f"{r['predictor']}, {r['tokens']:,} tokens: not timed: {r['skipped']}" for r in untimed
    ]
    assert [" s " in record["skipped"] for record in untimed] == [True] * 4


def _cost_of_teacher(config: EncoderConfig, window: int = 16) -> list[dict]:
    settings = encoder_config(encoder=config.model_dump())
    teacher = Teacher(Architecture.of_teacher(settings, 7, window)).eval().requires_grad_(False)
    return [asdict(each) for each in inference_cost.measure_teacher(teacher, Recorder())]


BIDIRECTIONAL = {"kind": "bidirectional", "slots": 2, "slot_width": 8, "width": 16, "heads": 2}


@pytest.mark.parametrize(("context", "read"), [(None, 16), (40, 40)])
def test_a_context_of_limited_length_is_timed_after_any_number_of_tokens(context, read):
    records = _cost_of_teacher(EncoderConfig(**BIDIRECTIONAL, context_length=context))

    assert [record["tokens"] for record in records] == [100, 1_000, 10_000, 100_000]
    assert {record["skipped"] for record in records} == {None}
    assert {record["bytes"] for record in records} == {8 * read + 4 * 4 * 16 * (read + 2)}


@pytest.mark.parametrize("free", [None, 2**40])
def test_a_pass_that_fits_into_memory_is_timed(monkeypatch, free):
    monkeypatch.setattr(inference_cost, "TOKENS", (10, 100))
    monkeypatch.setattr(inference_cost, "free_bytes", lambda device: free)
    records = _cost_of_teacher(EncoderConfig(slots=2, slot_width=8, width=16, heads=2))

    assert all(record["seconds_per_token"] > 0 for record in records)


@pytest.mark.parametrize("memory", ["projection", "registers"])
def test_a_pass_that_would_not_fit_into_memory_is_skipped(monkeypatch, memory):
    monkeypatch.setattr(inference_cost, "TOKENS", (10, 10_000))
    monkeypatch.setattr(inference_cost, "_SECONDS", 1e9)
    monkeypatch.setattr(inference_cost, "free_bytes", lambda device: 2**22)
    config = EncoderConfig(slots=2, slot_width=8, width=16, heads=2, memory=memory)
    short, long = _cost_of_teacher(config)

    assert short["seconds_per_token"] > 0
    assert long["seconds_per_token"] is None
    assert "more than 50% of 0.0 GiB free" in long["skipped"]


@given(
    linear=st.floats(0, 1),
    quadratic=st.floats(0, 1),
    near=st.integers(1, 1000),
    more=st.integers(1, 1000),
)
def test_a_linear_plus_quadratic_cost_is_forecast(linear, quadratic, near, more):
    def seconds(tokens):
        return linear * tokens + quadratic * tokens**2

    passes = [(tokens, seconds(tokens)) for tokens in (near, near + more)]
    expected = seconds(5000)
    found = inference_cost.forecast(passes, 5000)
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("passes", "expected"),
    [
        ([], 0),
        ([(10, 2.0)], 20_000),  # quadratic, after one pass
        ([(10, 2.5), (10, 2.0)], 20_000),
        ([(10, 2.0), (100, 3.0)], 30),  # never less than linear
        ([(10, 1.0), (100, 1000.0)], 100_000),  # nor more than quadratic
    ],
)
def test_forecasts_stay_between_linear_and_quadratic(passes, expected):
    assert inference_cost.forecast(passes, 1000) == pytest.approx(expected)


def test_free_memory_is_what_the_system_reports(monkeypatch, tmp_path):
    cpu = torch.device("cpu")
    monkeypatch.setattr(inference_cost, "_MEMORY_INFO", tmp_path / "meminfo")
    assert inference_cost.free_bytes(cpu) is None
    (tmp_path / "meminfo").write_text("MemTotal:  9 kB\nMemAvailable:    3 kB\n")
    assert inference_cost.free_bytes(cpu) == 3 * 1024
