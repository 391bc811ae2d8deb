"""Manifests and tokenizers that are forged: refused in one line by the commands that use them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from artifacts import edit_files, edit_manifest
from conftest import Command, Pipeline, arrow_columns, shards
from smtkit.config import TokenizeConfig
from smtkit.stages import tokenize
from smtkit.storage.manifest import MANIFEST

TRAIN = ("--max-steps", 1)


def statistics_of(artifact: Path) -> dict[str, Any]:
    return json.loads((artifact / MANIFEST).read_text())["statistics"]


@pytest.fixture
def rows(parity: Path, tmp_path: Path) -> Path:
    return shutil.copytree(parity, tmp_path / "rows")


def uses(command: Command, tokens: Path) -> list[str]:
    """What the commands that read tokens say, each with exit code 3."""
    out = tokens.parent / "out"
    results = [
        command("inspect", tokens),
        command("train-encoder", tokens, *TRAIN, "--out", out),
        command("train-rnn", tokens, "--method", "bptt", *TRAIN, "--out", out),
    ]
    assert [result.code for result in results] == [3, 3, 3]
    assert not out.exists()
    return [result.line() for result in results]


@pytest.mark.parametrize(
    "changes",
    [
        {"layout": None},
        {"layout": ["stream"]},
        {"layout": "rows", "length": None},
        {"length": "9"},
        {"length": True},
        {"length": -9},
        {"length": 10**9},
        {"length": 10**40},
    ],
    ids=str,
)
def test_an_odd_layout_or_length_is_refused(
    command: Command, rows: Path, changes: dict[str, Any]
) -> None:
    edit_manifest(rows, statistics=statistics_of(rows) | changes)
    for line in uses(command, rows):
        assert line.startswith(f"{rows}: statistics: found layout ")


def test_a_manifest_without_layout_is_refused(command: Command, rows: Path) -> None:
    edit_manifest(rows, statistics={})
    for line in uses(command, rows):
        assert line.startswith(f"{rows}: statistics: found layout None and length None")


def test_the_length_is_that_of_the_longest_row(parity: Path) -> None:
    paths = [path for split in ("train", "validation", "test") for path in shards(parity, split)]
    assert statistics_of(parity)["length"] == max(map(len, arrow_columns(paths)["tokens"]))


@pytest.mark.parametrize(
    "tokenizer", [{"kind": "byte"}, {"kind": "pixel", "levels": 5, "height": 3, "width": 4}]
)
def test_rows_of_another_tokenizer_are_refused(
    command: Command, rows: Path, tokenizer: dict[str, Any]
) -> None:
    (path,) = rows.glob("run-*/tokenizer.json")
    path.write_text(json.dumps(tokenizer))
    edit_files(rows)
    for line in uses(command, rows):
        assert line == f"{rows}: its rows are not those of its tokenizer"


def test_text_of_a_tokenizer_of_symbols_is_refused(
    command: Command, pipeline: Pipeline, tmp_path: Path
) -> None:
    tokens = shutil.copytree(pipeline.tokens, tmp_path / "tokens")
    (path,) = tokens.glob("run-*/tokenizer.json")
    path.write_text(json.dumps({"kind": "symbols", "symbols": ["a"] * 257}))
    edit_files(tokens)
    for line in uses(command, tokens):
        assert line == f"{tokens}: its rows are not those of its tokenizer"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `tokens` artifact of images with names of classes."""
    directory = tmp_path_factory.mktemp("digits")
    images = np.arange(20 * 6, dtype=np.uint8).reshape(20, 2, 3)
    np.savez(directory / "a.npz", images=images, labels=np.arange(20) % 3)
    config = TokenizeConfig(inputs=[str(directory / "a.npz")], tokenizer="pixel")
    tokenize.run(config, directory / "tokens")
    return directory / "tokens"


@pytest.mark.parametrize("names", [5, "ab", ["a"], {"0": "a"}, [["b"], None, 3]], ids=str)
def test_odd_names_of_classes_are_shown_or_replaced_by_numbers(
    command: Command, digits: Path, tmp_path: Path, names: object
) -> None:
    tokens = shutil.copytree(digits, tmp_path / "tokens")
    edit_manifest(tokens, statistics=statistics_of(tokens) | {"label_names": names})
    result = command("inspect", tokens, "--rows", 10)
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.count("--- row ") == 10


def test_an_image_that_is_cut_short_is_refused(
    command: Command, digits: Path, tmp_path: Path
) -> None:
    """The checksum is forged, too."""
    tokens = shutil.copytree(digits, tmp_path / "tokens")
    (path,) = shards(tokens, "train")
    table = pa.ipc.open_file(path.read_bytes()).read_all()
    columns = table.to_pydict()
    columns["tokens"] = [row[:-1] for row in columns["tokens"]]
    columns["targets"] = [row[:-1] for row in columns["targets"]]
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(pa.table(columns, schema=table.schema))
    edit_files(tokens)
    result = command("inspect", tokens)
    assert (result.code, result.line()) == (3, f"{tokens}: an image of 5 pixels")


ODD = [
    {},
    {"results": 5},
    {"results": []},
    {"results": [{}]},
    {"results": [{"bits_per_byte": "x", "predictor": [], "range": {}}]},
    {"results": [], "windows": {}, "window": [], "split": None, "tokens": "symbols", "drift": 5},
]


@pytest.mark.parametrize("statistics", ODD, ids=str)
def test_an_evaluation_of_odd_statistics_is_refused(
    command: Command, rows: Path, statistics: dict[str, Any]
) -> None:
    edit_manifest(rows, kind="evaluation", statistics=statistics)
    result = command("inspect", rows)
    assert result.code == 3
    assert result.stderr == f"smtkit: {rows}: its statistics are not those of an evaluation\n"


@pytest.mark.parametrize(
    "statistics", [{"a": {"b": {"c": {"d": []}}, "e": 1}}, {"a": {"b": 1, "c": {}}}], ids=str
)
def test_odd_statistics_are_shown(command: Command, rows: Path, statistics: dict[str, Any]) -> None:
    edit_manifest(rows, statistics=statistics_of(rows) | statistics)
    result = command("inspect", rows)
    assert (result.code, result.stderr) == (0, "")


@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json"])
def test_half_a_character_is_refused(command: Command, rows: Path, name: str) -> None:
    """A lone surrogate, which no output can be written in."""
    (path,) = (rows / name,) if name == MANIFEST else rows.glob(f"run-*/{name}")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "\ud800": "\ud800"}))
    if name != MANIFEST:
        edit_files(rows)
    result = command("inspect", rows)
    assert result.code == 3
    assert result.line().startswith(f"{path}: not a ")


@pytest.mark.parametrize("deep", [190, 600])
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_deep_statistics_are_shown_or_refused(
    command: Command, rows: Path, deep: int, options: tuple[str, ...]
) -> None:
    value: Any = 1
    for level in range(deep):
        value = {"a": value} if level % 2 else [value]
    edit_manifest(rows, statistics=statistics_of(rows) | {"more": value})
    result = command("inspect", rows, *options)
    assert result.code == (3 if deep == 600 else 0), result.stderr
    if deep == 600:
        assert result.line().startswith(f"{rows / MANIFEST}: not a manifest: recursion limit")
