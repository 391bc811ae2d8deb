"""`smtkit inspect`: the manifest of an artifact; and, for tokens, counts and some rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from smtkit import IGNORE
from smtkit.corpus.pictures import check_png, write_grid
from smtkit.corpus.seeded import IntArray, choose, random_key
from smtkit.corpus.shards import TokenShards, read_split
from smtkit.corpus.splits import SPLITS
from smtkit.corpus.stored_tokenizer import load_tokenizer
from smtkit.corpus.tokenizers import PixelTokenizer, SymbolTokenizer, TextTokenizer, Tokenizer
from smtkit.errors import ArtifactError, UsageError
from smtkit.storage.artifact import Artifact
from smtkit.storage.location import PathOrURI
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
    """A task row: symbols, and for each the answer to it, or nothing."""

    symbols: list[str]
    answers: list[str]


@dataclass(frozen=True)
class Inspection:
    """The manifest; and, for tokens, counts by split and some rows."""

    manifest: Manifest
    counts: dict[str, dict[str, Any]]
    rows: list[str | Picture | Answers]


def run(
    path: PathOrURI,
    *,
    verify: bool = False,
    split: str = "train",
    rows: int = 3,
    seed: int = 0,
) -> Inspection:
    """Opens the artifact `path`; for tokens, counts all and draws `rows` of `split` by the seed.

    With `verify` every file's checksum is compared, and weights and labels are checked to be finite
    and in range. Raises ArtifactError, UsageError.
    """
    artifact = Artifact.open(path)
    if verify:
        artifact.verify()
        _verify_content(artifact)
    if artifact.manifest.kind != "tokens":
        return Inspection(artifact.manifest, {}, [])
    if split not in SPLITS:
        raise UsageError(f"`split` {split}: allowed are {', '.join(SPLITS)}")
    tokenizer = load_tokenizer(artifact)
    shards = {name: read_split(artifact, name) for name in SPLITS}
    counts, seen_before = {}, set[bytes]()
    for name in SPLITS:
        counts[name], digests = _count(artifact, tokenizer, shards[name])
        counts[name]["also_in_earlier_splits"] = len(seen_before & digests)
        seen_before |= digests
    key = random_key(seed, "inspect")
    shown: list[str | Picture | Answers]
    if isinstance(tokenizer, TextTokenizer):
        starts = choose(rows, shards[split].tokens, key)
        excerpts = (shards[split].read(int(start), _EXCERPT_TOKENS) for start in starts)
        shown = [tokenizer.decode(map(int, tokens)) for tokens in excerpts]
    else:
        chosen = choose(rows, shards[split].rows, key)[:, None]
        shown = [_row(artifact, tokenizer, shards[split], row) for row in chosen]
    return Inspection(artifact.manifest, counts, shown)


def _verify_content(artifact: Artifact) -> None:
    """Raises ArtifactError where weights or labels are not finite, out of range, or do not fit."""
    # Imported here: other commands import this module to print results, without torch.
    from smtkit.labels.format import LABEL_SPLITS
    from smtkit.labels.reader import LabelShards
    from smtkit.networks.loading import load_label_teacher, load_rnn, load_teacher

    kind = artifact.manifest.kind
    if kind == "encoder":
        load_teacher(artifact)
    elif kind == "rnn":
        load_rnn(artifact)
    elif kind == "labels":
        load_label_teacher(artifact)
        for split in LABEL_SPLITS:
            LabelShards(artifact.files(f"{split}-")).verify()


def save_pictures(inspection: Inspection, path: Path) -> None:
    """Writes the images among the rows as one PNG. Raises UsageError where there are none."""
    check_png(path, "png")
    pictures = [row for row in inspection.rows if isinstance(row, Picture)]
    if not pictures:
        raise UsageError(f"`png` {path}: the artifact holds no images to draw")
    write_grid([picture.pixels for picture in pictures], pictures[0].white, path)


def _count(
    artifact: Artifact, tokenizer: Tokenizer, shards: TokenShards
) -> tuple[dict[str, Any], set[bytes]]:
    """The counts of one split, and the digests of its documents or rows.

    Raises ArtifactError at a token beyond the vocabulary.
    """
    histogram = np.zeros(tokenizer.vocabulary_size, dtype=np.int64)
    lengths: list[int] = []
    digests: set[bytes] = set()
    checksum, current, targets = xxhash.xxh3_64(), -1, 0
    for documents, ends, tokens, block_targets in shards.row_blocks():
        block_counts = np.bincount(tokens, minlength=len(histogram))
        if len(block_counts) > len(histogram):
            raise ArtifactError(
                f"{artifact.directory}: damaged: token {len(block_counts) - 1}, the vocabulary has "
                f"{len(histogram)}",
                "`verify` names the file",
            )
        histogram += block_counts
        targets += int((block_targets != IGNORE).sum())
        for document, row in zip(documents, np.split(tokens, ends[:-1]), strict=True):
            if document != current:
                if lengths:
                    digests.add(checksum.digest())
                checksum, current = xxhash.xxh3_64(), document
                # The token that ends a document does not count.
                lengths.append(-isinstance(tokenizer, TextTokenizer))
            checksum.update(np.ascontiguousarray(row).data)
            lengths[-1] += len(row)
    if lengths:
        digests.add(checksum.digest())
    spread = {}
    if lengths:
        low, middle, high = np.percentile(lengths, [0, 50, 100])
        spread = {"shortest": int(low), "median": int(middle), "longest": int(high)}
    total, size = int(histogram.sum()), tokenizer.vocabulary_size
    used = {"vocabulary_used": _share(int((histogram > 0).sum()), size)}
    if isinstance(tokenizer, TextTokenizer):
        unknown = 0 if tokenizer.unknown is None else int(histogram[tokenizer.unknown])
        counts = {"documents": len(lengths), "tokens": total, **spread, **used}
        return {**counts, "unknown": _share(unknown, total)}, digests
    counts = {"rows": len(lengths), "tokens": total, **spread, "targets_asked": targets, **used}
    return {**counts, "repeated_rows": len(lengths) - len(digests)}, digests


def _share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} ({100 * part / max(whole, 1):.3g}%)"


def _row(
    artifact: Artifact, tokenizer: Tokenizer, shards: TokenShards, row: IntArray
) -> Picture | Answers:
    tokens = shards.column("tokens", row)[0].astype(np.int64)
    if isinstance(tokenizer, PixelTokenizer):
        label = None
        if "label" in shards.columns:
            number = int(shards.column("label", row)[0][0])
            names = artifact.manifest.statistics.get("label_names")
            if isinstance(names, list) and 0 <= number < len(names):
                label = str(names[number])
            else:
                label = str(number)
        if len(tokens) != tokenizer.height * tokenizer.width:
            raise ArtifactError(f"{artifact.directory}: an image of {len(tokens)} pixels")
        pixels = tokens.reshape(tokenizer.height, tokenizer.width)
        return Picture(pixels, tokenizer.levels - 1, label)
    assert isinstance(tokenizer, SymbolTokenizer)
    targets = shards.column("targets", row)[0][1:]
    return Answers(
        [tokenizer.symbols[token] for token in tokens],
        ["" if target == IGNORE else tokenizer.symbols[target] for target in targets],
    )
