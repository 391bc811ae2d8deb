"""Files: damaged, unreadable, changing, or expanding to too much."""

import gzip
import io
import os
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from conftest import Command
from corpora import (
    ALL_TRAIN,
    GOOD,
    MIB,
    WRITERS,
    csv_of,
    everything_below,
    jsonl_of,
    many_texts,
    parquet_of,
    run,
    some_text,
    split_texts,
    write_plain,
)
from smtkit.config import TokenizeConfig, resolve
from smtkit.corpus.files import Reader, spool
from smtkit.errors import InputOutputError
from smtkit.stages import tokenize
from smtkit.storage.artifact import Artifact
from smtkit.training.progress import Silent
from subprocesses import measured, needs_peak, smtkit


@pytest.mark.parametrize("start", [b"", b"\x1f", b"\x1f\x8b", b"(\xb5/", b"abc"])
def test_standard_input_that_only_begins_like_a_compressed_one_is_plain(
    tmp_path: Path, start: bytes
) -> None:
    path = spool(io.BytesIO(start), tmp_path)
    assert (path.name, path.read_bytes()) == ("stdin", start)


def test_standard_input_that_ends_too_early_is_named(tmp_path: Path) -> None:
    packed = gzip.compress(random.Random(0).randbytes(10_000))[:-100]
    result = smtkit("tokenize", "-", "--out", tmp_path / "out", "--quiet", input=packed, text=False)
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
        assert split_texts(artifact, "train") == [whole]


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


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv", "parquet"])
@pytest.mark.parametrize("tokenizer", ["byte", "char"])
def test_a_file_replaced_by_one_of_equal_size_is_refused(
    tmp_path: Path, suffix: str, tokenizer: str
) -> None:
    path = tmp_path / f"log.{suffix}"
    WRITERS[suffix](path, many_texts())

    class Replace(Silent):
        def update(
            self, task: str, completed: float, total: float | None, **metrics: float | str
        ) -> None:
            if task == "reading bytes" and completed == total:
                WRITERS[suffix](path, [text.swapcase() for text in many_texts()])

    flags = {"inputs": [str(path)], "workers": 1, "tokenizer": tokenizer}
    config = resolve(TokenizeConfig, flags=flags)
    with pytest.raises(InputOutputError, match=rf"log\.{suffix}.*changed while it was read"):
        tokenize.run(config, tmp_path / "out", progress=Replace())
    assert everything_below(tmp_path) == [path.name]


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


def write_bomb(path: Path, byte: bytes, size: int) -> Path:
    if path.suffix == ".gz":
        with gzip.open(path, "wb", compresslevel=1) as file:
            for _ in range(size // MIB):
                file.write(byte * MIB)
    else:
        path.write_bytes(pa.compress(byte * size, codec="zstd", asbytes=True))
    return path


@needs_peak
def test_a_bomb_stops_at_the_bound_with_little_memory(tmp_path: Path) -> None:
    flags = ("--out", tmp_path / "out", "--quiet", "--tokenizer", "char")
    write_plain(tmp_path / "small.txt", ["small"])
    least = measured("tokenize", tmp_path / "small.txt", *flags).peak
    shutil.rmtree(tmp_path / "out")
    for name, byte in (("zeros.txt.zst", b"\0"), ("lines.txt.gz", b"\n")):
        bomb = write_bomb(tmp_path / name, byte, 160 * MIB)
        result = measured("tokenize", bomb, *flags)
        assert result.code == 74
        assert result.stderr.startswith(f"smtkit: {bomb}: expands to more than 200 times its size")
        assert "--max-expansion" in result.stderr
        assert result.peak - least < 30 * MIB
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
