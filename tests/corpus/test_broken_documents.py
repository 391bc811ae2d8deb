"""Broken rows, and bytes that are not UTF-8: named, skipped or replaced."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import Command
from corpora import (
    ALL_TRAIN,
    COMPRESSORS,
    GOOD,
    csv_of,
    everything_below,
    jsonl_of,
    parquet_of,
    run,
    source_of,
    split_texts,
    write_plain,
)
from smtkit.config import TokenizeConfig
from smtkit.corpus.files import BLOCK_BYTES, Reader
from smtkit.corpus.formats import Document, TextSource
from smtkit.errors import InputOutputError, SmtkitError
from smtkit.storage.artifact import Artifact
from subprocesses import smtkit


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
    assert split_texts(artifact, "train") == [*GOOD, "other file"]


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
    assert split_texts(artifact, "train") == ["file a", "file c"]
    assert artifact.manifest.statistics["broken_documents"] == 1
    assert artifact.manifest.statistics["documents"] == 2


@pytest.mark.parametrize("name", ["bytes in JSON", "bytes in CSV", "bytes in a column"])
def test_bytes_of_a_row_that_are_not_utf8_are_replaced_with_errors_replace(
    tmp_path: Path, name: str
) -> None:
    suffix, content, _ = BROKEN[name]
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes(content)
    options = {"tokenizer": "char", "errors": "replace", **ALL_TRAIN}
    found = split_texts(run(tmp_path / "out", path, **options), "train")
    assert found[:2] + found[3:] == GOOD
    assert found[2].strip("ab") == "\ufffd"


def test_half_a_character_is_replaced_with_errors_replace(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl_of(rb'{"text": "a\ud800b"}'))
    artifact = run(tmp_path / "out", path, errors="replace", **ALL_TRAIN)
    assert split_texts(artifact, "train")[2] == "a\ufffdb"


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


def test_a_broken_row_of_standard_input_is_named_without_the_temporary_file(tmp_path: Path) -> None:
    content = jsonl_of(b'{"text": null}')
    out = tmp_path / "out"
    result = smtkit("tokenize", "-", "--format", "jsonl", "--out", out, input=content.decode())
    assert result.returncode == 74
    (line,) = result.stderr.splitlines()
    assert "row 3: text is null" in line
    assert str(tmp_path) not in line, "the user does not know the file it is spooled to"
    assert everything_below(tmp_path) == []


def test_broken_documents_are_replaced_by_their_errors(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl_of(b"{"))
    source = source_of(path)
    found = list(source.documents())
    assert [isinstance(each, SmtkitError) for each in found] == [False, False, True, False, False]


places = st.lists(st.integers(0, 40))


def cut_at(content: bytes, positions: list[int]) -> list[bytes]:
    """The content in blocks that end at the positions; empty blocks are left out, as in a file."""
    ends = sorted({position for position in positions if 0 < position < len(content)})
    starts = [0, *ends]
    return [content[start:end] for start, end in zip(starts, [*ends, len(content)], strict=True)]


def char_source(path: Path) -> TextSource:
    settings = TokenizeConfig(inputs=[str(path)], tokenizer="char")
    return TextSource(path, settings, "text", Reader(100), str(path))


@given(content=st.binary(min_size=1), positions=places)
def test_the_first_wrong_byte_is_named_however_it_is_cut(
    content: bytes, positions: list[int]
) -> None:
    document = Document("folder/some.txt", lambda: iter(cut_at(content, positions)))
    source = char_source(Path("folder/some.txt"))
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        with pytest.raises(InputOutputError) as caught:
            source.check(document)
        wrong = error.start
        expected = f"folder/some.txt: byte {wrong}: 0x{content[wrong]:02x} is not UTF-8"
        assert str(caught.value) == expected
    else:
        source.check(document)


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (b"abc\xffdef", 3),
        (b"\x80", 0),
        (b"caf\xc3", 3),
        (b"\xe2\x82", 0),
        (b"a\xed\xa0\x80", 1),
        (b"ab\xc0\xaf", 2),
        ("aé".encode() + b"\xf5", 3),
    ],
    ids=[
        "never a byte of UTF-8",
        "continuation alone",
        "cut short",
        "cut short in three",
        "surrogate",
        "overlong",
        "after multi-byte",
    ],
)
def test_the_offset_of_a_wrong_byte_is_exact(tmp_path: Path, content: bytes, wrong: int) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    (document,) = char_source(path).documents()
    with pytest.raises(InputOutputError) as caught:
        char_source(path).check(document)
    assert str(caught.value).startswith(f"{path}: byte {wrong}: 0x{content[wrong]:02x} ")
    assert caught.value.hint is not None
    assert "`errors` replace" in caught.value.hint


@pytest.mark.parametrize("before", [BLOCK_BYTES - 1, BLOCK_BYTES, 2 * BLOCK_BYTES + 7])
def test_the_offset_is_exact_in_a_later_block_of_a_file(tmp_path: Path, before: int) -> None:
    """The first byte of a two-byte character that is followed by no second one."""
    path = tmp_path / "bad.txt"
    path.write_bytes(b"a" * before + b"\xc3" + b"b" * 10)
    (document,) = char_source(path).documents()
    with pytest.raises(InputOutputError, match=f"byte {before}: 0xc3 "):
        char_source(path).check(document)
