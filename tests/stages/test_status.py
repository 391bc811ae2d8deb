"""`smtkit status`, and `--update`, by which `make` keeps artifacts up to date."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from conftest import Command, KilledError, Killer, encoder_config, write_text
from smtkit.config import ExtractLabelsConfig
from smtkit.errors import UsageError
from smtkit.stages import extract_labels, status, train_encoder
from smtkit.storage.locks import DirectoryLock
from smtkit.storage.manifest import MANIFEST

SMALL = encoder_config(training={"max_steps": 8})


@pytest.fixture
def chain(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tokens, an encoder and labels, made in their folder by relative paths."""
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "text.txt", 400)
    flags = ("--validation-fraction", 0.1, "--test-fraction", 0.1)
    assert command("tokenize", "text.txt", "--out", "tokens", *flags).code == 0
    train_encoder.run(SMALL, "tokens", "encoder")
    extract_labels.run(ExtractLabelsConfig(max_windows=4), "encoder", "tokens", "labels")
    return tmp_path


def states(directory: Path) -> dict[str, str]:
    return {Path(found.path).name: found.state for found in status.run(directory)}


def test_what_is_complete_is_done_wherever_it_is_looked_at_from(
    chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = {"tokens": "done", "encoder": "done", "labels": "done"}
    assert list(states(chain)) == list(done)
    assert states(chain) == done
    monkeypatch.chdir("/")
    assert states(chain) == done


def test_another_teacher_makes_its_labels_stale(chain: Path, command: Command) -> None:
    train_encoder.run(SMALL.model_copy(update={"seed": 1}), "tokens", "encoder", overwrite=True)
    assert states(chain) == {"tokens": "done", "encoder": "done", "labels": "stale"}
    result = command("status", ".")
    assert "labels" in result.stdout
    assert "encoder encoder has changed since" in result.stdout


def test_another_text_makes_all_stale(chain: Path) -> None:
    write_text(chain / "text.txt", 500)
    assert states(chain) == {"tokens": "stale", "encoder": "stale", "labels": "stale"}
    (chain / "text.txt").unlink()  # no longer there to compare with
    assert states(chain)["encoder"] == "done"


def test_an_interrupted_run_shows_how_far_it_came(chain: Path, command: Command) -> None:
    with pytest.raises(KilledError):
        train_encoder.run(SMALL, "tokens", "second", progress=Killer(6))
    (found,) = (found for found in status.run(chain) if found.path.endswith("second"))
    assert (found.kind, found.state, found.detail) == ("encoder", "unfinished", "step 4 of 8")
    assert "unfinished  step 4 of 8 (go on with --resume)" in command("status", ".").stdout
    lock = DirectoryLock(chain / "second")
    assert states(chain)["second"] == "running"
    lock.release()
    train_encoder.run(SMALL, "tokens", "second", resume=True)
    assert states(chain)["second"] == "done"


def test_a_new_run_over_a_complete_artifact_is_unfinished(chain: Path) -> None:
    other = SMALL.model_copy(update={"seed": 1})
    with pytest.raises(KilledError):
        train_encoder.run(other, "tokens", "encoder", progress=Killer(6), overwrite=True)
    assert states(chain)["encoder"] == "unfinished"
    assert states(chain)["labels"] == "done"  # made of the encoder that is still there


def test_damage_is_shown_and_stops_nothing(chain: Path, command: Command) -> None:
    (chain / "encoder" / MANIFEST).write_text("{")
    found = {Path(each.path).name: each for each in status.run(chain)}
    assert found["encoder"].state == "damaged"
    assert "not a manifest" in found["encoder"].detail
    assert found["labels"].state == "done"
    listed: list[dict[str, Any]] = json.loads(command("status", ".", "--json").stdout)
    assert {each["state"] for each in listed} == {"done", "damaged"}


def test_links_in_place_of_a_run_or_its_record_are_damage(tmp_path: Path) -> None:
    run = tmp_path / "rnn" / "run-01234567"
    run.mkdir(parents=True)
    (run / "run.json").symlink_to(run / "run.json")
    assert states(tmp_path) == {"rnn": "damaged"}
    elsewhere = tmp_path / ".elsewhere"
    run.rename(elsewhere)
    (elsewhere / "run.json").unlink()
    (elsewhere / "run.json").write_text("{}")
    run.symlink_to(elsewhere)
    assert states(tmp_path) == {"rnn": "damaged"}


def test_a_folder_without_artifacts(tmp_path: Path, command: Command) -> None:
    assert command("status", tmp_path).stdout == f"{tmp_path}: no artifacts\n"
    with pytest.raises(UsageError, match="nowhere: no such directory"):
        status.run(tmp_path / "nowhere")


def test_update_keeps_replaces_and_marks(chain: Path, command: Command) -> None:
    def tokenize(*flags: object) -> tuple[str, float]:
        shares = ("--validation-fraction", 0.1, "--test-fraction", 0.1)
        assert command("tokenize", "text.txt", "--out", "tokens", *shares, *flags).code == 0
        path = chain / "tokens" / MANIFEST
        return json.loads(path.read_text())["digest"], path.stat().st_mtime

    first, _ = tokenize("--update")
    os.utime(chain / "tokens" / MANIFEST, (1, 1))
    kept, time = tokenize("--update")
    assert kept == first
    assert time > 1
    os.utime(chain / "tokens" / MANIFEST, (1, 1))
    assert tokenize("--resume") == (first, 1)
    replaced, _ = tokenize("--update", "--seed", 1, "--tokenizer", "char")
    assert replaced != first
