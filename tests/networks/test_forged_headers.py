"""Headers of weights whose keys were forged: an error in one line, or a network that fits."""

import json
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from artifacts import edit_files
from conftest import Command, Pipeline
from smtkit.errors import ArtifactError
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.networks.teacher import LabelTeacher, Teacher
from smtkit.storage.tensors import load_tensors, save_tensors

NETWORKS = {"encoder": Teacher, "labels": LabelTeacher, "rnn": RecurrentNetwork}
VALUES: list[Any] = [
    *(None, "x", True, [], [1, 2], {}, 1.5, 1e308, float("nan")),
    *(-1, 0, 1, 3, 10**4, 10**7, 10**8, 2**31, 2**63, 10**400),
    *("gru", "transformer", "decoder", "handoff", "gated"),
]


def _keys(table: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in table.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from _keys(value, (*above, key))


def _forged(header: dict[str, Any], keys: tuple[str, ...], value: Any) -> dict[str, Any]:
    copied = table = json.loads(json.dumps(header))
    for key in keys[:-1]:
        table = table[key]
    table[keys[-1]] = value
    return copied


@pytest.mark.parametrize("kind", NETWORKS)
def test_any_forged_value_is_refused_or_harmless(
    pipeline: Pipeline, tmp_path: Path, kind: str
) -> None:
    (path,) = getattr(pipeline, kind).glob("run-*/model.safetensors")
    (tensors, header), draw = load_tensors(path), random.Random(0)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    forged = tmp_path / "model.safetensors"
    cases = [(keys, value) for keys in _keys(header) for value in VALUES]
    for keys, value in draw.sample(cases, 250):
        save_tensors(forged, tensors, _forged(header, keys, value))
        started, loaded = time.process_time(), None
        with suppress(ArtifactError):
            loaded = NETWORKS[kind].load(forged)
        assert time.process_time() - started < 10, (keys, value)
        if loaded is not None:
            assert {name: t.shape for name, t in loaded.state_dict().items()} == shapes


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("cell", "layers"), 10**7),
        (("vocabulary_size",), 10**8),
        (("memory", "slots"), 10**9),
        (("cell",), {}),
        (("readout",), None),
    ],
)
def test_commands_refuse_forged_headers_in_one_line(
    command: Command, pipeline: Pipeline, tmp_path: Path, keys: tuple[str, ...], value: Any
) -> None:
    out = tmp_path / "out"
    uses = {
        "encoder": ("extract-labels", "{}", "--tokens", pipeline.tokens, "--out", out),
        "labels": ("train-rnn", "{}", "--max-steps", 1, "--out", out),
        "rnn": ("generate", "{}"),
    }
    for kind, use in uses.items():
        artifact = shutil.copytree(getattr(pipeline, kind), tmp_path / kind)
        (path,) = artifact.glob("run-*/model.safetensors")
        tensors, header = load_tensors(path)
        save_tensors(path, tensors, _forged(header, keys, value))
        edit_files(artifact)
        result = command(*(str(each).format(artifact) for each in use))
        assert result.code == 3
        assert result.line().startswith(f"{path}: ")
    assert not out.exists()


def test_a_tokenizer_of_another_vocabulary_is_refused(
    command: Command, pipeline: Pipeline, tmp_path: Path
) -> None:
    artifact = shutil.copytree(pipeline.rnn, tmp_path / "rnn")
    (path,) = artifact.glob("run-*/tokenizer.json")
    path.write_text(json.dumps({"kind": "char", "characters": "abc"}))
    edit_files(artifact)
    for use in (("generate", artifact, "--prompt", "abc"), ("generate", artifact)):
        result = command(*use)
        assert result.code == 3
        assert "its tokenizer has 5 tokens, its network 257" in result.line()
