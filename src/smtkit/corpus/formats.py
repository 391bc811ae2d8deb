"""From what a user names to documents: text files, and rows of JSON lines, CSV and Parquet."""

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet

from smtkit.corpus.files import STDIN, Reader, expand, is_binary, suffixes, walk
from smtkit.errors import BrokenDocumentError, InputOutputError, SmtkitError, UsageError

Format = Literal["text", "jsonl", "csv", "parquet"]
Errors = Literal["strict", "replace", "skip"]

FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}
LONGEST_ROW = 2**28
_ROWS_AT_A_TIME = 1024


@dataclass(frozen=True)
class Document:
    """One document: its bytes can be read as often as asked. `name` is for messages."""

    name: str
    blocks: Callable[[], Iterator[bytes]]


@dataclass(frozen=True)
class TextSource:
    """One file, and the documents in it.

    `errors`: at a row without text, or bytes that are not UTF-8 (unless `any_bytes`), raise
    InputOutputError that names file and row or offset (`strict`), pass over the document (`skip`),
    or take U+FFFD for the bytes (`replace`).
    """

    path: Path
    format: Format
    text_field: str
    errors: Errors
    any_bytes: bool
    reader: Reader
    shown: str = ""
    """What messages call the file, where that is not its path."""

    @property
    def name(self) -> str:
        return self.shown or str(self.path)

    def at(self, path: Path) -> "TextSource":
        """The same kind of source at another path."""
        return replace(self, path=path, shown=self.name)

    def documents(self) -> Iterator[Document | SmtkitError]:
        """The documents in order; in place of one that is broken, what is wrong with it."""
        if self.format == "text":
            yield self._whole()
            return
        rows = {"jsonl": self._json_rows, "csv": self._csv_rows, "parquet": self._parquet_rows}
        for number, text in rows[self.format]():
            yield self._row(f"{self.name}: row {number}", text)

    def check(self, document: Document) -> None:
        """Raises InputOutputError at the first byte that is not UTF-8."""
        if self.any_bytes or self.format != "text" or self.errors == "replace":
            return
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
                    "--errors replace takes U+FFFD in its place, --tokenizer byte takes any bytes",
                ) from None
            position += len(block)

    def _whole(self) -> Document:
        return Document(self.name, lambda: self.reader.blocks(self.path, self.name))

    def _row(self, name: str, text: object) -> Document | SmtkitError:
        if isinstance(text, SmtkitError):
            return text
        if isinstance(text, bytes):
            return self._decoded(name, text)
        if not isinstance(text, str):
            found = "null" if text is None else type(text).__name__
            return BrokenDocumentError(
                f"{name}: {self.text_field} is {found}, expected text", _SKIP
            )
        if self.errors == "replace":
            text = _HALVES.sub("\N{REPLACEMENT CHARACTER}", text)
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError:
            return BrokenDocumentError(f"{name}: {self.text_field} holds half a character", _SKIP)
        return Document(name, lambda: iter([data]))

    def _decoded(self, name: str, data: bytes) -> Document | SmtkitError:
        """The document of a row's bytes, which may not be UTF-8."""
        try:
            text = data.decode("utf-8", "replace" if self.errors == "replace" else "strict")
        except UnicodeDecodeError as error:
            return BrokenDocumentError(
                f"{name}: byte {error.start} of {self.text_field}: "
                f"0x{data[error.start]:02x} is not UTF-8",
                _SKIP,
            )
        return self._row(name, text)

    def _json_rows(self) -> Iterator[tuple[int, object]]:
        with self.reader.open(self.path, self.name) as file:
            number = 0
            while line := file.readline(LONGEST_ROW):
                number += 1
                if line.strip():
                    yield number, self._json_row(f"{self.name}: row {number}", line)

    def _json_row(self, name: str, line: bytes) -> object:
        try:
            errors = "replace" if self.errors == "replace" else "strict"
            row = json.loads(line.decode("utf-8-sig", errors))
        except UnicodeDecodeError as error:
            return BrokenDocumentError(
                f"{name}: byte {error.start}: 0x{line[error.start]:02x} is not UTF-8", _SKIP
            )
        except (ValueError, RecursionError) as error:
            return BrokenDocumentError(f"{name}: not JSON: {error}", _SKIP)
        if not isinstance(row, dict) or self.text_field not in row:
            found = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            return BrokenDocumentError(
                f"{name}: no field {self.text_field}, found {found or 'nothing'}",
                "--text-field names another, --errors skip passes over such rows",
            )
        return row[self.text_field]

    def _csv_rows(self) -> Iterator[tuple[int, object]]:
        csv.field_size_limit(LONGEST_ROW)
        with self.reader.open(self.path, self.name) as file:
            lines = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
            rows = csv.reader(lines, strict=True)
            header = _next_row(rows) or []
            if isinstance(header, csv.Error):
                raise InputOutputError(f"{self.name}: line {rows.line_num}: {header}")
            column, number = self._column(header), 0
            while (row := _next_row(rows)) is not None:
                if row == []:
                    continue
                number += 1
                yield number, self._csv_row(number, row, header, column)

    def _csv_row(
        self, number: int, row: list[str] | csv.Error, header: list[str], column: int
    ) -> object:
        name = f"{self.name}: row {number}"
        if isinstance(row, csv.Error):
            return BrokenDocumentError(f"{name}: {row}", _SKIP)
        if len(row) != len(header):
            return BrokenDocumentError(
                f"{name}: {len(row)} columns, the header has {len(header)}", _SKIP
            )
        return row[column].encode("utf-8", "surrogateescape")

    def _parquet_rows(self) -> Iterator[tuple[int, object]]:
        number = 0
        try:
            with pa.parquet.ParquetFile(self.path) as file:
                self._column(file.schema_arrow.names)
                for batch in file.iter_batches(_ROWS_AT_A_TIME, columns=[self.text_field]):
                    for text in self._texts(batch.column(0)):
                        number += 1
                        yield number, text
        except (OSError, pa.ArrowException) as error:
            raise InputOutputError(f"{self.name}: cannot be read: {error}") from None
        self.reader.on_read(self.path.stat().st_size)

    @staticmethod
    def _texts(column: pa.Array) -> list[object]:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            column = column.cast(pa.large_binary())  # what is not UTF-8 is found row by row
        values: list[object] = column.to_pylist()
        return values

    def _column(self, names: Sequence[str]) -> int:
        if self.text_field not in names:
            raise UsageError(
                f"{self.name}: no column {self.text_field}, found {', '.join(names) or 'none'}",
                "--text-field names another",
            )
        return list(names).index(self.text_field)


_SKIP = "--errors skip passes over such rows"
_HALVES = re.compile("[\ud800-\udfff]")


def _next_row(rows: Iterator[list[str]]) -> list[str] | csv.Error | None:
    """The next row, what is wrong with it, or None at the end."""
    try:
        return next(rows, None)
    except csv.Error as error:
        return error


@dataclass(frozen=True)
class TextSettings:
    """How files become documents."""

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    text_field: str = "text"
    errors: Errors = "strict"
    any_bytes: bool = False
    format: Format | None = None
    """None: by the file's suffix."""


@dataclass(frozen=True)
class Found:
    """Sources in a fixed order, and how many files of directories were passed over as binary."""

    sources: list[TextSource]
    binary: int
    size: int
    """Bytes on disk."""


def find_sources(inputs: Sequence[str], settings: TextSettings, reader: Reader) -> Found:
    """The files that `inputs` (files, directories, globs) name, each once.

    A directory gives its files, recursively, without hidden ones and, of those that are text by
    their suffix, without binary ones. A file named by itself is always taken.
    Raises UsageError where a path does not exist or nothing is found.
    """
    paths: dict[Path, None] = {}
    binary = 0
    for path in expand(inputs):
        if not path.is_dir():
            paths[path] = None
            continue
        for file in walk(path, settings.include, settings.exclude):
            kind, compression = suffixes(file)
            if kind not in FORMATS and not compression and is_binary(file):
                binary += 1
            else:
                paths[file] = None
    if not paths:
        raise UsageError(
            f"{', '.join(inputs)}: no text files found"
            + (f" ({binary} binary files passed over)" if binary else ""),
            "check --include and --exclude" if settings.include or settings.exclude else None,
        )
    sources = [_source(path, settings, reader) for path in paths]
    return Found(sources, binary, sum(_size(path) for path in paths))


def _source(path: Path, settings: TextSettings, reader: Reader) -> TextSource:
    kind, compression = suffixes(path)
    form = settings.format or FORMATS.get(kind, "text")
    if form == "parquet" and compression:
        raise UsageError(f"{path}: a parquet file is compressed inside, not outside")
    return TextSource(path, form, settings.text_field, settings.errors, settings.any_bytes, reader)


def _size(path: Path) -> int:
    if str(path) == STDIN:
        return 0
    try:
        return path.stat().st_size
    except OSError as error:
        raise InputOutputError(f"{path}: {error.strerror}") from None
