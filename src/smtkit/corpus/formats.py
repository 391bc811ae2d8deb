"""Text files: which files the inputs name, and the documents in each, by the format of the file."""

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import pyarrow as pa

from smtkit.config import TokenizeConfig
from smtkit.corpus.files import Reader, expand, is_binary, suffixes, walk
from smtkit.corpus.images import is_image
from smtkit.corpus.parquet_column import column_values
from smtkit.errors import BrokenDocumentError, InputOutputError, SmtkitError, UsageError
from smtkit.storage.files import file_size

_SKIP = "`errors` skip passes over such rows"
_LARGE_ROW = 2**20  # bytes
_parsing = Lock()
"""Large rows are parsed one at a time: their objects can take thirty times their size."""
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Document:
    """One document: `blocks` reads its bytes, any number of times. `name` is for messages."""

    name: str
    blocks: Callable[[], Iterator[bytes]]


@dataclass(frozen=True)
class TextSource:
    """One file, and the documents in it.

    `settings.errors` decides about a row without text, or bytes that are not UTF-8 (unless tokens
    are bytes): raise InputOutputError with file and row or offset (`strict`), pass over the
    document (`skip`), or decode the bytes to U+FFFD (`replace`).
    """

    path: Path
    settings: TokenizeConfig
    format: str
    reader: Reader
    name: str
    """How messages call the file."""

    def documents(self) -> Iterator[Document | SmtkitError]:
        """The documents in order; for a broken one, its error.

        Raises InputOutputError where the file cannot be read, or exceeds the reader's limits.
        """
        is_compressed = FORMATS[self.format].needs_seek or bool(suffixes(self.path)[1])
        size = (file_size(self.path) or 0) if is_compressed else None
        for number, document in enumerate(FORMATS[self.format].documents(self)):
            if size is not None:
                self.reader.check_rows(self.name, number, size)
            yield document

    def check(self, document: Document) -> None:
        """Raises BrokenDocumentError at the first byte that is not UTF-8."""
        any_bytes = self.settings.tokenizer == "byte"
        if any_bytes or self.format != "text" or self.settings.errors == "replace":
            return  # rows are decoded as they are read
        decoder = codecs.getincrementaldecoder("utf-8")()
        position = 0
        for block in chain(document.blocks(), [b""]):
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise BrokenDocumentError(
                    f"{document.name}: byte {position - pending + error.start}: "
                    f"0x{error.object[error.start]:02x} is not UTF-8",
                    "`errors` replace takes U+FFFD in its place, `tokenizer` byte takes any bytes",
                ) from None
            position += len(block)

    def decode(self, data: bytes, where: str = "", encoding: str = "utf-8") -> str:
        """The text of a row, or of `where` in it. Raises BrokenDocumentError."""
        errors = "replace" if self.settings.errors == "replace" else "strict"
        try:
            return data.decode(encoding, errors)
        except UnicodeDecodeError as error:
            wrong = f"byte {error.start}{where}: 0x{data[error.start]:02x} is not UTF-8"
            raise BrokenDocumentError(wrong) from None

    def row(
        self, number: int, stored: Any, read: Callable[[Any], object] = lambda text: text
    ) -> Document | SmtkitError:
        """The document of row `number`, or its error; `read` takes its text or bytes from what is
        `stored`."""
        name, field = f"{self.name}: row {number}", self.settings.text_field
        try:
            text = read(stored)
            if isinstance(text, bytes):
                text = self.decode(text, f" of {field}")
            if not isinstance(text, str):
                found = "null" if text is None else type(text).__name__
                raise BrokenDocumentError(f"{field} is {found}, expected text")
            if self.settings.errors == "replace":
                text = _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)
            data = text.encode("utf-8")
        except UnicodeEncodeError:
            return BrokenDocumentError(f"{name}: {field} holds half a character", _SKIP)
        except BrokenDocumentError as error:
            return BrokenDocumentError(f"{name}: {error}", error.hint or _SKIP)
        return Document(name, lambda: iter([data]))

    def column(self, names: Sequence[str]) -> int:
        """Index of the column of the text. Raises UsageError where there is none."""
        if self.settings.text_field not in names:
            raise UsageError(
                f"{self.name}: no column {self.settings.text_field}, "
                f"found {', '.join(names) or 'none'}",
                "`text_field` names another",
            )
        return list(names).index(self.settings.text_field)


def whole_file(source: TextSource) -> Iterator[Document]:
    """Plain text: the file is one document."""
    yield Document(source.name, lambda: source.reader.blocks(source.path, source.name))


def json_rows(source: TextSource) -> Iterator[Document | SmtkitError]:
    """JSON lines: a field of each line."""
    field = source.settings.text_field

    def read(line: bytes) -> object:
        with _parsing if len(line) > _LARGE_ROW else nullcontext():
            return parse(line)

    def parse(line: bytes) -> object:
        text = source.decode(line, encoding="utf-8-sig")
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BrokenDocumentError(f"not JSON: {error}") from None
        if not isinstance(row, dict) or field not in row:
            found = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            missing = f"no field {field}, found {found or 'nothing'}"
            raise BrokenDocumentError(missing, f"`text_field` names another, {_SKIP}")
        return row[field]

    longest = source.reader.max_value_bytes + 1
    with source.reader.open(source.path, source.name) as file:
        lines = iter(lambda: file.readline(longest), b"")
        for number, line in enumerate(lines, start=1):
            source.reader.check_value(f"{source.name}: row {number}", "the row", len(line))
            if line.strip():
                yield source.row(number, line, read)


def csv_rows(source: TextSource) -> Iterator[Document | SmtkitError]:
    """CSV with a header: a column of each row."""
    size = 0

    def bounded(lines: io.TextIOWrapper) -> Iterator[str]:
        nonlocal size
        for line in iter(lambda: lines.readline(source.reader.max_value_bytes + 1), ""):
            size += len(line)
            source.reader.check_value(f"{source.name}: line {rows.line_num + 1}", "a row", size)
            yield line

    def next_row() -> list[str] | csv.Error | None:
        nonlocal size
        size = 0
        try:
            return next(rows, None)
        except csv.Error as error:
            return error

    def read(row: list[str] | csv.Error) -> object:
        if isinstance(row, csv.Error):
            raise BrokenDocumentError(str(row))
        if len(row) != len(header):
            raise BrokenDocumentError(f"{len(row)} columns, the header has {len(header)}")
        return row[column].encode("utf-8", "surrogateescape")

    csv.field_size_limit(source.reader.max_value_bytes + 1)
    with source.reader.open(source.path, source.name) as file:
        lines = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
        rows = csv.reader(bounded(lines), strict=True)
        first = next_row() or []
        if isinstance(first, csv.Error):
            raise InputOutputError(f"{source.name}: line {rows.line_num}: {first}")
        header = first
        column = source.column(header)
        filled = (row for row in iter(next_row, None) if row != [])
        for number, row in enumerate(filled, start=1):
            yield source.row(number, row, read)


def parquet_rows(source: TextSource) -> Iterator[Document | SmtkitError]:
    """Parquet: a column of each row."""
    total, size = 0, file_size(source.path) or 0
    texts = column_values(source.path, source.name, source.column, source.reader)
    try:
        for number, text in enumerate(texts, start=1):
            total += len(text or b"")
            source.reader.check_expansion(source.name, total, size)
            yield source.row(number, text)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputOutputError(f"{source.name}: cannot be read: {error}") from None
    source.reader.on_read(size)


class TextFormat(NamedTuple):
    """A format of text files: its suffixes, and the function that reads the documents of a file."""

    suffixes: tuple[str, ...]
    documents: Callable[[TextSource], Iterator[Document | SmtkitError]]
    needs_seek: bool = False
    """Whether it is read by seeking: the file cannot be compressed as a whole."""


FORMATS = {
    "text": TextFormat((), whole_file),  # and all other suffixes
    "jsonl": TextFormat((".jsonl", ".ndjson"), json_rows),
    "csv": TextFormat((".csv",), csv_rows),
    "parquet": TextFormat((".parquet",), parquet_rows, needs_seek=True),
}


def find_sources(
    inputs: Sequence[str], settings: TokenizeConfig, reader: Reader
) -> tuple[list[TextSource], int]:
    """The files that `inputs` (files, directories, globs) name, each once, and how many binary
    files were passed over.

    A directory gives its files, recursively, without hidden ones and, among those that are text by
    their suffix, without binary ones. A file named by itself is always taken.
    Raises UsageError where a path does not exist or nothing is found.
    """
    paths: dict[Path, None] = {}
    binary: list[Path] = []
    for path in expand(inputs):
        if not path.is_dir():
            paths[path] = None
            continue
        for file in walk(path, settings.include, settings.exclude):
            if _format(file) == "text" and not suffixes(file)[1] and is_binary(file):
                binary.append(file)
            else:
                paths[file] = None
    if not paths:
        hint = "check `include` and `exclude`" if settings.include or settings.exclude else None
        if any(map(is_image, binary)):
            hint = "`tokenizer` pixel reads images"
        raise UsageError(
            f"{', '.join(inputs)}: no text files found"
            + (f" ({len(binary)} binary files passed over)" if binary else ""),
            hint,
        )
    formats = {settings.format or _format(path) for path in paths}
    default = type(settings).model_fields["text_field"].default
    if formats == {"text"} and settings.text_field != default:
        raise UsageError(
            f"`text_field` {settings.text_field}: {', '.join(inputs)}: plain text, which has no "
            "fields",
            "leave it out; `format` names the format of files with another suffix",
        )
    sources = []
    for path in paths:
        name = settings.format or _format(path)
        if FORMATS[name].needs_seek and suffixes(path)[1]:
            raise UsageError(f"{path}: a {name} file is compressed inside, not outside")
        sources.append(TextSource(path, settings, name, reader, str(path)))
    return sources, len(binary)


def _format(path: Path) -> str:
    suffix = suffixes(path)[0]
    return next((name for name, row in FORMATS.items() if suffix in row.suffixes), "text")
