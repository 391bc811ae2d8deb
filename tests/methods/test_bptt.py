"""bptt: its loss and gradients against loops by hand; windows, rows, the whole stage."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from conftest import (
    Command,
    KilledError,
    Killer,
    architecture,
    model_bytes,
    rnn_config,
    write_stream,
)
from smtkit import IGNORE
from smtkit.config import CellConfig, DecoderConfig, ReadoutConfig, SynthesizeConfig, TrainRnnConfig
from smtkit.corpus.windows import TextWindows, open_windows
from smtkit.methods.bptt import BackpropagationThroughTime, SequenceBatch, SequenceSampler
from smtkit.networks.architecture import Architecture
from smtkit.networks.cells import Cell, GruCell
from smtkit.networks.loading import load_rnn
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.stages import synthesize, train_rnn
from smtkit.storage.artifact import Artifact
from smtkit.training.optimizer import build_optimizer

VOCABULARY, STEPS = 11, 7
CELLS = [
    CellConfig(kind=kind, normalize=normalize, width=16, heads=2)
    for kind in ("mlp", "transformer", "gru", "lstm")
    for normalize in ("slot", "none")
]
CELLS.append(CellConfig(kind="mlp", normalize="none", gate=True, gate_bias=(-2, 1), width=16))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _named(cell: CellConfig) -> str:
    return f"{cell.kind}-{cell.normalize}" + ("-gated" if cell.gate else "")


def _network(cell: CellConfig, readout: str = "mlp") -> RecurrentNetwork:
    decoder = DecoderConfig(width=16, heads=2)
    parts = cell, ReadoutConfig(kind=readout), decoder
    return RecurrentNetwork(architecture(VOCABULARY, 2, 4, *parts)).double()


def _batch(rows: int = 3) -> SequenceBatch:
    """Whole windows, some targets of which are IGNORE."""
    targets = torch.randint(VOCABULARY, (rows, STEPS + 1))
    targets[torch.rand(targets.shape) < 0.3] = IGNORE
    return SequenceBatch(
        torch.randint(VOCABULARY, (rows, STEPS)), targets, torch.full((rows,), STEPS)
    )


def _loop(network: RecurrentNetwork, batch: SequenceBatch, window: int | None) -> Tensor:
    """Sum of the nll, one row and one step at a time; the memory is cut off every `window`."""
    total = torch.zeros((), dtype=torch.float64)
    for tokens, targets in zip(batch.tokens, batch.targets, strict=True):
        memory = network.empty_memory
        for i in range(len(tokens) + 1):
            if targets[i] != IGNORE:
                total = total - network.readout(memory[None])[0].log_softmax(-1)[targets[i]]
            if window and i and i % window == 0:
                memory = memory.detach()
            if i < len(tokens):
                memory = network.transition(memory[None], tokens[i][None])[0]
    return total


@pytest.mark.parametrize("window", [None, 1, 3, 7, 20])
@pytest.mark.parametrize("cell", CELLS, ids=_named)
def test_loss_and_gradients_are_those_of_a_loop(cell, window):
    network, batch = _network(cell), _batch()
    method = BackpropagationThroughTime(network, window)
    names, parameters = zip(*network.named_parameters(), strict=True)
    total, expected = method.losses(batch)["readout"], _loop(network, batch, window)
    found = torch.autograd.grad(total, parameters)
    expected_gradients = torch.autograd.grad(expected, parameters)

    # Cross-entropy is taken in float32.
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=0)
    for name, one, other in zip(names, found, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)


def test_the_decoder_can_read_out():
    network, batch = _network(CELLS[0], "decoder"), _batch()
    total = BackpropagationThroughTime(network, None).losses(batch)["readout"]

    torch.testing.assert_close(total.double(), _loop(network, batch, None), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("position", "reached"), [(0, True), (2, True), (3, True), (4, False)])
@pytest.mark.parametrize("cell", CELLS, ids=_named)
def test_a_gradient_flows_back_through_the_window_and_no_further(cell, position, reached):
    network, batch = _network(cell), _batch()
    batch.targets[:] = IGNORE
    batch.targets[:, position] = 1
    BackpropagationThroughTime(network, 3).losses(batch)["readout"].backward()
    gradient = network.empty_memory.grad

    assert (gradient is not None and bool(gradient.any())) == reached


def test_counts_are_the_numbers_of_targets():
    batch = _batch()
    method = BackpropagationThroughTime(_network(CELLS[0]), None)

    assert method.counts(batch) == {"readout": sum(t >= 0 for t in batch.targets.flatten())}
    assert method.weights(0) == {"readout": 1.0}


def test_without_targets_there_is_nothing_to_learn():
    batch = _batch()
    batch.targets[:] = IGNORE
    total = BackpropagationThroughTime(_network(CELLS[0]), None).losses(batch)["readout"]
    total.backward()

    assert total == 0


def test_weights_decay_and_the_empty_memory_does_not():
    network = _network(CELLS[0])
    groups = build_optimizer(network, rnn_config(training={"weight_decay": 0.5}).training)
    decay = {
        id(parameter): group["weight_decay"]
        for group in groups.param_groups
        for parameter in group["params"]
    }

    assert len(decay) == len(list(network.parameters()))
    for name, parameter in network.named_parameters():
        matrix = parameter.ndim >= 2 and name != "empty_memory"
        assert decay[id(parameter)] == (0.5 if matrix else 0.0), name


# The sampler.


def test_windows_of_text_predict_what_follows(tmp_path):
    content = [(7 * i) % 250 for i in range(500)]
    stream = write_stream(tmp_path, [[content]])
    source = SequenceSampler(TextWindows(stream, 16), batch_size=8, seed=0)
    whole = source.batch(2)
    slices = [source.batch(2, part, 4) for part in range(4)]
    for row in range(8):
        tokens, targets = whole.tokens[row].tolist(), whole.targets[row].tolist()
        assert tokens == targets[:16]
        assert all((one + 7) % 250 == other for one, other in itertools.pairwise(targets))
    assert whole.tokens_read == 8 * 16
    for name in ("tokens", "targets", "length"):
        pieces = [getattr(piece, name) for piece in slices]
        assert torch.equal(torch.cat(pieces), getattr(whole, name))


def test_the_end_of_a_stream_is_no_target(tmp_path):
    stream = write_stream(tmp_path, [[[1 + i for i in range(10)]]])
    source = SequenceSampler(TextWindows(stream, 16), batch_size=4, seed=0)
    batch = source.batch(0)
    for row in range(4):
        length = int(batch.length[row])
        targets = batch.targets[row][batch.targets[row] != IGNORE]
        assert targets.tolist() == list(range(11 - length, 11))
    assert batch.tokens.shape[1] == int(batch.length.max())


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """Rows of two lengths."""
    out = tmp_path_factory.mktemp("rows") / "tokens"
    task = SynthesizeConfig(
        task="keys-values",
        lengths=[8, 12],
        sequences=40,
        validation_sequences=16,
        test_sequences=16,
        vocabulary=VOCABULARY,
    )
    synthesize.run(task, out)
    return out


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("cell", CELLS, ids=_named)
def test_padding_adds_nothing(rows, cell, window):
    windows = open_windows(Artifact.open(rows), "train", None).read(np.arange(8))
    batch = SequenceBatch(*map(torch.from_numpy, vars(windows).values()))
    method = BackpropagationThroughTime(_network(cell), window)
    alone, count = 0.0, 0
    for row, length in enumerate(batch.length.tolist()):
        own = SequenceBatch(
            batch.tokens[row : row + 1, :length],
            batch.targets[row : row + 1, : length + 1],
            batch.length[row : row + 1],
        )
        alone += method.losses(own)["readout"].item()
        count += method.counts(own)["readout"]

    assert sorted(set(batch.length.tolist())) == [8, 12]
    assert method.losses(batch)["readout"].item() == pytest.approx(alone, rel=1e-5)
    assert method.counts(batch)["readout"] == count


# The stage.


def _config(**changes: object) -> TrainRnnConfig:
    settings = {
        "method": "bptt",
        "data": {"positions": 32},
        "memory": {"slots": 2, "slot_width": 8},
        **changes,
    }
    return rnn_config(**settings)


def _text(**changes: object) -> TrainRnnConfig:
    return _config(data={"positions": 32, "window": 16}, **changes)


def _weights(artifact: Path) -> dict[str, Tensor]:
    return load(model_bytes(artifact))


def _nll(artifact: Path) -> float:
    return Artifact.open(artifact).manifest.statistics["validation"]["readout"]


@pytest.mark.parametrize("cell", CELLS, ids=_named)
def test_an_rnn_of_any_cell_learns_from_tokens_alone(pipeline, tmp_path, cell):
    training = {"max_steps": 40, "learning_rate": 1e-2}
    config = _text(cell=cell.model_dump(exclude_defaults=True), training=training)
    manifest = train_rnn.run(config, pipeline.tokens, tmp_path)
    network = load_rnn(Artifact.open(tmp_path, "rnn"))
    window = network.architecture.window

    assert [parent.kind for parent in manifest.parents] == ["tokens"]
    assert manifest.ancestor("encoder") is None
    assert window == 16
    assert network.empty_memory.shape == (2, 8)
    assert _nll(tmp_path) < np.log(257) - 1


def test_fused_and_stepped_kernels_learn_the_same(pipeline, tmp_path, monkeypatch):
    config = _text(cell={"kind": "gru", "normalize": "none"}, training={"max_steps": 5})
    train_rnn.run(config, pipeline.tokens, tmp_path / "fused")
    monkeypatch.setattr(GruCell, "rollout", Cell.rollout)
    train_rnn.run(config, pipeline.tokens, tmp_path / "stepped")
    stepped = _weights(tmp_path / "stepped")
    for name, values in _weights(tmp_path / "fused").items():
        torch.testing.assert_close(values, stepped[name], rtol=1e-3, atol=1e-5, msg=name)


def test_the_empty_memory_is_learned(pipeline, tmp_path):
    config = _text()
    torch.manual_seed(config.seed)
    before = RecurrentNetwork(Architecture.of_rnn(config, 257, 16)).empty_memory
    train_rnn.run(config, pipeline.tokens, tmp_path)

    assert (_weights(tmp_path)["empty_memory"] - before).abs().max() > 1e-3


STILL = {"max_steps": 1, "learning_rate": 1e-30, "weight_decay": 0.0}


def test_an_rnn_is_tuned_from_where_smt_left_it(pipeline, tmp_path):
    manifest = train_rnn.run(
        _text(training=STILL), pipeline.tokens, tmp_path / "still", init=pipeline.rnn
    )
    config = _text(training={"max_steps": 30, "learning_rate": 1e-2})
    train_rnn.run(config, pipeline.tokens, tmp_path / "tuned", init=pipeline.rnn)
    initial, still = _weights(pipeline.rnn), _weights(tmp_path / "still")
    tuned = _weights(tmp_path / "tuned")

    assert [parent.kind for parent in manifest.parents] == ["tokens", "rnn"]
    assert manifest.ancestor("encoder").digest == Artifact.open(pipeline.encoder).manifest.digest
    assert all(torch.equal(still[name], values) for name, values in initial.items())
    assert all(not torch.equal(tuned[name], values) for name, values in initial.items())
    assert _nll(tmp_path / "tuned") < _nll(tmp_path / "still") - 0.1


def test_back_on_labels_an_rnn_starts_from_their_empty_memory_again(pipeline, tmp_path):
    tuned, back = tmp_path / "tuned", tmp_path / "back"
    train_rnn.run(_text(), pipeline.tokens, tuned, init=pipeline.rnn)
    train_rnn.run(rnn_config(training=STILL), pipeline.labels, back, init=tuned)
    found, expected = _weights(back), _weights(tuned)
    empty_memory = _weights(pipeline.labels)["empty_memory"]

    assert not torch.equal(expected.pop("empty_memory"), empty_memory)
    assert torch.equal(found.pop("empty_memory"), empty_memory)
    assert all(torch.equal(found[name], values) for name, values in expected.items())


@pytest.mark.parametrize("cell", [CELLS[0], CELLS[5], CELLS[7]], ids=_named)
def test_a_killed_run_resumes_bit_for_bit(pipeline, rows, tmp_path, cell):
    given = cell.model_dump(exclude_defaults=True)
    for name, tokens, config in (
        ("text", pipeline.tokens, _text(cell=given, bptt_window=5)),
        ("rows", rows, _config(cell=given)),
    ):
        train_rnn.run(config, tokens, tmp_path / name)
        killed = tmp_path / f"{name}-killed"
        with pytest.raises(KilledError):
            train_rnn.run(config, tokens, killed, progress=Killer(10))
        train_rnn.run(config, tokens, killed, resume=True)
        assert model_bytes(killed) == model_bytes(tmp_path / name)


def test_gradient_accumulation_equals_the_full_batch(rows, tmp_path):
    for parts in (1, 4):
        config = _config(training={"max_steps": 5, "accumulation": parts})
        train_rnn.run(config, rows, tmp_path / str(parts))
    whole = _weights(tmp_path / "1")
    for name, values in _weights(tmp_path / "4").items():
        torch.testing.assert_close(values, whole[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("source", "arguments", "code", "message"),
    [
        ("labels", ("--method", "bptt"), 3, "kind is labels, expected tokens"),
        ("tokens", ("--method", "smt"), 3, "kind is tokens, expected labels"),
        ("tokens", ("--method", "dmt"), 3, "kind is tokens, expected labels"),
        ("tokens", ("--method", "bptt", "--depth", 3), 2, "rollout.depth = 3 is only used"),
        (
            "tokens",
            ("--method", "bptt", "--init-from-labels"),
            2,
            "init_from_labels = True is only used",
        ),
        (
            "tokens",
            ("--method", "bptt", "--set", "objective.noise=1"),
            2,
            "objective.noise = 1.0 is only used",
        ),
        ("tokens", ("--method", "bptt", "--bptt-window", 0), 2, "--bptt-window: bptt_window"),
    ],
)
def test_what_bptt_cannot_use_is_one_line(
    pipeline, command: Command, tmp_path, source, arguments, code, message
):
    artifact = getattr(pipeline, source)
    result = command("train-rnn", artifact, "--out", tmp_path / "o", "--max-steps", 1, *arguments)

    assert result.code == code
    assert message in result.line()
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("setting", "flag"),
    [
        ("memory.slots=3", "--slots"),
        ("memory.slot_width=4", "--slot-width"),
        ("cell.kind=gru", "--cell"),
    ],
)
def test_another_network_than_that_of_init_is_refused(
    pipeline, command: Command, tmp_path, setting, flag
):
    flags = ("--out", tmp_path / "o", "--max-steps", 1, "--method", "bptt", "--set", setting)
    result = command("train-rnn", pipeline.tokens, *flags, "--init", pipeline.rnn)

    assert result.code == 2
    assert f"{flag} = " in result.line()
