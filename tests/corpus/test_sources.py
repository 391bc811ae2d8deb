"""Inputs of the tokenize stage: however a text is packed, it is the same text, or one line says
what is wrong with it."""

import csv
import gzip
import io
import json
import os
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Command, arrow_columns, shards
from smtkit.config import TokenizeConfig, resolve
from smtkit.corpus import splits
from smtkit.corpus.files import Reader, spool
from smtkit.corpus.formats import TextSource, find_sources
from smtkit.corpus.segments import SEGMENT_BYTES, cut_at_boundaries
from smtkit.corpus.splits import SPLITS, Fractions
from smtkit.corpus.stored_tokenizer import load_tokenizer
from smtkit.corpus.text_corpus import TextCorpus
from smtkit.errors import InputOutputError, SmtkitError
from smtkit.stages import tokenize
from smtkit.storage.artifact import Artifact
from smtkit.training.progress import Silent

MIB = 2**20
ALL_TRAIN = {"validation_fraction": 0, "test_fraction": 0}
WORDS = (
    "memory",
    "slot",
    "naïve",
    "über",
    "東京",
    "Привет",
    "\N{PILE OF POO}",
    "of",
    "the",
    '"x",',
)


def some_text(words: int, seed: int = 0) -> str:
    """Lines of random words, with quotes, commas and characters of one to four bytes."""
    draw = random.Random(seed)
    chosen = [draw.choice(WORDS) for _ in range(words)]
    return "".join(word + draw.choice("    \n") for word in chosen)


# A text, or many, packed in each way


def write_plain(path: Path, texts: Sequence[str]) -> None:
    path.write_bytes("".join(texts).encode("utf-8"))


def write_jsonl(path: Path, texts: Sequence[str], field: str = "text") -> None:
    rows = [json.dumps({"id": n, field: text}) for n, text in enumerate(texts)]
    path.write_text("".join(row + "\n" for row in rows), encoding="utf-8")


def write_csv(path: Path, texts: Sequence[str], field: str = "text") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("id", field), *enumerate(texts)])


def write_parquet(path: Path, texts: Sequence[str], field: str = "text") -> None:
    table = pa.table({"id": list(range(len(texts))), field: list(texts)})
    pa.parquet.write_table(table, path, row_group_size=7)


WRITERS: dict[str, Callable[..., None]] = {
    "txt": write_plain,
    "jsonl": write_jsonl,
    "csv": write_csv,
    "parquet": write_parquet,
}


def gz(path: Path) -> Path:
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(path.read_bytes(), 6))
    return packed


def zst(path: Path) -> Path:
    packed = path.with_name(f"{path.name}.zst")
    packed.write_bytes(pa.compress(path.read_bytes(), codec="zstd", asbytes=True))
    return packed


COMPRESSORS = {"gz": gz, "zst": zst}


def run(out: Path, *inputs: Path | str, **options: Any) -> Artifact:
    options = {"workers": 1, **options}
    tokenize.run(resolve(TokenizeConfig, flags={"inputs": list(map(str, inputs)), **options}), out)
    artifact = Artifact.open(out, "tokens")
    artifact.verify()
    return artifact


def source_of(path: Path) -> TextSource:
    settings = TokenizeConfig(inputs=[str(path)], tokenizer="char")
    (source,), _ = find_sources(settings.inputs, settings, Reader(200))
    return source


def documents(artifact: Artifact, split: str) -> list[str]:
    """The texts of a split, in order; read by Arrow alone, and decoded."""
    columns = arrow_columns(artifact.files(f"{split}-"))
    tokenizer = load_tokenizer(artifact)
    found: dict[int, list[int]] = defaultdict(list)
    for number, tokens in zip(columns["document"], columns["tokens"], strict=True):
        found[number] += tokens
    assert list(found) == sorted(found)
    return [tokenizer.decode(tokens) for tokens in found.values()]


def everything_below(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def smtkit(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "smtkit.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, **options)


@pytest.mark.parametrize("tokenizer", ["byte", "char", "sentencepiece"])
def test_a_text_is_the_same_however_it_is_packed(tmp_path: Path, tokenizer: str) -> None:
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
        piped = smtkit("tokenize", "-", "--out", out, *flags, input=path.read_bytes())
        assert piped.returncode == 0
        digests[f"stdin {name}"] = Artifact.open(out).manifest.digest
        assert not list(out.rglob("stdin*"))
    assert len(set(digests.values())) == 1, digests


@pytest.mark.parametrize("start", [b"", b"\x1f", b"\x1f\x8b", b"(\xb5/", b"abc"])
def test_standard_input_that_only_begins_like_a_compressed_one_is_plain(
    tmp_path: Path, start: bytes
) -> None:
    path = spool(io.BytesIO(start), tmp_path)
    assert (path.name, path.read_bytes()) == ("stdin", start)


def test_standard_input_that_ends_too_early_is_named(tmp_path: Path) -> None:
    packed = gzip.compress(random.Random(0).randbytes(10_000))[:-100]
    result = smtkit("tokenize", "-", "--out", tmp_path / "out", "--quiet", input=packed)
    assert result.returncode == 74
    assert result.stderr.decode() == "smtkit: -: truncated: the compressed data end too early\n"
    assert not (tmp_path / "out").exists()


def test_a_pipe_in_place_of_a_file_is_refused(command: Command, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    line = command("tokenize", tmp_path / "pipe", "--out", tmp_path / "out").line()
    assert line.startswith(f"{tmp_path / 'pipe'}: found a pipe or a device, allowed: files")
    assert "use -: ... | smtkit tokenize -" in line
    assert not (tmp_path / "out").exists()


def test_compressed_files_of_several_members_are_read_to_their_end(tmp_path: Path) -> None:
    parts = [some_text(50, seed).encode() for seed in range(3)]
    whole = b"".join(parts).decode()
    (tmp_path / "a.txt.gz").write_bytes(b"".join(map(gzip.compress, parts)))
    frames = [pa.compress(part, codec="zstd", asbytes=True) for part in parts]
    (tmp_path / "b.txt.zst").write_bytes(b"".join(frames))
    for name in ("a.txt.gz", "b.txt.zst"):
        artifact = run(tmp_path / f"out-{name}", tmp_path / name, **ALL_TRAIN)
        assert documents(artifact, "train") == [whole]


def test_suffixes_count_in_any_case(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    packed = gz(tmp_path / "a.jsonl").rename(tmp_path / "A.JSONL.GZ")
    assert documents(run(tmp_path / "out", packed, **ALL_TRAIN), "train") == ["one", "two"]


# Rows


def many_texts(count: int = 60) -> list[str]:
    """Different texts, none of which is half of all."""
    return [f"{n}: {some_text(5 + n * 7 % 11, n)}" for n in range(count)]


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
    found = [text for split in SPLITS for text in documents(of_rows, split)]
    assert sorted(found) == sorted(texts)
    assert all(documents(of_rows, split) for split in SPLITS)


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
    assert documents(Artifact.open(out), "train") == texts


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
    assert documents(artifact, "train") == texts


def test_rows_can_be_read_as_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, many_texts(5))
    artifact = run(tmp_path / "out", path, format="text", **ALL_TRAIN)
    assert documents(artifact, "train") == [path.read_text(encoding="utf-8")]


def test_rows_come_from_standard_input(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", many_texts())
    content = (tmp_path / "rows.jsonl").read_bytes()
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
        assert documents(artifact, "train") == ["one", "two"]


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
    assert documents(run(tmp_path / "out", path, **ALL_TRAIN), "train") == ["one", "two"]


def test_text_of_a_dictionary_or_large_column_is_text(tmp_path: Path) -> None:
    texts = pa.array(["one", "two", "three"])
    for n, column in enumerate([texts.dictionary_encode(), texts.cast(pa.large_string())]):
        path = tmp_path / f"{n}.parquet"
        pa.parquet.write_table(pa.table({"text": column}), path)
        artifact = run(tmp_path / f"out-{n}", path, **ALL_TRAIN)
        assert documents(artifact, "train") == ["one", "two", "three"]


def test_empty_and_equal_rows_are_counted_and_left_out(tmp_path: Path) -> None:
    texts = ["one", "", "two", "one", ""]
    write_jsonl(tmp_path / "rows.jsonl", texts)
    artifact = run(tmp_path / "out", tmp_path / "rows.jsonl", **ALL_TRAIN)
    assert documents(artifact, "train") == ["one", "two"]
    statistics = artifact.manifest.statistics
    assert statistics["documents"] == 5
    assert statistics["empty_documents"] == 2
    assert statistics["duplicate_documents"] == 1


# Rows that are broken

GOOD = ["first row", "second row", "fourth row", "fifth row"]
"""And between them, as the third, comes a broken one."""


def jsonl_of(line: bytes) -> bytes:
    lines = [json.dumps({"text": text}).encode() for text in GOOD]
    return b"\n".join([*lines[:2], line, *lines[2:]]) + b"\n"


def csv_of(line: bytes) -> bytes:
    lines = [f"{n},{text}".encode() for n, text in enumerate(GOOD)]
    return b"\r\n".join([b"id,text", *lines[:2], line, *lines[2:]]) + b"\r\n"


def parquet_of(column: pa.Array) -> bytes:
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table({"text": column}), sink)
    return bytes(sink.getvalue())


def torn_column() -> pa.Array:
    """A column of strings, the third of which is not UTF-8."""
    return pa.array([*map(str.encode, GOOD[:2]), b"\xff", *map(str.encode, GOOD[2:])]).view(
        pa.string()
    )


BROKEN = {
    "not JSON": ("jsonl", jsonl_of(b'{"text": "x"'), "not JSON"),
    "no such field": (
        "jsonl",
        jsonl_of(b'{"id": 3, "body": "x"}'),
        "no field text, found id, body",
    ),
    "empty object": ("jsonl", jsonl_of(b"{}"), "no field text, found nothing"),
    "a list": ("jsonl", jsonl_of(b'["text"]'), "no field text, found list"),
    "null": ("jsonl", jsonl_of(b'{"text": null}'), "text is null, expected text"),
    "number": ("jsonl", jsonl_of(b'{"text": 3}'), "text is int, expected text"),
    "list of texts": ("jsonl", jsonl_of(b'{"text": ["x"]}'), "text is list, expected text"),
    "lone surrogate": ("jsonl", jsonl_of(rb'{"text": "a\ud800b"}'), "half a character"),
    "nested too deep": ("jsonl", jsonl_of(b"[" * 10**5), "not JSON"),
    "bytes in JSON": ("jsonl", jsonl_of(b'{"text": "a\xffb"}'), "0xff"),
    "short row": ("csv", csv_of(b"7"), "1 columns, the header has 2"),
    "long row": ("csv", csv_of(b"7,x,y"), "3 columns, the header has 2"),
    "bytes in CSV": ("csv", csv_of(b"7,a\xffb"), "0xff"),
    "null in a column": ("parquet", parquet_of(pa.array([*GOOD[:2], None, *GOOD[2:]])), "null"),
    "bytes in a column": ("parquet", parquet_of(torn_column()), "text"),
}
broken_rows = pytest.mark.parametrize(
    ("suffix", "content", "found"), BROKEN.values(), ids=BROKEN.keys()
)


@broken_rows
@pytest.mark.parametrize("tokenizer", ["byte", "char"])
def test_a_broken_row_is_named(
    command: Command, tmp_path: Path, tokenizer: str, suffix: str, content: bytes, found: str
) -> None:
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes(content)
    result = command("tokenize", path, "--out", tmp_path / "out", "--tokenizer", tokenizer)
    assert result.code == 74
    assert result.line().startswith(f"{path}: row 3: ")
    assert found in result.line()
    assert "--errors skip" in result.line()
    assert everything_below(tmp_path) == [path.name]


@broken_rows
def test_broken_rows_are_skipped_and_counted(
    command: Command, tmp_path: Path, suffix: str, content: bytes, found: str
) -> None:
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes(content)
    write_plain(tmp_path / "other.txt", ["other file"])
    shares = ["--validation-fraction", 0, "--test-fraction", 0]
    inputs = [path, tmp_path / "other.txt"]
    flags = ["--tokenizer", "char", "--errors", "skip"]
    result = command("tokenize", *inputs, "--out", tmp_path / "out", *flags, *shares)
    assert result.code == 0
    artifact = Artifact.open(tmp_path / "out")
    assert artifact.manifest.statistics["broken_documents"] == 1
    assert artifact.manifest.statistics["documents"] == 5
    assert documents(artifact, "train") == [*GOOD, "other file"]


@pytest.mark.parametrize("second", ["not JSON", "null"])
def test_rows_of_json_are_numbered_by_lines(tmp_path: Path, second: str) -> None:
    """Whatever is wrong with them, and with blank lines before them."""
    line = {"not JSON": "{", "null": '{"text": null}'}[second]
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "one"}}\n\n\n{line}\n')
    with pytest.raises(InputOutputError, match=r"rows\.jsonl: row 4: "):
        run(tmp_path / "out", path)


@pytest.mark.parametrize("packed", ["plain", "gz", "zst"])
def test_a_file_that_is_not_utf8_is_skipped_and_counted(tmp_path: Path, packed: str) -> None:
    (tmp_path / "in").mkdir()
    write_plain(tmp_path / "in/a.txt", ["file a"])
    write_plain(tmp_path / "in/c.txt", ["file c"])
    bad = tmp_path / "in/b.txt"
    bad.write_bytes(b"caf\xe9 au lait")
    if packed != "plain":
        COMPRESSORS[packed](bad)
        bad.unlink()
    strict = {"tokenizer": "char", **ALL_TRAIN}
    with pytest.raises(InputOutputError, match="byte 3: 0xe9 is not UTF-8"):
        run(tmp_path / "out", tmp_path / "in", **strict)
    artifact = run(tmp_path / "out", tmp_path / "in", **strict, errors="skip")
    assert documents(artifact, "train") == ["file a", "file c"]
    assert artifact.manifest.statistics["broken_documents"] == 1
    assert artifact.manifest.statistics["documents"] == 2


@pytest.mark.parametrize("name", ["bytes in JSON", "bytes in CSV", "bytes in a column"])
def test_bytes_of_a_row_that_are_not_utf8_are_replaced_when_asked_to(
    tmp_path: Path, name: str
) -> None:
    suffix, content, _ = BROKEN[name]
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes(content)
    options = {"tokenizer": "char", "errors": "replace", **ALL_TRAIN}
    found = documents(run(tmp_path / "out", path, **options), "train")
    assert found[:2] + found[3:] == GOOD
    assert found[2].strip("ab") == "\ufffd"


def test_half_a_character_is_replaced_when_asked_to(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl_of(rb'{"text": "a\ud800b"}'))
    artifact = run(tmp_path / "out", path, errors="replace", **ALL_TRAIN)
    assert documents(artifact, "train")[2] == "a\ufffdb"


@pytest.mark.parametrize("name", ["not JSON", "no such field", "null", "short row"])
def test_replacing_bytes_makes_no_text_where_there_is_none(tmp_path: Path, name: str) -> None:
    suffix, content, found = BROKEN[name]
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputOutputError, match=found):
        run(tmp_path / "out", path, errors="replace")


def test_rows_that_are_all_broken_are_no_text(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{\n[\n")
    result = command("tokenize", path, "--out", tmp_path / "out", "--errors", "skip", "-q")
    assert result.code == 2
    assert str(path) in result.line()
    assert everything_below(tmp_path) == ["rows.jsonl"]


def test_a_broken_row_of_standard_input_is_named_as_such(tmp_path: Path) -> None:
    content = jsonl_of(b'{"text": null}')
    out = tmp_path / "out"
    result = smtkit("tokenize", "-", "--format", "jsonl", "--out", out, input=content)
    assert result.returncode == 74
    (line,) = result.stderr.decode().splitlines()
    assert "row 3: text is null" in line
    assert str(tmp_path) not in line, "the user does not know the file it is spooled to"
    assert everything_below(tmp_path) == []


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv"])
def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"log.{suffix}"
    WRITERS[suffix](path, many_texts())
    addition = {"txt": "more", "jsonl": '{"text": "more"}\n', "csv": "99,more\r\n"}[suffix]

    class Grow(Silent):
        def update(
            self, task: str, completed: float, total: float | None, **metrics: float | str
        ) -> None:
            with path.open("a", newline="") as file:
                file.write(addition)

    config = resolve(TokenizeConfig, flags={"inputs": [str(path)], "workers": 1})
    with pytest.raises(InputOutputError, match=rf"log\.{suffix}.*changed while it was read"):
        tokenize.run(config, tmp_path / "out", progress=Grow())
    assert everything_below(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_file_that_loses_rows_while_it_is_read_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"log.{suffix}"
    WRITERS[suffix](path, many_texts())

    class Shrink(Silent):
        def update(
            self, task: str, completed: float, total: float | None, **metrics: float | str
        ) -> None:
            WRITERS[suffix](path, many_texts(30))

    config = resolve(TokenizeConfig, flags={"inputs": [str(path)], "workers": 1})
    with pytest.raises(InputOutputError, match="changed while it was read"):
        tokenize.run(config, tmp_path / "out", progress=Shrink())
    assert everything_below(tmp_path) == [path.name]


# Files that cannot be read


def truncated(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


LONG = some_text(20_000).encode()
DAMAGED: dict[str, tuple[str, bytes, int]] = {
    "truncated gz": ("a.txt.gz", truncated(gzip.compress(LONG)), 74),
    "truncated zst": ("a.txt.zst", truncated(pa.compress(LONG, "zstd", asbytes=True)), 74),
    "header of gz alone": ("a.txt.gz", gzip.compress(LONG)[:5], 74),
    "garbage gz": ("a.txt.gz", b"this is not gzip" * 10, 74),
    "garbage after gz": ("a.txt.gz", gzip.compress(LONG) + b"garbage", 74),
    "flipped bits of gz": ("a.txt.gz", gzip.compress(LONG)[:-8] + b"12345678", 74),
    "garbage zst": ("a.txt.zst", b"this is not zstd" * 10, 74),
    "truncated jsonl.gz": ("a.jsonl.gz", truncated(gzip.compress(jsonl_of(b"") * 9999)), 74),
    "truncated csv.zst": (
        "a.csv.zst",
        truncated(pa.compress(csv_of(b"2,x") + b"2,y\r\n" * 10**5, "zstd", asbytes=True)),
        74,
    ),
    "garbage parquet": ("a.parquet", b"this is not parquet" * 10, 74),
    "truncated parquet": ("a.parquet", truncated(parquet_of(pa.array(GOOD))), 74),
    "open quote in CSV": ("a.csv", b'id,text\n1,"never closed\n', 74),
    "empty file": ("a.txt", b"", 2),
    "empty gz": ("a.txt.gz", gzip.compress(b""), 2),
    "empty jsonl": ("a.jsonl", b"", 2),
    "empty CSV": ("a.csv", b"", 2),
    "CSV of a header": ("a.csv", b"id,text\n", 2),
    "parquet without rows": ("a.parquet", parquet_of(pa.array([], pa.string())), 2),
    "parquet in gz": ("a.parquet.gz", gzip.compress(parquet_of(pa.array(GOOD))), 2),
}


@pytest.mark.parametrize(("name", "content", "code"), DAMAGED.values(), ids=DAMAGED.keys())
@pytest.mark.parametrize("tokenizer", ["byte", "char"])
def test_a_file_without_readable_text_is_one_line_and_leaves_nothing(
    command: Command, tmp_path: Path, tokenizer: str, name: str, content: bytes, code: int
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    result = command("tokenize", path, "--out", tmp_path / "out", "--tokenizer", tokenizer, "-q")
    assert result.code == code
    assert result.line().startswith(str(path))
    assert everything_below(tmp_path) == [name]


@pytest.mark.parametrize("tokenizer", ["byte", "char"])
@pytest.mark.parametrize(
    "damage", ["truncated gz", "truncated zst", "truncated jsonl.gz", "garbage parquet"]
)
def test_a_file_that_cannot_be_read_is_not_skipped(
    tmp_path: Path, damage: str, tokenizer: str
) -> None:
    """`skip` is for broken rows and bytes that are not UTF-8: what was lost here is not known."""
    name, content, _ = DAMAGED[damage]
    (tmp_path / name).write_bytes(content)
    write_plain(tmp_path / "other.txt", ["other"])
    with pytest.raises(InputOutputError) as caught:
        run(
            tmp_path / "out",
            tmp_path / name,
            tmp_path / "other.txt",
            tokenizer=tokenizer,
            errors="skip",
        )
    assert str(tmp_path / name) in str(caught.value)


def test_an_empty_directory_is_a_usage_error(command: Command, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    result = command("tokenize", tmp_path / "in", "--out", tmp_path / "out")
    assert result.code == 2
    assert result.line().startswith(f"{tmp_path / 'in'}: no text files found")
    assert everything_below(tmp_path) == ["in"]


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv", "parquet", "txt.gz"])
@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_without_permission_is_named(command: Command, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"secret.{suffix}"
    path.write_text("secret")
    path.chmod(0)
    result = command("tokenize", path, "--out", tmp_path / "out")
    assert result.code == 74
    assert result.line().startswith(str(path))
    assert everything_below(tmp_path) == [path.name]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file whose reading fails")
@pytest.mark.parametrize("format_", ["text", "jsonl", "csv", "parquet"])
def test_a_file_whose_reading_fails_is_named(
    command: Command, tmp_path: Path, format_: str
) -> None:
    path = "/proc/self/mem"
    result = command("tokenize", path, "--out", tmp_path / "out", "--format", format_)
    assert result.code == 74
    assert result.line().startswith(path)
    assert everything_below(tmp_path) == []


# Files that expand to too much


def write_bomb(path: Path, byte: bytes, size: int) -> Path:
    if path.suffix == ".gz":
        with gzip.open(path, "wb", compresslevel=1) as file:
            for _ in range(size // MIB):
                file.write(byte * MIB)
    else:
        path.write_bytes(pa.compress(byte * size, codec="zstd", asbytes=True))
    return path


PEAK = """
import sys
from pathlib import Path
from smtkit.cli.app import main
code = None
try:
    main()
except SystemExit as end:
    code = end.code
status = Path("/proc/self/status").read_text()
print(code, next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def code_and_peak_megabytes(path: Path, out: Path) -> tuple[int, float, str]:
    arguments = ["tokenize", str(path), "--out", str(out), "--quiet", "--tokenizer", "char"]
    command = [sys.executable, "-c", PEAK, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    code, peak = result.stdout.split()
    return int(code), int(peak) / 1024, result.stderr


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel tells no peak")
def test_a_bomb_stops_at_the_bound_with_little_memory(tmp_path: Path) -> None:
    write_plain(tmp_path / "small.txt", ["small"])
    _, least, _ = code_and_peak_megabytes(tmp_path / "small.txt", tmp_path / "small")
    for name, byte in (("zeros.txt.zst", b"\0"), ("lines.txt.gz", b"\n")):
        bomb = write_bomb(tmp_path / name, byte, 160 * MIB)
        code, peak, message = code_and_peak_megabytes(bomb, tmp_path / "out")
        assert code == 74
        assert message.startswith(f"smtkit: {bomb}: expands to more than 200 times its size")
        assert "--max-expansion" in message
        assert peak - least < 30
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_the_bound_is_a_multiple_of_the_size_or_64_mebibytes(tmp_path: Path, suffix: str) -> None:
    def read(path: Path, bound: float) -> int:
        return sum(map(len, Reader(bound).blocks(path)))

    allowed = write_bomb(tmp_path / f"allowed.txt.{suffix}", b"\0", 64 * MIB)
    assert read(allowed, 1) == 64 * MIB
    more = write_bomb(tmp_path / f"more.txt.{suffix}", b"\0", 66 * MIB)
    ratio = 66 * MIB / more.stat().st_size
    assert read(more, ratio * 1.01) == 66 * MIB
    with pytest.raises(InputOutputError, match=r"more\.txt.*expands to more than") as caught:
        read(more, ratio * 0.99)
    assert caught.value.hint is not None
    assert "`max_expansion`" in caught.value.hint


def test_a_larger_bound_lets_a_file_through(command: Command, tmp_path: Path) -> None:
    bomb = write_bomb(tmp_path / "lines.txt.zst", b"\n", 65 * MIB)
    flags = ["--out", tmp_path / "out", "--quiet", "--workers", 1]
    assert command("tokenize", bomb, *flags).code == 74
    assert command("tokenize", bomb, *flags, "--max-expansion", 1e6).code == 0
    sizes = Artifact.open(tmp_path / "out").manifest.statistics["splits"].values()
    assert sum(counts["bytes"] for counts in sizes) == 65 * MIB


def test_plain_files_are_not_bounded(tmp_path: Path) -> None:
    path = tmp_path / "plain.txt"
    path.write_bytes(b"\0" * (65 * MIB))
    assert sum(map(len, Reader(1).blocks(path))) == 65 * MIB


# A test split that somebody else made


def test_a_given_test_split_is_kept_whole(command: Command, tmp_path: Path) -> None:
    texts = many_texts()
    given_test = ["a test", texts[3], "another", "a test", texts[40]]
    write_jsonl(tmp_path / "train.jsonl", [*texts, texts[7]])
    write_jsonl(tmp_path / "test.jsonl", given_test)
    out = tmp_path / "out"
    inputs = [tmp_path / "train.jsonl", "--test-input", tmp_path / "test.jsonl"]
    assert command("tokenize", *inputs, "--out", out, "--quiet").code == 0
    artifact = Artifact.open(out)
    assert documents(artifact, "test") == given_test
    others = documents(artifact, "train") + documents(artifact, "validation")
    expected = [text for text in texts if text not in given_test]
    assert sorted(others) == sorted(expected)
    assert len(documents(artifact, "validation")) >= 2
    assert artifact.manifest.statistics["duplicate_documents"] == 3
    assert artifact.manifest.statistics["documents"] == len(texts) + 1 + len(given_test)


def test_test_inputs_may_be_several_and_of_any_kind(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", many_texts())
    write_csv(tmp_path / "t1.csv", ["one", "two"])
    write_plain(tmp_path / "t2.txt", ["three"])
    tests = [str(gz(tmp_path / "t1.csv")), str(tmp_path / "t2.txt")]
    artifact = run(tmp_path / "out", tmp_path / "train.jsonl", test_inputs=tests)
    assert documents(artifact, "test") == ["one", "two", "three"]


def test_beside_a_given_test_one_long_document_is_cut_in_two(tmp_path: Path) -> None:
    text = some_text(3000)
    write_plain(tmp_path / "train.txt", [text])
    write_plain(tmp_path / "test.txt", ["the test"])
    artifact = run(
        tmp_path / "out",
        tmp_path / "train.txt",
        test_inputs=[str(tmp_path / "test.txt")],
        validation_fraction=0.2,
        test_fraction=0.5,
    )
    (train,), (validation,) = documents(artifact, "train"), documents(artifact, "validation")
    assert train + validation == text
    assert len(validation.encode()) / len(text.encode()) == pytest.approx(0.2, abs=1e-3)
    assert documents(artifact, "test") == ["the test"]


def test_the_vocabulary_knows_nothing_of_the_given_test(tmp_path: Path) -> None:
    write_plain(tmp_path / "train.txt", ["abab" * 50])
    write_plain(tmp_path / "test.txt", ["abc"])
    artifact = run(
        tmp_path / "out",
        tmp_path / "train.txt",
        test_inputs=[str(tmp_path / "test.txt")],
        tokenizer="char",
    )
    assert load_tokenizer(artifact).description()["characters"] == "ab"
    assert artifact.manifest.statistics["splits"]["test"]["unknown_tokens"] == 1


def test_a_test_input_that_does_not_exist_is_named(command: Command, tmp_path: Path) -> None:
    write_plain(tmp_path / "train.txt", ["text"])
    missing = tmp_path / "missing.txt"
    flags = ["--test-input", missing, "--out", tmp_path / "out"]
    result = command("tokenize", tmp_path / "train.txt", *flags)
    assert result.code == 2
    assert result.line().startswith(f"{missing}: no such file")


# Order and threads


def test_documents_come_in_the_order_of_inputs_files_and_rows(tmp_path: Path) -> None:
    (tmp_path / "dir/sub").mkdir(parents=True)
    write_plain(tmp_path / "z.txt", ["z"])
    write_plain(tmp_path / "dir/b.txt", ["b"])
    write_jsonl(tmp_path / "dir/a.jsonl", ["a1", "a2", "a3"])
    write_parquet(tmp_path / "dir/sub/c.parquet", [f"c{n}" for n in range(20)])
    write_csv(tmp_path / "dir/sub/d.csv", ["d1", "d2"])
    inputs = [tmp_path / "z.txt", tmp_path / "dir"]
    artifact = run(tmp_path / "out", *inputs, workers=4, **ALL_TRAIN)
    rows = ["a1", "a2", "a3", "b", *(f"c{n}" for n in range(20)), "d1", "d2"]
    assert documents(artifact, "train") == ["z", *rows]
    numbers = arrow_columns(shards(tmp_path / "out", "train"))["document"]
    assert numbers == list(range(len(rows) + 1))


@pytest.mark.parametrize("tokenizer", ["byte", "char", "sentencepiece"])
def test_the_number_of_threads_changes_nothing(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "in").mkdir()
    texts = many_texts(300)
    for n, text in enumerate(texts[:150]):
        write_plain(tmp_path / "in" / f"{n}.txt", [text])
    for n in range(5):
        write_jsonl(tmp_path / "in" / f"{n}.jsonl", texts[150 + n * 30 : 180 + n * 30])
    write_plain(tmp_path / "in/long.txt", [some_text(150_000)])
    size = {"vocabulary_size": 300, "training_bytes": 20_000} if "s" in tokenizer else {}
    digests = {
        run(
            tmp_path / str(workers), tmp_path / "in", tokenizer=tokenizer, workers=workers, **size
        ).manifest.digest
        for workers in (1, 2, 4)
    }
    assert len(digests) == 1


def test_an_error_in_a_thread_is_that_of_the_first_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for n in range(50):
        bad = n in (20, 30, 40)
        (tmp_path / "in" / f"{n:02d}.txt").write_bytes(b"\xff" if bad else b"text %d" % n)
    for workers in (1, 4):
        with pytest.raises(InputOutputError, match=r"20\.txt: byte 0"):
            run(tmp_path / "out", tmp_path / "in", tokenizer="char", workers=workers)


# Segments


def blocks_of(content: bytes, positions: Iterable[int]) -> list[bytes]:
    ends = sorted({position for position in positions if position < len(content)} | {0})
    return [content[start:end] for start, end in zip(ends, [*ends[1:], None], strict=True)]


def cut_slowly(content: bytes, size: int) -> list[bytes]:
    """The last line's end within `size`; else the last space but the first byte; else the last
    place between two characters."""
    pieces = []
    while len(content) > size:
        line_ends = [n for n in range(1, size + 1) if content[n - 1 : n] == b"\n"]
        spaces = [n for n in range(1, size) if content[n : n + 1] == b" "]
        characters = [n for n in range(1, size + 1) if content[n] & 0xC0 != 0x80]
        place = (line_ends or spaces or characters)[-1]
        pieces.append(content[:place])
        content = content[place:]
    return [*pieces, content] if content else pieces


ALPHABET = "aé\N{EURO SIGN}\N{PILE OF POO} \n"
written = st.text(alphabet=ALPHABET, max_size=200) | st.text(max_size=100)
positions_of_blocks = st.lists(st.integers(0, 300), max_size=10)


@given(text=written, positions=positions_of_blocks, size=st.integers(4, 60))
def test_segments_are_those_of_a_slow_cut_however_the_blocks_are(
    text: str, positions: list[int], size: int
) -> None:
    content = text.encode()
    segments = list(cut_at_boundaries(blocks_of(content, positions), size))
    assert segments == cut_slowly(content, size)
    assert "".join(segment.decode() for segment in segments) == text


@given(content=st.binary(max_size=300), positions=positions_of_blocks, size=st.integers(4, 60))
def test_segments_of_any_bytes_are_bounded_and_make_the_whole(
    content: bytes, positions: list[int], size: int
) -> None:
    segments = list(cut_at_boundaries(blocks_of(content, positions), size))
    assert b"".join(segments) == content
    assert all(0 < len(segment) <= size for segment in segments)
    assert segments == list(cut_at_boundaries([content], size))


@given(content=st.binary(max_size=300), size=st.integers(4, 60))
def test_wrong_bytes_are_replaced_in_segments_as_in_the_whole(content: bytes, size: int) -> None:
    replaced = [
        segment.decode("utf-8", "replace") for segment in cut_at_boundaries([content], size)
    ]
    assert "".join(replaced) == content.decode("utf-8", "replace")


def test_segments_of_a_corpus_tell_where_a_document_ends_in_a_split(tmp_path: Path) -> None:
    texts = {"a.txt": some_text(300_000), "b.txt": "short", "c.txt": some_text(9, 9)}
    for name, text in texts.items():
        write_plain(tmp_path / name, [text])
    config = TokenizeConfig(
        inputs=[str(tmp_path / name) for name in texts],
        tokenizer="char",
        validation_fraction=0.2,
        test_fraction=0.2,
        workers=1,
    )
    corpus = TextCorpus(config, lambda task, done, total: None)
    corpus.assign_splits(tmp_path)
    assert corpus.codes[0] == splits.BY_POSITION
    assert corpus.sizes.tolist() == [len(text.encode()) for text in texts.values()]
    joined: dict[tuple[int, int], bytes] = {}
    ended = set()
    for segment in corpus.segments():
        place = (segment.document, segment.split)
        assert place not in ended
        assert 0 < len(segment.data) <= SEGMENT_BYTES
        joined[place] = joined.get(place, b"") + segment.data
        if segment.last:
            ended.add(place)
    assert ended == joined.keys()
    assert list(joined)[:3] == [(0, 0), (0, 1), (0, 2)]
    for number, text in enumerate(texts.values()):
        parts = [data for (document, _), data in joined.items() if document == number]
        assert b"".join(parts) == text.encode()


@given(
    sizes=st.lists(st.integers(0, 20), min_size=1, max_size=30),
    given_test=st.integers(0, 10),
    by_position=st.booleans(),
    seed=st.integers(0, 50),
)
def test_a_given_test_takes_no_other_document_and_loses_none(
    sizes: list[int], given_test: int, by_position: bool, seed: int
) -> None:
    """Contents are few, so that many are equal; equal ones have equal sizes."""
    given_test = min(given_test, len(sizes))
    digests = np.array([[size // 2, 7] for size in sizes], dtype=np.uint64)
    sizes = [size // 2 for size in sizes]
    codes = splits.assign_splits(
        digests,
        np.array(sizes),
        Fractions(0.2, 0.2),
        seed,
        given_test=given_test,
        by_position=by_position,
    ).tolist()
    for n, (size, code) in enumerate(zip(sizes, codes, strict=True)):
        if size == 0:
            assert code == splits.REMOVED
        elif n < given_test:
            assert code == splits.TEST
        else:
            assert (code == splits.REMOVED) == (size in sizes[:n])
            assert not (given_test and code == splits.TEST)
        assert by_position or code != splits.BY_POSITION


def test_errors_of_sources_are_told_in_place_of_their_documents(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl_of(b"{"))
    source = source_of(path)
    found = list(source.documents())
    assert [isinstance(each, SmtkitError) for each in found] == [False, False, True, False, False]
