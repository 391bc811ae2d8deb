"""`train-encoder --init`: training of a teacher that starts from the weights of another."""

from pathlib import Path

import pytest
import torch

import smtkit
from conftest import Command, Pipeline, encoder_config, model_bytes, tokenized, write_text
from smtkit.config import ExtractLabelsConfig, TrainEncoderConfig, TrainRnnConfig
from smtkit.errors import ArtifactError, UsageError
from smtkit.stages import extract_labels, train_encoder, train_rnn
from smtkit.storage.artifact import Artifact
from smtkit.storage.tensors import MODEL, load_tensors

STILL = {"learning_rate": 1e-30, "weight_decay": 0.0, "max_steps": 1}


def further(**changes: object) -> TrainEncoderConfig:
    """Settings that do not describe the network, which is that of `init`."""
    config = encoder_config(**changes)
    return TrainEncoderConfig(**config.model_dump(include={"data", "objective", "training"}))


def test_it_starts_from_the_weights(pipeline: Pipeline, tmp_path: Path) -> None:
    """With a learning rate of nothing, they stay as they were."""
    train_encoder.run(further(training=STILL), pipeline.tokens, tmp_path, init=pipeline.encoder)
    before, header_before = load_tensors(Artifact.open(pipeline.encoder).file(MODEL))
    after, header = load_tensors(Artifact.open(tmp_path).file(MODEL))
    assert header == header_before
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-6, rtol=0)


def test_lineage_and_settings_are_recorded(pipeline: Pipeline, tmp_path: Path) -> None:
    initial = Artifact.open(pipeline.encoder).manifest
    manifest = train_encoder.run(further(), pipeline.tokens, tmp_path, init=pipeline.encoder)
    assert [(p.kind, p.digest) for p in manifest.parents] == [
        ("tokens", Artifact.open(pipeline.tokens).manifest.digest),
        ("encoder", initial.digest),
    ]
    assert manifest.digest != initial.digest
    for part in ("encoder", "decoder", "cell", "readout"):
        assert manifest.config[part] == initial.config[part]
    assert TrainEncoderConfig(**manifest.config).encoder.slots == 2
    # It trains all of the teacher: every tensor has moved.
    before, _ = load_tensors(Artifact.open(pipeline.encoder).file(MODEL))
    after, _ = load_tensors(Artifact.open(tmp_path).file(MODEL))
    assert not [name for name in before if torch.equal(before[name], after[name])]


def test_its_labels_are_of_the_new_encoder(pipeline: Pipeline, tmp_path: Path) -> None:
    train_encoder.run(further(), pipeline.tokens, tmp_path / "encoder", init=pipeline.encoder)
    labels = tmp_path / "labels"
    extract_labels.run(ExtractLabelsConfig(), tmp_path / "encoder", pipeline.tokens, labels)
    found = Artifact.open(labels).manifest.ancestor("encoder")
    assert found
    assert found.digest == Artifact.open(tmp_path / "encoder").manifest.digest
    # The old RNN learned from other memories.
    config = TrainRnnConfig(training={"max_steps": 1, "batch_size": 4})
    with pytest.raises(ArtifactError, match="learned from encoder"):
        train_rnn.run(config, labels, tmp_path / "rnn", init=pipeline.rnn)


def test_the_window_may_be_another(pipeline: Pipeline, tmp_path: Path) -> None:
    config = further(data={"window": 24}, training={"max_steps": 2})
    train_encoder.run(config, pipeline.tokens, tmp_path, init=pipeline.encoder)
    assert smtkit.load_teacher(tmp_path).window == 24


def test_a_resumed_run_is_bit_equal_and_knows_its_init(pipeline: Pipeline, tmp_path: Path) -> None:
    config = further(training={"schedule": "constant", "max_steps": 8})
    train_encoder.run(config, pipeline.tokens, tmp_path / "long", init=pipeline.encoder)
    short = further(training={"schedule": "constant", "max_steps": 4})
    train_encoder.run(short, pipeline.tokens, tmp_path / "short", init=pipeline.encoder)
    with pytest.raises(UsageError, match="input encoder was"):
        train_encoder.run(config, pipeline.tokens, tmp_path / "short", resume=True)
    train_encoder.run(
        config, pipeline.tokens, tmp_path / "short", init=pipeline.encoder, resume=True
    )
    assert model_bytes(tmp_path / "short") == model_bytes(tmp_path / "long")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--set", "encoder.width=32"], "whose width is 16 (leave encoder.width out)"),
        (["--slots", "3"], "starts from the encoder whose slots is 2 (leave --slots out)"),
        (["--set", "cell.kind=gru"], "starts from the cell whose kind is 'mlp'"),
    ],
)
def test_another_architecture_is_refused(
    pipeline: Pipeline, tmp_path: Path, command: Command, flags: list[str], message: str
) -> None:
    out = tmp_path / "out"
    result = command(
        "train-encoder", pipeline.tokens, "--out", out, "--init", pipeline.encoder,
        "--max-steps", 1, *flags,
    )  # fmt: skip
    assert result.code == 2
    assert message in result.line()
    assert not out.exists()


def test_another_tokenizer_or_kind_is_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    tokens = tokenized(write_text(tmp_path / "text.txt", 300), tmp_path / "tokens", "char")
    with pytest.raises(ArtifactError, match="its tokenizer"):
        train_encoder.run(further(), tokens, tmp_path / "out", init=pipeline.encoder)
    with pytest.raises(ArtifactError, match="kind is rnn, expected encoder"):
        train_encoder.run(further(), pipeline.tokens, tmp_path / "out", init=pipeline.rnn)


def test_settings_that_do_not_fit_the_network_are_refused(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    """A hand-off reads at least one token; without `init`, the default decoder may read none."""
    handoff = encoder_config(
        encoder={"memory": "gated"},
        decoder={"kind": "handoff"},
        cell={"normalize": "none"},
        training={"max_steps": 2},
    )
    settings = {key: value for key, value in handoff.model_dump().items() if key != "decoder"}
    handoff = TrainEncoderConfig(**settings, decoder={"kind": "handoff"})
    train_encoder.run(handoff, pipeline.tokens, tmp_path / "handoff")
    config = further(objective={"future_length": 0})
    with pytest.raises(UsageError, match="reads at least one token"):
        train_encoder.run(config, pipeline.tokens, tmp_path / "out", init=tmp_path / "handoff")
