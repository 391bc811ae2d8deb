"""Text corpora in every format and compression, and what `tokenize` makes of them."""

import csv
import gzip
import json
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from conftest import arrow_columns
from smtkit.config import TokenizeConfig, resolve
from smtkit.corpus.files import Reader
from smtkit.corpus.formats import TextSource, find_sources
from smtkit.corpus.stored_tokenizer import load_tokenizer
from smtkit.stages import tokenize
from smtkit.storage.artifact import Artifact

MIB = 2**20


ALL_TRAIN = {"validation_fraction": 0, "test_fraction": 0}


LEXICON = (
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
    chosen = [draw.choice(LEXICON) for _ in range(words)]
    return "".join(word + draw.choice("    \n") for word in chosen)


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
    tokenize.run(resolve(TokenizeConfig, flags={"inputs": list(map(str, inputs)), **options}), out)
    artifact = Artifact.open(out, "tokens")
    artifact.verify()
    return artifact


def source_of(path: Path) -> TextSource:
    settings = TokenizeConfig(inputs=[str(path)], tokenizer="char")
    (source,), _ = find_sources(settings.inputs, settings, Reader(200))
    return source


def split_texts(artifact: Artifact, split: str) -> list[str]:
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


def many_texts(count: int = 60) -> list[str]:
    """Different texts, none of which is half of all."""
    return [f"{n}: {some_text(5 + n * 7 % 11, n)}" for n in range(count)]


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


MULTIBYTE = "Größe, naïve, 東京, Привет, \N{PILE OF POO}; "
"""Text with characters of one to four bytes."""


def write_files(directory: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return directory


def chunks(artifact: Artifact, split: str) -> list[tuple[int, int, list[int]]]:
    """(document, offset, tokens), read by Arrow alone."""
    rows = []
    for path in artifact.files(f"{split}-"):
        with pa.OSFile(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
        rows += zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
    return rows


def document_tokens(artifact: Artifact, split: str) -> dict[int, list[int]]:
    """Tokens of each document of a split, without the end-of-document token."""
    tokenizer = load_tokenizer(artifact)
    found: dict[int, list[int]] = defaultdict(list)
    for document, _, tokens in chunks(artifact, split):
        found[document] += tokens
    for tokens in found.values():
        assert tokens.pop() == tokenizer.end_of_document
        assert tokenizer.end_of_document not in tokens
    return dict(found)


def contents(artifact: Artifact, split: str) -> list[bytes]:
    """The bytes of each document of a split, sorted; of a `byte` artifact."""
    return sorted(bytes(tokens) for tokens in document_tokens(artifact, split).values())
