"""Formats of text files: the same text in every format gives the same documents."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Command
from corpora import (
    ALL_TRAIN,
    WRITERS,
    everything_below,
    gz,
    many_texts,
    run,
    some_text,
    source_of,
    split_texts,
    write_csv,
    write_jsonl,
    write_plain,
    zst,
)
from smtkit.corpus.splits import SPLITS
from smtkit.storage.artifact import Artifact
from subprocesses import smtkit


@pytest.mark.parametrize("tokenizer", ["byte", "char", "sentencepiece"])
def test_a_text_has_the_same_tokens_in_every_format_and_compression(
    tmp_path: Path, tokenizer: str
) -> None:
    text = some_text(2000)
    paths = []
    for suffix, write in WRITERS.items():
        paths.append(tmp_path / f"text.{suffix}")
        write(paths[-1], [text])
    plain, jsonl, table, _ = paths
    paths += [gz(plain), zst(plain), gz(jsonl), zst(jsonl), gz(table), zst(table)]
    options = {"tokenizer": tokenizer}
    if tokenizer == "sentencepiece":
        options["vocabulary_size"] = "300"
    digests = {
        path.name: run(tmp_path / f"out-{n}", path, **options).manifest.digest
        for n, path in enumerate(paths)
    }
    size = ["--vocab-size", 300] if tokenizer == "sentencepiece" else []
    flags = ["--tokenizer", tokenizer, *size, "--quiet"]
    for name, path in (("plain", plain), ("gz", gz(plain)), ("zst", zst(plain))):
        out = tmp_path / f"out-stdin-{name}"
        content = path.read_bytes()
        piped = smtkit("tokenize", "-", "--out", out, *flags, input=content, text=False)
        assert piped.returncode == 0
        digests[f"stdin {name}"] = Artifact.open(out).manifest.digest
        assert not list(out.rglob("stdin*"))
    assert len(set(digests.values())) == 1, digests


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_rows_are_the_documents_that_files_would_be(tmp_path: Path, suffix: str) -> None:
    texts = many_texts()
    (tmp_path / "files").mkdir()
    for n, text in enumerate(texts):
        write_plain(tmp_path / "files" / f"{n:03d}.txt", [text])
    WRITERS[suffix](tmp_path / f"rows.{suffix}", texts)
    of_files = run(tmp_path / "1", tmp_path / "files")
    of_rows = run(tmp_path / "2", tmp_path / f"rows.{suffix}")
    assert of_rows.manifest.digest == of_files.manifest.digest
    assert of_rows.manifest.statistics == of_files.manifest.statistics
    found = [text for split in SPLITS for text in split_texts(of_rows, split)]
    assert sorted(found) == sorted(texts)
    assert all(split_texts(of_rows, split) for split in SPLITS)


@given(texts=st.lists(st.text(), min_size=1, max_size=5))
def test_any_text_comes_through_every_kind_of_row(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    directory = tmp_path_factory.mktemp("rows")
    for suffix in ("jsonl", "csv", "parquet"):
        path = directory / f"rows.{suffix}"
        WRITERS[suffix](path, texts)
        source = source_of(path)
        found = [b"".join(document.blocks()) for document in source.documents()]
        assert found == [text.encode() for text in texts], suffix


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_the_text_may_be_in_another_field(command: Command, tmp_path: Path, suffix: str) -> None:
    texts = many_texts(5)
    path = tmp_path / f"rows.{suffix}"
    WRITERS[suffix](path, texts, "the body")
    out = tmp_path / "out"
    shares = ["--validation-fraction", 0, "--test-fraction", 0, "--quiet"]
    assert command("tokenize", path, "--out", out, "--text-field", "the body", *shares).code == 0
    assert split_texts(Artifact.open(out), "train") == texts


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_missing_column_is_a_usage_error_that_names_the_others(
    command: Command, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"rows.{suffix}"
    WRITERS[suffix](path, ["one"], "body")
    result = command("tokenize", path, "--out", tmp_path / "out")
    assert result.code == 2
    assert result.line().startswith(f"{path}: no column text, found id, body")
    assert "--text-field" in result.line()
    assert everything_below(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_the_format_can_be_named(tmp_path: Path, suffix: str) -> None:
    texts = many_texts(5)
    path = tmp_path / "rows.data"
    WRITERS[suffix](path, texts)
    artifact = run(tmp_path / "out", path, format=suffix, **ALL_TRAIN)
    assert split_texts(artifact, "train") == texts


def test_rows_can_be_read_as_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, many_texts(5))
    artifact = run(tmp_path / "out", path, format="text", **ALL_TRAIN)
    assert split_texts(artifact, "train") == [path.read_text(encoding="utf-8")]


def test_rows_come_from_standard_input(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", many_texts())
    content = (tmp_path / "rows.jsonl").read_text()
    out = tmp_path / "out"
    result = smtkit("tokenize", "-", "--format", "jsonl", "--out", out, "-q", input=content)
    assert result.returncode == 0, result.stderr
    of_file = run(tmp_path / "of file", tmp_path / "rows.jsonl")
    assert Artifact.open(out).manifest.digest == of_file.manifest.digest


def test_a_byte_order_mark_is_no_part_of_the_first_field(tmp_path: Path) -> None:
    for suffix, write in (("jsonl", write_jsonl), ("csv", write_csv)):
        path = tmp_path / f"rows.{suffix}"
        write(path, ["one", "two"])
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        artifact = run(tmp_path / suffix, path, **ALL_TRAIN)
        assert split_texts(artifact, "train") == ["one", "two"]


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("jsonl", '\n{"text": "one"}\n\n  \n{"text": "two"}\n\n'),
        ("jsonl", '{"text": "one"}\r\n{"text": "two"}'),
        ("csv", "text\r\none\r\ntwo"),
        ("csv", "id,text\n1,one\n2,two\n\n"),
    ],
)
def test_blank_lines_between_rows_are_passed_over(
    tmp_path: Path, suffix: str, content: str
) -> None:
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes(content.encode())
    assert split_texts(run(tmp_path / "out", path, **ALL_TRAIN), "train") == ["one", "two"]


def test_text_of_a_dictionary_or_large_column_is_text(tmp_path: Path) -> None:
    texts = pa.array(["one", "two", "three"])
    for n, column in enumerate([texts.dictionary_encode(), texts.cast(pa.large_string())]):
        path = tmp_path / f"{n}.parquet"
        pa.parquet.write_table(pa.table({"text": column}), path)
        artifact = run(tmp_path / f"out-{n}", path, **ALL_TRAIN)
        assert split_texts(artifact, "train") == ["one", "two", "three"]


def test_empty_and_equal_rows_are_counted_and_left_out(tmp_path: Path) -> None:
    texts = ["one", "", "two", "one", ""]
    write_jsonl(tmp_path / "rows.jsonl", texts)
    artifact = run(tmp_path / "out", tmp_path / "rows.jsonl", **ALL_TRAIN)
    assert split_texts(artifact, "train") == ["one", "two"]
    statistics = artifact.manifest.statistics
    assert statistics["documents"] == 5
    assert statistics["empty_documents"] == 2
    assert statistics["duplicate_documents"] == 1


def test_suffixes_count_in_any_case(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    packed = gz(tmp_path / "a.jsonl").rename(tmp_path / "A.JSONL.GZ")
    assert split_texts(run(tmp_path / "out", packed, **ALL_TRAIN), "train") == ["one", "two"]
