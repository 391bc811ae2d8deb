"""Every benchmark runs, at tiny sizes; and the calls and operations it counts are those made."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from conftest import architecture
from smtkit.config import CellConfig, DecoderConfig, EncoderConfig, ReadoutConfig
from smtkit.evaluation import inference_cost
from smtkit.networks.cells import MlpCell
from smtkit.networks.teacher import Teacher

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import cost
import extraction
import generation
import measure
import memory

import labels
import training


@pytest.fixture(autouse=True)
def _short_library(tmp_path, monkeypatch):
    (tmp_path / "text.py").write_text("memory, slot, drift\n" * 500)
    library = SimpleNamespace(get_path=lambda name: str(tmp_path))
    monkeypatch.setattr(measure, "sysconfig", library)


@pytest.fixture
def rows(capsys):
    """Rows of the printed tables, by their first cell."""

    def read() -> dict[str, list[str]]:
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        return {row[0]: row[1:] for row in cells}

    return read


def test_extraction(rows):
    small = "--sizes 16x1 --slots 2 --slot-width 4 --window 8 --windows 2 --sampled 1"
    extraction.main([*small.split(), "--repetitions", "1"])

    found = rows()
    assert {*extraction.CAUSAL, extraction.WHOLE, extraction.PREFIX} < set(found)
    assert found[extraction.WHOLE][2] == "1.00"
    assert found["`extract-labels`, registers"]


def test_training(rows):
    small = "--cells gru --widths 16 --lengths 4 --tokens 8 --matrix 8 --updates 1 --repetitions 1"
    training.main(small.split())

    assert rows()["4"][:3] == ["2", "bptt, fused", "1, of 4 steps"]


def test_calls_and_operations_are_those_that_are_made(tmp_path, monkeypatch):
    width, length, windows = 16, 32, 2
    made = training.made_up_labels(tmp_path / "labels.arrow", windows, length, width)
    calls: list[int] = []
    forward = MlpCell.forward
    monkeypatch.setattr(MlpCell, "forward", lambda *given: calls.append(1) or forward(*given))
    operations = {}
    for name, update in training.updates(made, "mlp", width, torch.device("cpu")):
        calls.clear()
        operations[name] = training.counted(update.run)
        assert str(len(calls)) == update.calls, name

    # A product and a sum, forward and both ways back; but nothing goes back to a label.
    cell, readout = 10 * width**2, 256 * width
    transitions = windows * length
    expected = 6 * transitions * (cell + readout) - 2 * transitions * width**2
    assert operations["smt"] == expected + 4 * windows * readout
    assert operations["dmt, jacobi, 4 sweeps"] == operations["smt"] + 3 * 2 * transitions * cell


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_grows_with_the_window_for_bptt_but_not_for_sampled_positions(capsys, monkeypatch):
    monkeypatch.setattr(memory, "UPDATES", ("smt, sampled positions", "bptt"))
    small = "--cells mlp --width 64 --windows 8 --positions 4 --lengths 64 256 --repetitions 1"
    memory.main(small.split())

    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    short, short_bptt, long, long_bptt = (float(row[2].split()[0]) for row in cells)
    assert [row[0] for row in cells] == ["64", "64", "256", "256"]
    assert [row[-1] for row in cells[1::2]] == ["1.000"] * 2
    assert long_bptt > 3 * short_bptt
    assert long < 1.5 * short < 0.5 * long_bptt


def test_total_cost(rows):
    small = "--tokens 64 --window 8 --width 16 --teacher-width 16 --cells gru --repetitions 1"
    cost.main(small.split())

    found = rows()
    assert {"teacher", "labels", "gru: smt", "gru: bptt", "gru: bptt, fused"} < set(found)
    shares = [int(share.removesuffix("%")) for share in found["gru"][:3]]
    assert sum(shares) == pytest.approx(100, abs=2)


def test_generation(rows, monkeypatch):
    monkeypatch.setattr(inference_cost, "TOKENS", (10,))
    small = "--width 16 --layers 1 --cells mlp --repetitions 1"
    generation.main(small.split())

    found = rows()
    assert found["RNN, mlp"][2:] == ["1.00", "1"]
    assert found[generation.CACHED][0] == found[generation.AGAIN][0] == "10"


@pytest.mark.parametrize("convolution", [0, 4])
def test_a_transformer_with_a_cache_computes_the_same_memories(convolution):
    config = EncoderConfig(width=16, slots=2, slot_width=4, convolution=convolution)
    parts = CellConfig(width=16), ReadoutConfig(), DecoderConfig(width=16)
    shape = 7, config.slots, config.slot_width
    encoder = Teacher(architecture(*shape, *parts, encoder=config, window=9)).encoder
    tokens = torch.randint(7, (1, 9))
    with torch.inference_mode():
        cached = generation.CachedEncoder(encoder, 9)
        memories = [cached.memory, *(cached.step(token) for token in tokens.T)]
        torch.testing.assert_close(torch.stack(memories, dim=1), encoder.encode(tokens))

    assert cached.bytes_of(9) == 4 * 2 * (2 * 10 * 16 + convolution * 16)


def test_labels(rows, monkeypatch):
    monkeypatch.setattr(labels, "SHARD_BYTES", 2**20)
    monkeypatch.setattr(labels, "BATCHES", (2,))
    monkeypatch.setattr(labels, "THREADS", (1,))
    small = "--mebibytes 1 --widths 256 --orders shuffled --repetitions 1"
    labels.main(small.split())

    assert rows()["limit"][2] == "1.00"
