"""Text as its users have it: plain, in rows, compressed, on standard input; and broken."""

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from smtkit.artifacts.manifest import Artifact
from smtkit.config import TokenizeConfig
from smtkit.data.tokenizers import load_text_tokenizer
from smtkit.data.tokens import open_stream
from smtkit.errors import InputOutputError, UsageError
from smtkit.resolve import resolve
from smtkit.stages import tokenize

TEXT = "".join(f"line {n}: \N{EURO SIGN}{n * n} and café\n" for n in range(400))
DOCUMENTS = [f"document {n}, \N{SNOWMAN} {'word ' * n}" for n in range(40)]


def tokenized(directory: Path, *inputs: Path, **settings) -> Artifact:
    flags = {"inputs": [str(path) for path in inputs], **settings}
    out = directory / "out"
    tokenize.run(resolve(TokenizeConfig, flags=flags), out, overwrite=True)
    return Artifact.open(out)


def documents(artifact: Artifact, split: str) -> list[str]:
    tokenizer = load_text_tokenizer(artifact)
    if not artifact.manifest.statistics["splits"][split]["tokens"]:
        return []
    tokens = open_stream(artifact, split).read(0, 10**9)
    ends = np.flatnonzero(tokens == tokenizer.end_of_document)
    return [tokenizer.decode(map(int, part)) for part in np.split(tokens, ends + 1)[:-1]]


def all_documents(artifact: Artifact) -> list[str]:
    return sorted(
        text for split in ("train", "validation", "test") for text in documents(artifact, split)
    )


def write_rows(path: Path, texts: list[str], field: str = "text") -> Path:
    """The texts as rows, in the format of the suffix."""
    if path.suffix == ".parquet":
        table = pa.table({"id": range(len(texts)), field: texts})
        pa.parquet.write_table(table, path, row_group_size=7)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["id", field], *enumerate(texts)])
    else:
        lines = (json.dumps({"id": n, field: text}) for n, text in enumerate(texts))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def every_form(directory: Path) -> list[Path]:
    """One text in every form it can come in."""
    plain = directory / "text.txt"
    plain.write_text(TEXT, encoding="utf-8")
    content = TEXT.encode("utf-8")
    (directory / "text.txt.gz").write_bytes(gzip.compress(content))
    (directory / "text.txt.zst").write_bytes(pa.compress(content, codec="zstd", asbytes=True))
    rows = [write_rows(directory / f"text.{end}", [TEXT]) for end in ("jsonl", "csv", "parquet")]
    jsonl = rows[0].read_bytes()
    (directory / "text.jsonl.gz").write_bytes(gzip.compress(jsonl))
    return [
        plain,
        directory / "text.txt.gz",
        directory / "text.txt.zst",
        directory / "text.jsonl.gz",
        *rows,
    ]


@pytest.mark.parametrize("tokenizer", ["byte", "char", "sentencepiece"])
def test_the_same_text_has_the_same_digest_in_every_form(tmp_path: Path, tokenizer: str) -> None:
    digests = {
        path.name: tokenized(
            tmp_path, path, tokenizer=tokenizer, vocabulary_size=310
        ).manifest.digest
        for path in every_form(tmp_path)
    }
    assert len(set(digests.values())) == 1, digests


def test_standard_input_has_the_digest_of_the_file(tmp_path: Path) -> None:
    plain = every_form(tmp_path)[0]
    command = [sys.executable, "-m", "smtkit.cli", "tokenize", "-", "--out", str(tmp_path / "in")]
    subprocess.run([*command, "-q"], input=plain.read_bytes(), check=True)
    assert (
        Artifact.open(tmp_path / "in").manifest.digest == tokenized(tmp_path, plain).manifest.digest
    )


@pytest.mark.parametrize("end", ["jsonl", "csv", "parquet"])
def test_rows_are_documents(tmp_path: Path, end: str) -> None:
    path = write_rows(tmp_path / f"rows.{end}", DOCUMENTS, field="story")
    artifact = tokenized(tmp_path, path, text_field="story", tokenizer="char")
    assert all_documents(artifact) == sorted(DOCUMENTS)
    with pytest.raises(UsageError if end != "jsonl" else InputOutputError, match="story"):
        tokenized(tmp_path, path)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_threads_change_nothing(tmp_path: Path, workers: int) -> None:
    for number, text in enumerate(DOCUMENTS):
        (tmp_path / f"{number:02d}.txt").write_text(text, encoding="utf-8")
    write_rows(tmp_path / "rows.jsonl", [text + "!" for text in DOCUMENTS])
    paths = sorted(tmp_path.glob("*.*"))
    artifact = tokenized(tmp_path, *paths, workers=workers)
    assert all_documents(artifact) == sorted([*DOCUMENTS, *(text + "!" for text in DOCUMENTS)])
    assert artifact.manifest.digest == tokenized(tmp_path, *paths, workers=1).manifest.digest


BROKEN = {
    "not JSON": ('{"text": ', "row 2: not JSON"),
    "no such field": ('{"body": "x"}', "row 2: no field text, found body"),
    "not an object": ("[1]", "row 2: no field text"),
    "null": ('{"text": null}', "row 2: text is null, expected text"),
    "a number": ('{"text": 3}', "row 2: text is int, expected text"),
    "half a character": ('{"text": "\\ud800"}', "row 2: text holds half a character"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_row_is_named_or_skipped_and_counted(tmp_path: Path, name: str) -> None:
    line, said = BROKEN[name]
    rows = [json.dumps({"text": text}) for text in DOCUMENTS]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([rows[0], line, *rows[1:]]) + "\n", encoding="utf-8")
    with pytest.raises(InputOutputError) as caught:
        tokenized(tmp_path, path)
    assert str(caught.value).startswith(f"{path}: {said}")
    assert not (tmp_path / "out").exists()
    artifact = tokenized(tmp_path, path, errors="skip")
    assert artifact.manifest.statistics["broken_documents"] == 1
    assert all_documents(artifact) == sorted(DOCUMENTS)


def test_a_short_csv_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,text\n1,a\n2\n3,c\n")
    with pytest.raises(InputOutputError, match=r"row 2: 1 columns, the header has 2"):
        tokenized(tmp_path, path)
    assert all_documents(tokenized(tmp_path, path, errors="skip")) == ["a", "c"]


def test_a_file_that_is_not_text_can_be_skipped(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("good\n" * 50)
    (tmp_path / "bad.txt").write_bytes(b"bad \xff\n")
    paths = [tmp_path / "bad.txt", tmp_path / "good.txt"]
    with pytest.raises(InputOutputError, match=r"bad\.txt: byte 4: 0xff"):
        tokenized(tmp_path, *paths, tokenizer="char")
    artifact = tokenized(tmp_path, *paths, tokenizer="char", errors="skip")
    assert artifact.manifest.statistics["broken_documents"] == 1
    assert sum(map(len, all_documents(artifact))) == len("good\n" * 50)


def damaged(directory: Path) -> dict[str, Path]:
    content = gzip.compress(TEXT.encode())
    frame = pa.compress(TEXT.encode(), codec="zstd", asbytes=True)
    files = {
        "truncated gzip": ("a.gz", content[:-20]),
        "garbage gzip": ("b.gz", b"garbage" * 100),
        "truncated zstd": ("c.zst", frame[:-10]),
        "garbage zstd": ("d.zst", b"garbage" * 100),
        "not parquet": ("e.parquet", b"PAR1" + b"x" * 100),
    }
    for name, data in files.values():
        (directory / name).write_bytes(data)
    return {what: directory / name for what, (name, _) in files.items()}


@pytest.mark.parametrize(
    "what",
    ["truncated gzip", "garbage gzip", "truncated zstd", "garbage zstd", "not parquet"],
)
def test_a_damaged_file_is_one_line_that_names_it(tmp_path: Path, what: str) -> None:
    path = damaged(tmp_path)[what]
    with pytest.raises(InputOutputError) as caught:
        tokenized(tmp_path, path)
    assert str(caught.value).startswith(f"{path}: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("end", ["gz", "zst"])
def test_what_expands_without_bound_is_stopped(tmp_path: Path, end: str) -> None:
    content = b"\n" * (70 * 2**20)
    path = tmp_path / f"bomb.txt.{end}"
    path.write_bytes(
        gzip.compress(content) if end == "gz" else pa.compress(content, codec="zstd", asbytes=True)
    )
    with pytest.raises(InputOutputError, match="expands to more than 50 times its size"):
        tokenized(tmp_path, path, max_expansion=50)


def test_a_given_test_split_is_kept_whole_and_leaves_train(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", DOCUMENTS)
    test = write_rows(tmp_path / "test.jsonl", [*DOCUMENTS[:3], "only here", "only here"])
    artifact = tokenized(tmp_path, train, test_inputs=[str(test)])
    assert documents(artifact, "test") == [*DOCUMENTS[:3], "only here", "only here"]
    rest = documents(artifact, "train") + documents(artifact, "validation")
    assert sorted(rest) == sorted(DOCUMENTS[3:])


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UsageError, match="no text files found"):
        tokenized(tmp_path, tmp_path / "empty")
    with pytest.raises(UsageError, match="no text in it"):
        tokenized(tmp_path, tmp_path / "empty.jsonl")
