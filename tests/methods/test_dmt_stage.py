"""`train-rnn --method dmt`, whole: what it leaves alone, refuses, and how it goes on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from conftest import (
    Command,
    KilledError,
    Killer,
    Pipeline,
    build_pipeline,
    encoder_config,
    label_rows,
    model_bytes,
    shards,
)
from conftest import rnn_config as smt_config
from smtkit.config import (
    ExtractLabelsConfig,
    RolloutConfig,
    SynthesizeConfig,
    TrainRnnConfig,
    TransitionObjectiveConfig,
)
from smtkit.errors import UsageError
from smtkit.labels.reader import LabelShards
from smtkit.methods.dmt import DaggerMemoryTraining, RolloutSampler
from smtkit.networks.loading import load_label_teacher, load_rnn
from smtkit.networks.teacher import LabelTeacher
from smtkit.stages import synthesize, train_encoder, train_rnn
from smtkit.storage.artifact import Artifact
from smtkit.training.loop import Trainer
from smtkit.training.protocols import Validation

ONCE = {"training": {"max_steps": 1}}
OBJECTIVE = {"kl_weight": 0.5, "kl_future": 3, "kl_positions": 4, "noise": 0.5}


def _config(**changes: object) -> TrainRnnConfig:
    return smt_config(
        **{"data": {"positions": 32}, "method": "dmt", "rollout": {"depth": 5}, **changes}
    )


def _weights(artifact: Path) -> dict[str, Tensor]:
    return load(model_bytes(artifact))


def _content(artifact: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in artifact.rglob("*") if path.is_file()}


@pytest.mark.parametrize("rollout", ["segments", "sequential", "jacobi"])
def test_an_rnn_learns_from_its_own_rollout(pipeline, tmp_path, rollout):
    config = _config(
        rollout={"kind": rollout}, training={"max_steps": 30, "learning_rate": 1e-2, "log_every": 5}
    )
    manifest = train_rnn.run(config, pipeline.labels, tmp_path, init=pipeline.rnn)
    network = load_rnn(Artifact.open(tmp_path, "rnn"))
    window = network.architecture.window

    assert [parent.kind for parent in manifest.parents] == ["labels", "rnn"]
    assert manifest.ancestor("encoder").digest == Artifact.open(pipeline.encoder).manifest.digest
    assert window == 16
    assert _dynamics(tmp_path) < 0.9 * _dynamics(_untrained(pipeline, tmp_path / "first", rollout))
    assert network.rollout(torch.randint(257, (2, 4))).isfinite().all()


def _untrained(pipeline: Pipeline, out: Path, rollout: str) -> Path:
    training = {"max_steps": 1, "learning_rate": 1e-30, "weight_decay": 0.0}
    config = _config(rollout={"kind": rollout}, training=training)
    train_rnn.run(config, pipeline.labels, out, init=pipeline.rnn)
    return out


def _dynamics(rnn: Path) -> float:
    return Artifact.open(rnn).manifest.statistics["validation"]["dynamics"]


@pytest.mark.parametrize("method", ["smt", "dmt"])
def test_the_empty_memory_stays_that_of_the_labels(pipeline, tmp_path, method):
    config = {"smt": smt_config(), "dmt": _config()}[method]
    train_rnn.run(config, pipeline.labels, tmp_path)

    assert torch.equal(
        _weights(tmp_path)["empty_memory"], _weights(pipeline.labels)["empty_memory"]
    )


@pytest.mark.parametrize("readout", ["mlp", "decoder"])
@pytest.mark.parametrize("method", ["smt", "dmt"])
def test_nothing_of_the_teacher_changes(pipeline, tmp_path, monkeypatch, method, readout):
    loaded: list[LabelTeacher] = []

    def loading(labels: Artifact) -> LabelTeacher:
        loaded.append(load_label_teacher(labels))
        return loaded[-1]

    monkeypatch.setattr(train_rnn, "load_label_teacher", loading)
    base = {"smt": smt_config, "dmt": _config}[method]
    config = base(objective=OBJECTIVE, readout={"kind": readout}, training={"max_steps": 3})
    before = _content(pipeline.labels)
    train_rnn.run(config, pipeline.labels, tmp_path)
    (used,) = loaded
    stored = load_label_teacher(Artifact.open(pipeline.labels)).state_dict()

    assert _content(pipeline.labels) == before
    for name, values in used.state_dict().items():
        assert torch.equal(values, stored[name]), name
    if readout == "decoder":
        moved = _weights(tmp_path)
        assert any(
            not torch.equal(moved[f"readout.{name}"], values)
            for name, values in stored.items()
            if name.startswith("decoder.")
        )


def test_without_a_weight_the_method_has_no_decoder(pipeline, tmp_path, monkeypatch):
    given = []

    def spy(network, objective, rollout, decoder):
        given.append(decoder)
        return DaggerMemoryTraining(network, objective, rollout, decoder)

    monkeypatch.setattr(train_rnn, "DaggerMemoryTraining", spy)
    train_rnn.run(_config(training={"max_steps": 1}), pipeline.labels, tmp_path)

    assert given == [None]


VARIANTS: dict[str, dict[str, object]] = {
    "segments": {"rollout": {"depth": 5, "depth_ramp": 9}, "objective": OBJECTIVE},
    "jacobi": {"rollout": {"kind": "jacobi", "sweeps": 2}, "objective": OBJECTIVE},
    "sequential": {"rollout": {"kind": "sequential", "loss_every": 3}},
    "backprop": {"rollout": {"depth": 5, "backprop": 3, "loss_every": 2}, "objective": OBJECTIVE},
    "smt": {"method": "smt", "rollout": {}, "objective": OBJECTIVE, "data": {"positions": 8}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_killed_run_resumes_bit_for_bit(pipeline, tmp_path, variant):
    config, labels, init = _config(**VARIANTS[variant]), pipeline.labels, pipeline.rnn
    train_rnn.run(config, labels, tmp_path / "whole", init=init)
    for step in (2, 6, 10):
        out = tmp_path / f"killed-{step}"
        with pytest.raises(KilledError):
            train_rnn.run(config, labels, out, init=init, progress=Killer(step))
        train_rnn.run(config, labels, out, init=init, resume=True)
        assert model_bytes(out) == model_bytes(tmp_path / "whole")


def test_a_run_is_not_resumed_from_another_rnn(pipeline, tmp_path):
    with pytest.raises(KilledError):
        train_rnn.run(_config(), pipeline.labels, tmp_path, init=pipeline.rnn, progress=Killer(6))
    with pytest.raises(UsageError, match="input rnn"):
        train_rnn.run(_config(), pipeline.labels, tmp_path, resume=True)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """Labels of rows of two lengths."""
    directory = tmp_path_factory.mktemp("rows")
    task = SynthesizeConfig(
        task="keys-values",
        lengths=[8, 12],
        sequences=40,
        validation_sequences=16,
        test_sequences=16,
        vocabulary=13,
    )
    synthesize.run(task, directory / "tokens")
    once = {"training": {"max_steps": 1}}
    built = build_pipeline(
        directory,
        directory / "tokens",
        encoder_config(data={"window": None}, objective={"future_length": "rest"}, **once),
        ExtractLabelsConfig(),
        smt_config(**once),
    )
    return built.labels


@pytest.mark.parametrize("variant", ["segments", "jacobi", "sequential", "backprop"])
def test_gradient_accumulation_equals_the_full_batch(rows, tmp_path, variant):
    changes = dict(VARIANTS[variant])
    if variant != "sequential":
        changes["objective"] = OBJECTIVE
    for parts in (1, 2, 4):
        config = _config(**changes, training={"max_steps": 5, "accumulation": parts})
        train_rnn.run(config, rows, tmp_path / str(parts))
    expected = _weights(tmp_path / "1")
    for parts in (2, 4):
        for name, values in _weights(tmp_path / str(parts)).items():
            torch.testing.assert_close(values, expected[name], rtol=1e-4, atol=1e-5, msg=name)


# What validation is of.


@pytest.fixture(scope="module")
def three_lengths(tmp_path_factory) -> Pipeline:
    """A chain of a task's rows, a third of them 8, 12 and 16 tokens long."""
    directory = tmp_path_factory.mktemp("three-lengths")
    task = SynthesizeConfig(
        task="keys-values",
        lengths=[8, 12, 16],
        sequences=60,
        validation_sequences=48,
        test_sequences=3,
        vocabulary=17,
    )
    synthesize.run(task, directory / "tokens")
    return build_pipeline(
        directory,
        directory / "tokens",
        encoder_config(data={"window": None}, objective={"future_length": "rest"}, **ONCE),
        ExtractLabelsConfig(),
        smt_config(**ONCE),
    )


@pytest.fixture
def validations(monkeypatch) -> list[Validation[Any]]:
    """What any stage that trains from now on validates on."""
    given: list[Validation[Any]] = []

    class Watched(Trainer[Any]):
        def __init__(self, method, sampler, validations, *others, **options) -> None:
            given.append(validations[0])  # of the method; the others are of what it trains
            super().__init__(method, sampler, validations, *others, **options)

    for stage in (train_encoder, train_rnn):
        monkeypatch.setattr(stage, "Trainer", Watched)
    return given


def _batches(validation: Validation[Any]) -> list[Any]:
    return [validation.sampler.batch(step) for step in range(validation.batches)]


@pytest.mark.parametrize("method", ["encoder", "bptt"])
def test_validation_is_of_windows_of_all_lengths(three_lengths, tmp_path, validations, method):
    if method == "encoder":
        config = encoder_config(data={"window": None}, objective={"future_length": "rest"}, **ONCE)
        train_encoder.run(config, three_lengths.tokens, tmp_path)
    else:
        memory = {"slots": 2, "slot_width": 8}
        config = _config(method="bptt", rollout={}, memory=memory, **ONCE)
        train_rnn.run(config, three_lengths.tokens, tmp_path)
    (validation,) = validations

    assert validation.batches == 2
    for batch in _batches(validation):
        assert set(batch.length.tolist()) == {8, 12, 16}


@pytest.mark.parametrize("rollout", ["segments", "sequential", "jacobi"])
def test_validation_of_a_rollout_is_of_windows_of_all_lengths(
    three_lengths, tmp_path, validations, rollout
):
    config = _config(rollout={"kind": rollout, "depth": 16}, **ONCE)
    train_rnn.run(config, three_lengths.labels, tmp_path)
    (validation,) = validations

    assert validation.batches == 2
    for batch in _batches(validation):
        losses = torch.bincount(batch.loss_steps // batch.tokens.shape[1])
        assert set(losses.tolist()) == {8, 12, 16}


def test_validation_of_smt_is_of_windows_of_all_lengths(three_lengths, tmp_path, validations):
    config = smt_config(data={"positions": 100}, **ONCE)
    train_rnn.run(config, three_lengths.labels, tmp_path)
    (validation,) = validations
    lengths = {
        row["memory"][1].tobytes(): int(row["length"])
        for row in label_rows(shards(three_lengths.labels, "validation"))
    }
    for batch in _batches(validation):
        # So many positions are drawn that the first transition of each window is among them.
        firsts = batch.after.unflatten(0, (8, 100))[:, 0]
        assert {lengths[first.half().numpy().tobytes()] for first in firsts} == {8, 12, 16}


def test_training_takes_windows_of_one_length_but_where_two_meet(three_lengths):
    labels = LabelShards(shards(three_lengths.labels, "train"))
    source = RolloutSampler(
        labels,
        TransitionObjectiveConfig(),
        rollout=RolloutConfig(kind="sequential"),
        batch_size=5,
        seed=0,
    )
    lengths = []
    for step in range(3 * len(labels) // 5):
        batch = source.batch(step)
        losses = torch.bincount(batch.loss_steps // batch.tokens.shape[1])
        lengths.append(set(losses.tolist()))

    assert sum(len(found) > 1 for found in lengths) <= 3 * 3
    assert set.union(*lengths) == {8, 12, 16}


def test_validation_has_the_last_depth_from_the_first_step(pipeline, tmp_path, validations):
    config = _config(rollout={"depth": 5, "depth_ramp": 1000}, **ONCE)
    train_rnn.run(config, pipeline.labels, tmp_path)
    (validation,) = validations
    train = RolloutSampler(
        LabelShards(shards(pipeline.labels, "train")),
        config.objective,
        rollout=config.rollout,
        batch_size=8,
        seed=0,
    )

    assert train.batch(0).tokens.shape[1] == 1
    assert [batch.tokens.shape[1] for batch in _batches(validation)] == [5, 5]


# What is refused.


@pytest.fixture(scope="module")
def strangers(pipeline, tmp_path_factory) -> Pipeline:
    """A chain of the same text, of another teacher."""
    directory = tmp_path_factory.mktemp("strangers")
    once = {"training": {"max_steps": 1}}
    return build_pipeline(
        directory,
        pipeline.tokens,
        encoder_config(seed=1, **once),
        ExtractLabelsConfig(max_windows=16),
        smt_config(**once),
    )


def _refusal(command: Command, pipeline: Pipeline, out: Path, *arguments: object):
    flags = ("--out", out, "--max-steps", 1, "--quiet")
    result = command("train-rnn", pipeline.labels, *flags, *arguments)
    assert not out.exists()
    return result.code, result.line()


def test_an_rnn_of_another_teacher_is_refused(pipeline, strangers, command, tmp_path):
    for method in ("smt", "dmt"):
        code, line = _refusal(
            command, pipeline, tmp_path / "out", "--method", method, "--init", strangers.rnn
        )
        digests = [
            Artifact.open(chain.encoder).manifest.digest[:8] for chain in (pipeline, strangers)
        ]
        assert code == 3
        assert all(digest in line for digest in digests)


def test_an_rnn_of_another_tokenizer_is_refused(pipeline, character_pipeline, command, tmp_path):
    code, line = _refusal(
        command, pipeline, tmp_path / "out", "--method", "dmt", "--init", character_pipeline.rnn
    )

    assert code == 3
    assert "tokenizer (byte) is not that of" in line


def test_an_artifact_that_is_no_rnn_is_refused(pipeline, command, tmp_path):
    code, line = _refusal(
        command, pipeline, tmp_path / "out", "--method", "dmt", "--init", pipeline.encoder
    )

    assert code == 3
    assert "kind is encoder, expected rnn" in line


_REFUSED: list[tuple[tuple[str, ...], str]] = [
    (
        ("--method", "smt", "--depth", "4"),
        "rollout.depth = 4 is only used with method dmt; found method smt",
    ),
    (
        ("--method", "smt", "--set", "rollout.depth=4"),
        "rollout.depth = 4 is only used with method dmt",
    ),
    (
        ("--method", "dmt", "--set", "data.positions=4"),
        "data.positions = 4 is only used with method smt",
    ),
    (
        ("--method", "dmt", "--set", "memory.slots=2"),
        "memory.slots = 2 is only used with method bptt",
    ),
    (("--method", "dmt", "--bptt-window", "4"), "bptt_window = 4 is only used with method bptt"),
    (
        ("--method", "dmt", "--set", "data.window=4"),
        "data.window = 4 is only used with method bptt",
    ),
    (
        ("--method", "dmt", "--rollout", "sequential", "--set", "objective.noise=1"),
        "a sequential rollout uses none",
    ),
    (("--method", "dmt", "--rollout", "parallel"), "--rollout: rollout.kind = 'parallel'"),
    (
        ("--method", "dmt", "--rollout", "jacobi", "--set", "rollout.backprop=4"),
        "rollout.backprop = 4 is only used with rollout.kind segments or sequential; found",
    ),
    (("--method", "dmt", "--depth", "0"), "--depth: rollout.depth = '0'"),
    (("--method", "tbptt"), "method = 'tbptt'"),
    (("--method", "dmt", "--init", "/nowhere"), "/nowhere: no such artifact"),
]


@pytest.mark.parametrize(("arguments", "message"), _REFUSED)
def test_what_does_not_go_together_is_one_line(
    pipeline, command, tmp_path, arguments: tuple[str, ...], message: str
):
    code, line = _refusal(command, pipeline, tmp_path / "out", *arguments)

    assert code == 2
    assert message in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--init-from-labels",), "found both, allowed: one of them"),
        (("--set", "cell.kind=gru"), "--cell = 'gru': --init"),
        (("--set", "cell.width=99"), "whose width is 16"),
    ],
)
def test_what_does_not_go_with_an_init_is_one_line(
    pipeline, command, tmp_path, arguments: tuple[str, ...], message: str
):
    code, line = _refusal(
        command, pipeline, tmp_path / "out", "--method", "dmt", "--init", pipeline.rnn, *arguments
    )

    assert code == 2
    assert message in line


@pytest.mark.parametrize("other", [{"memory": {"slots": 3}}, {"decoder": {"layers": 2}}], ids=str)
def test_a_shape_that_is_not_that_of_the_labels_is_refused(pipeline, tmp_path, other):
    """From Python, where it may be described, as a manifest does."""
    same = {"memory": {"slots": 2, "slot_width": 8}, "decoder": {"layers": 1, "width": 16}}
    train_rnn.run(_config(**same, **ONCE), pipeline.labels, tmp_path / "same")
    with pytest.raises(UsageError, match="the labels are of a"):
        train_rnn.run(_config(**other, **ONCE), pipeline.labels, tmp_path / "other")
