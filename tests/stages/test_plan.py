"""`smtkit plan`, compared with what the stages then do."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Command, Pipeline, encoder_config, rnn_config
from smtkit.config import ExtractLabelsConfig
from smtkit.errors import UsageError
from smtkit.stages import plan
from smtkit.storage.artifact import Artifact
from smtkit.training.machine import PeakMemory, available_memory

CPU = torch.device("cpu")


def write_settings(path: Path, settings: dict[str, Any], prefix: str = "") -> None:
    """TOML of nested tables."""
    lines = [f"{key} = {json.dumps(v)}" for key, v in settings.items() if not isinstance(v, dict)]
    with path.open("a") as file:
        file.write("\n".join([f"[{prefix}]" if prefix else "", *lines, ""]))
    for key, value in settings.items():
        if isinstance(value, dict):
            write_settings(path, value, f"{prefix}.{key}" if prefix else key)


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """A folder with the settings of the session's pipeline."""
    folder = tmp_path / "settings"
    folder.mkdir()
    write_settings(folder / "encoder.toml", encoder_config().model_dump(exclude_unset=True))
    write_settings(folder / "labels.toml", {"max_windows": 40, "dtype": "int8"})
    write_settings(folder / "rnn.toml", rnn_config().model_dump(exclude_unset=True))
    return folder


def test_the_plan_is_what_the_stages_then_do(settings: Path, pipeline: Pipeline) -> None:
    """Parameters, windows, steps and bytes are those of the artifacts that were made."""
    encoder, labels, rnn = plan.run([settings], pipeline.tokens)
    assert [each.command for each in (encoder, labels, rnn)] == [
        "train-encoder",
        "extract-labels",
        "train-rnn",
    ]
    made = Artifact.open(pipeline.encoder).manifest.statistics
    assert sum(encoder.parameters.values()) == made["parameters"]
    assert (encoder.steps, encoder.reads) == (made["steps"], made["steps"] * 8)
    train = Artifact.open(pipeline.labels).manifest.statistics["windows"]["train"]
    assert encoder.windows == labels.windows == train
    assert (
        sum(rnn.parameters.values())
        == (Artifact.open(pipeline.rnn).manifest.statistics["parameters"])
    )
    assert labels.reads == rnn.windows == 40
    assert labels.disk == (40 + 256) * 17 * 2 * (8 + 4)  # 17 memories of 2 slots, with scales
    for each in (encoder, labels, rnn):
        assert each.problems == []
        assert each.batch == each.measured_batch
        assert each.seconds
        assert each.seconds > 0
        assert 0 < each.memory < (available_memory(CPU) or each.memory + 1)


def test_without_tokens_random_ones_stand_for_them(settings: Path, command: Command) -> None:
    (settings / "tokenize.toml").write_text(
        'tokenizer = "pixel"\n[pixel]\nlevels = 5\nsize = [4, 4]'
    )
    text = (settings / "encoder.toml").read_text().replace("window = 16", "")
    (settings / "encoder.toml").write_text(text)
    (settings / "labels.toml").unlink()
    encoder, rnn = json.loads(command("plan", settings, "--json").stdout)
    assert encoder["windows"] is None
    assert encoder["parameters"]["encoder"] > 0
    assert rnn["windows"] is None


def test_what_does_not_fit_is_named_with_its_key(
    settings: Path, pipeline: Pipeline, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = encoder_config(objective={"dynamics_start": 12}).model_dump(exclude_unset=True)
    (settings / "encoder.toml").unlink()
    write_settings(settings / "encoder.toml", late)
    monkeypatch.setattr("smtkit.stages.plan.available_memory", lambda device: 1000)
    usage = plan.shutil.disk_usage("/")._replace(free=4080)
    monkeypatch.setattr("smtkit.stages.plan.shutil.disk_usage", lambda path: usage)
    result = command("plan", settings, "--tokens", pipeline.tokens)
    assert result.code == 0
    shown = " ".join(result.stdout.split())
    assert (
        "ends after 12 updates, before the dynamics begin: lower objective.dynamics_start" in shown
    )
    assert "of memory, 1e-06 GB are available: raise training.accumulation" in shown
    assert "available: lower batch_size" in shown
    assert "free here: lower max_windows to 10 " in shown


def test_a_batch_out_of_reach_is_scaled_up(
    settings: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smtkit.training.trial.available_memory", lambda device: 1000)
    encoder = plan.run([settings], pipeline.tokens)[0]
    assert (encoder.batch, encoder.measured_batch) == (8, 2)  # of one group of uniformity


def test_files_of_no_stage_and_of_stages_that_do_not_fit(settings: Path) -> None:
    with pytest.raises(UsageError, match=r"other.toml: its name is that of no stage, allowed: tok"):
        plan.run([settings / "other.toml"])
    with pytest.raises(UsageError, match=r"rnn.toml: learns from labels"):
        plan.run([settings / "rnn.toml"])
    with pytest.raises(UsageError, match=r"labels.toml: labels are made by an encoder"):
        plan.run([settings / "labels.toml"])
    with pytest.raises(UsageError, match="for the same stage"):
        plan.run([settings, settings / "rnn-large.toml"])
    with pytest.raises(UsageError, match="no settings of a stage"):
        plan.run([settings.parent])


def test_an_error_of_a_stage_names_its_file(settings: Path, pipeline: Pipeline) -> None:
    text = (settings / "encoder.toml").read_text().replace("window = 16", "window = 1000000")
    (settings / "encoder.toml").write_text(text)
    with pytest.raises(UsageError, match=r"encoder.toml: data.window = 1000000: windows of"):
        plan.run([settings / "encoder.toml"], pipeline.tokens)


def test_peak_memory_sees_what_was_allocated() -> None:
    peak = PeakMemory(CPU)
    numbers = torch.ones(256 * 2**20 // 4)
    assert peak.bytes() >= peak.before + 128 * 2**20  # memory freed before may be reused
    assert numbers.sum() == numbers.numel()


def test_the_default_labels_are_enough_for_an_rnn(settings: Path, pipeline: Pipeline) -> None:
    (settings / "labels.toml").unlink()
    assert ExtractLabelsConfig().max_windows is None
    assert [each.command for each in plan.run([settings], pipeline.tokens)] == [
        "train-encoder",
        "train-rnn",
    ]
