"""`smtkit inspect`: what an artifact holds, looked at: counts, and rows as a person reads them."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from smtkit import IGNORE
from smtkit.corpus.pictures import write_grid
from smtkit.corpus.rows import RowStore
from smtkit.corpus.seeded import IntArray, permute, random_key
from smtkit.corpus.splits import SPLITS
from smtkit.corpus.stream import BATCH_TOKENS, is_stream, open_stream
from smtkit.corpus.tokenizers import (
    PixelTokenizer,
    SymbolTokenizer,
    TextTokenizer,
    Tokenizer,
    load_tokenizer,
)
from smtkit.errors import ArtifactError, UsageError
from smtkit.storage.artifact import Artifact
from smtkit.storage.manifest import Manifest

_EXCERPT_TOKENS = 300


@dataclass(frozen=True)
class Picture:
    """Grey levels (height, width) in 0..`white`, and the class of the image where it has one."""

    pixels: NDArray[np.int64]
    white: int
    label: str | None


@dataclass(frozen=True)
class Answers:
    """A task row: symbols, and beside each the answer that is asked there, or nothing."""

    symbols: list[str]
    answers: list[str]


@dataclass(frozen=True)
class Inspection:
    """The manifest; and, of tokens, counts by split and some rows."""

    manifest: Manifest
    counts: dict[str, dict[str, Any]]
    rows: list[str | Picture | Answers]


def run(
    path: str | os.PathLike[str],
    *,
    verify: bool = False,
    split: str = "train",
    rows: int = 3,
    seed: int = 0,
) -> Inspection:
    """Opens the artifact `path`; of tokens, counts all and draws `rows` of `split` by the seed.

    With `verify` every file's checksum is compared. Raises ArtifactError, UsageError.
    """
    artifact = Artifact.open(path)
    if verify:
        artifact.verify()
    if artifact.manifest.kind != "tokens":
        return Inspection(artifact.manifest, {}, [])
    if split not in SPLITS:
        raise UsageError(f"--split {split}: allowed are {', '.join(SPLITS)}")
    tokenizer = load_tokenizer(artifact)
    counts = _stream_counts if is_stream(artifact) else _row_counts
    drawn = _excerpts if is_stream(artifact) else _drawn_rows
    return Inspection(
        artifact.manifest,
        counts(artifact, tokenizer),
        list(drawn(artifact, tokenizer, split, rows, seed)),
    )


def _stream_counts(artifact: Artifact, tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    assert isinstance(tokenizer, TextTokenizer)
    seen_before: set[bytes] = set()
    counts = {}
    for split in SPLITS:
        histogram = np.zeros(tokenizer.vocabulary_size, dtype=np.int64)
        lengths, digests = _documents(artifact, split, tokenizer.end_of_document, histogram)
        total = int(histogram.sum())
        unknown = 0 if tokenizer.unknown is None else int(histogram[tokenizer.unknown])
        counts[split] = {
            "documents": len(lengths),
            "tokens": total,
            **_spread_of(lengths),
            "vocabulary_used": _share(int((histogram > 0).sum()), tokenizer.vocabulary_size),
            "unknown": _share(unknown, total),
            "also_in_earlier_splits": len(seen_before & digests),
        }
        seen_before |= digests
    return counts


def _documents(
    artifact: Artifact, split: str, end: int, histogram: NDArray[np.int64]
) -> tuple[IntArray, set[bytes]]:
    """Lengths and digests of the documents of a split; counts their tokens into `histogram`."""
    if not sum(artifact.rows(f"{split}-")):
        return np.empty(0, dtype=np.int64), set()
    stream = open_stream(artifact, split)
    lengths: list[int] = []
    digests: set[bytes] = set()
    checksum, length = xxhash.xxh3_64(), 0
    for start in range(0, len(stream), BATCH_TOKENS):
        tokens = stream.read(start, BATCH_TOKENS)
        _count(tokens, histogram, artifact)
        begin = 0
        for place in (*np.flatnonzero(tokens == end), len(tokens)):
            part = tokens[begin:place]
            checksum.update(np.ascontiguousarray(part).data)
            length += len(part)
            if place < len(tokens):
                lengths.append(length)
                digests.add(checksum.digest())
                checksum, length = xxhash.xxh3_64(), 0
            begin = place + 1
    return np.array(lengths, dtype=np.int64), digests


def _row_counts(artifact: Artifact, tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    seen_before: set[bytes] = set()
    counts = {}
    for split in SPLITS:
        store = RowStore(artifact.files(f"{split}-"))
        histogram = np.zeros(tokenizer.vocabulary_size, dtype=np.int64)
        lengths: list[IntArray] = []
        digests: set[bytes] = set()
        asked = 0
        for tokens, ends, targets in store.blocks():
            _count(tokens, histogram, artifact)
            lengths.append(np.diff(ends))
            asked += int((targets != IGNORE).sum())
            rows = np.split(tokens, ends[1:-1] - ends[0])
            digests |= {xxhash.xxh3_64_digest(row.data) for row in rows}
        counts[split] = {
            "rows": len(store),
            "tokens": int(histogram.sum()),
            **_spread_of(np.concatenate(lengths) if lengths else np.empty(0, dtype=np.int64)),
            "targets_asked": asked,
            "vocabulary_used": _share(int((histogram > 0).sum()), tokenizer.vocabulary_size),
            "repeated_rows": len(store) - len(digests),
            "also_in_earlier_splits": len(seen_before & digests),
        }
        seen_before |= digests
    return counts


def _count(tokens: NDArray[Any], histogram: NDArray[np.int64], artifact: Artifact) -> None:
    """Adds to the histogram (vocabulary,). Raises ArtifactError at a token beyond it."""
    counts = np.bincount(tokens, minlength=len(histogram))
    if len(counts) > len(histogram):
        raise ArtifactError(
            f"{artifact.directory}: damaged: token {len(counts) - 1}, the vocabulary has "
            f"{len(histogram)}",
            "--verify names the file",
        )
    histogram += counts


def _spread_of(lengths: IntArray) -> dict[str, Any]:
    if len(lengths) == 0:
        return {}
    low, middle, high = np.percentile(lengths, [0, 50, 100])
    return {"shortest": int(low), "median": int(middle), "longest": int(high)}


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} ({100 * part / max(whole, 1):.3g}%)"


def _excerpts(
    artifact: Artifact, tokenizer: Tokenizer, split: str, count: int, seed: int
) -> Iterator[str]:
    if not sum(artifact.rows(f"{split}-")):
        return
    stream = open_stream(artifact, split)
    places = permute(np.arange(min(count, len(stream))), len(stream), random_key(seed, "inspect"))
    for place in places:
        tokens = stream.read(int(place), _EXCERPT_TOKENS)
        yield tokenizer.decode(int(token) for token in tokens)


def _drawn_rows(
    artifact: Artifact, tokenizer: Tokenizer, split: str, count: int, seed: int
) -> Iterator[Picture | Answers]:
    store = RowStore(artifact.files(f"{split}-"))
    count = min(count, len(store))
    chosen = permute(np.arange(count), max(1, len(store)), random_key(seed, "inspect"))
    names = artifact.manifest.statistics.get("label_names")
    for row in chosen:
        place = np.array([row])
        tokens = store.column("tokens", place)[0].astype(np.int64)
        if isinstance(tokenizer, PixelTokenizer):
            label = None
            if "label" in store.columns:
                number = int(store.column("label", place)[0][0])
                label = names[number] if names else str(number)
            pixels = tokens.reshape(tokenizer.height, tokenizer.width)
            yield Picture(pixels, tokenizer.levels - 1, label)
        elif isinstance(tokenizer, SymbolTokenizer):
            targets = store.column("targets", place)[0][1:]
            yield Answers(
                [tokenizer.symbols[token] for token in tokens],
                ["" if t == IGNORE else tokenizer.symbols[int(t)] for t in targets],
            )


def save_pictures(inspection: Inspection, path: Path) -> None:
    """Writes the images among the rows as one PNG. Raises UsageError where there are none."""
    pictures = [row for row in inspection.rows if isinstance(row, Picture)]
    if not pictures:
        raise UsageError(f"--png {path}: the artifact holds no images to draw")
    write_grid([picture.pixels for picture in pictures], pictures[0].white, path)
