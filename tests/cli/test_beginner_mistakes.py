"""The mistakes of a beginner, each with the exit code and what its one line says."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from artifacts import flip_byte
from conftest import Command, Pipeline, shards

MISTAKES = [
    # Names of settings and options
    (
        "train-encoder tokens --out new --set training.lr=1",
        2,
        "did you mean training.learning_rate?",
    ),
    ("train-encoder tokens --out new --lr 1", 2, "No such option: --lr (Possible options: --learn"),
    ("train-encoder tokens --out new --steps 9", 2, "Possible options: --max-steps"),
    ("train-encoder tokens --out new", 2, "training.max_steps or training.max_seconds must be set"),
    ("trainrnn labels --out new", 2, "Did you mean 'train-rnn'?"),
    ("synthesize --task parity --lengths 8", 2, "--task (TASK is given without a flag)"),
    # Values
    ("synthesize retreival --lengths 8 --sequences 9 --out new", 2, "did you mean retrieval?"),
    ("train-rnn labels --cell GRU --max-steps 1 --out new", 2, "did you mean gru?"),
    ("train-rnn labels --method SMT --max-steps 1 --out new", 2, "did you mean smt?"),
    ("extract-labels encoder --tokens tokens --dtype fp16 --out new", 2, "did you mean float16?"),
    ("tokenize a.txt --tokenizer bytes --out new", 2, "did you mean byte?"),
    ("tokenize pictures --tokenizer pixel --size 2x3x4 --out new", 2, "expected HxW"),
    ("train-encoder tokens --max-steps many --out new", 2, "training.max_steps = 'many'"),
    # Settings that have no effect
    (
        "tokenize a.txt --size 14 --out new",
        2,
        "used with tokenizer pixel; found tokenizer byte",
    ),
    (
        "tokenize a.txt --text-field words --out new",
        2,
        "--text-field words: a.txt: plain text",
    ),
    ("train-rnn labels --depth 4 --max-steps 1 --out new", 2, "only used with method dmt"),
    # Files
    ("tokenize b.txt --out new", 2, "b.txt: no such file or directory"),
    ("tokenize pictures --out new", 2, "no text files found (1 binary files passed over)"),
    ("tokenize a.csv --out new", 2, "a.csv: no column text, found id, words"),
    ("train-encoder a.txt --max-steps 1 --out new", 3, "a.txt: not a complete artifact"),
    ("train-encoder nothing --max-steps 1 --out new", 2, "nothing: no such artifact"),
    ("tokenize a.txt --out tokens", 2, "exists (--overwrite replaces it, --resume keeps it)"),
    ("generate rnn --out samples.png", 2, "--out: rnn writes text"),
    # Artifacts
    ("train-rnn tokens --max-steps 1 --out new", 3, "kind is tokens, expected labels"),
    ("extract-labels rnn --tokens tokens --out new", 3, "kind is rnn, expected encoder"),
    ("eval rnn --out new", 2, "Missing option '--tokens'"),
    ("train-encoder damaged --max-steps 1 --out new", 3, "make it again with --overwrite"),
]


@pytest.fixture(scope="module")
def folder(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a beginner has in the folder."""
    folder = tmp_path_factory.mktemp("beginner")
    for name, path in vars(pipeline).items():
        shutil.copytree(path, folder / name)
    shutil.copytree(pipeline.tokens, folder / "damaged")
    flip_byte(shards(folder / "damaged", "train")[0], 500)
    (folder / "a.txt").write_text("a text " * 100)
    (folder / "a.csv").write_text("id,words\n1,a text\n")
    (folder / "pictures").mkdir()
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(folder / "pictures" / "a.png")
    return folder


@pytest.mark.parametrize(("line", "code", "message"), MISTAKES, ids=[row[0] for row in MISTAKES])
def test_a_mistake_is_one_line_that_helps(
    command: Command,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(folder)
    result = command(*line.split())
    assert result.code == code, result.stderr
    assert message in result.line()
    assert not (folder / "new").exists()


def test_one_number_is_the_size_of_a_square(command: Command, folder: Path, tmp_path: Path) -> None:
    path = folder / "pictures"
    for number, size in enumerate((["--size", "4"], ["--set", "pixel.size=4"], ["--size", "4x4"])):
        out = tmp_path / str(number)
        assert command("tokenize", path, "--tokenizer", "pixel", *size, "--out", out).code == 0
        assert "height: 4\n  width: 4\n" in command("inspect", out).stdout
