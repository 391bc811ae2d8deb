"""A corpus of images: one image per row, read in passes that hold only some blocks in memory."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from smtkit import IGNORE
from smtkit.config import TokenizeConfig
from smtkit.corpus import splits
from smtkit.corpus.images import ImageBlock, ImageSet
from smtkit.corpus.limits import Limits
from smtkit.corpus.shards import Column, SplitWriter, rows_schema
from smtkit.corpus.splits import SPLITS, Fractions
from smtkit.corpus.tokenizers import PixelTokenizer
from smtkit.errors import InputOutputError, UsageError
from smtkit.storage.run import Run


class ImageCorpus:
    """All images of the inputs. Raises UsageError where the test images do not match the others."""

    def __init__(self, config: TokenizeConfig, report: Callable[[str, float, float], None]) -> None:
        self._config = config
        self._report = report
        limits = Limits(config.max_expansion, config.max_value_bytes)
        options: dict[str, Any] = {
            "include": config.include,
            "exclude": config.exclude,
            "skips_broken": config.errors == "skip",
        }
        self._images = ImageSet(config.inputs, config.pixel, limits, **options)
        self._sets = [self._images]
        height, width = self._images.height, self._images.width
        self.tokenizer = PixelTokenizer(config.pixel.level_count, height, width)
        if config.test_inputs:
            test = ImageSet(config.test_inputs, config.pixel, limits, **options)
            _check_match(self._images, test)
            # The test comes first: of equal images, the one in train is removed.
            self._sets = [test, self._images]

    def files(self) -> list[Path]:
        """All files that the result depends on."""
        sources = [source for images in self._sets for source in images.sources]
        return [path for source in sources for path in source.files]

    def assign_splits(self, directory: Path) -> None:
        """Reads all images once, finds duplicates, and assigns each image to a split.

        Raises InputOutputError for damaged images.
        """
        of_sets = [np.concatenate([*map(_digests, images.blocks())]) for images in self._sets]
        self._digests = np.concatenate(of_sets)
        self.codes = splits.assign_splits(
            self._digests,
            np.ones(len(self._digests), dtype=np.int64),
            Fractions(self._config.validation_fraction, self._config.test_fraction),
            self._config.seed,
            given_test=len(of_sets[0]) if self._config.test_inputs else 0,
            by_position=False,
        )

    def write(self, run: Run) -> dict[str, Any]:
        """Writes the pixels of all splits; returns the statistics for the manifest.

        Raises InputOutputError where an image is not what `assign_splits` has read.
        """
        images = self._images
        schema = rows_schema(self.tokenizer.vocabulary_size, distance=False, label=images.labelled)
        done = 0
        with ExitStack() as stack:
            writers = [stack.enter_context(SplitWriter(run, split, schema)) for split in SPLITS]
            for block in self._blocks():
                end = done + len(block.pixels)
                if not np.array_equal(_digests(block), self._digests[done:end]):
                    inputs = ", ".join((*self._config.inputs, *self._config.test_inputs))
                    raise InputOutputError(
                        f"{inputs}: images {done} to {end - 1} changed while they were read"
                    )
                codes = self.codes[done:end]
                for split, writer in enumerate(writers):
                    _append(writer, block, codes == split)
                done = end
                self._report("tokenizing images", done, len(self.codes))
        return {
            "layout": "rows",
            "length": images.height * images.width,
            "height": images.height,
            "width": images.width,
            "label_names": images.label_names,
            "images": len(self.codes),
            "broken_images": sum(images.count for images in self._sets) - len(self.codes),
            "duplicate_images": int((self.codes == splits.REMOVED).sum()),
            "vocabulary_size": self.tokenizer.vocabulary_size,
            "splits": {w.split: {"rows": w.rows, "tokens": w.tokens} for w in writers},
        }

    def _blocks(self) -> Iterator[ImageBlock]:
        return (block for images in self._sets for block in images.blocks())


def _check_match(images: ImageSet, test: ImageSet) -> None:
    for what, train_value, test_value in (
        ("size", (images.height, images.width), (test.height, test.width)),
        ("labels", images.labelled, test.labelled),
        ("label names", images.label_names, test.label_names),
    ):
        if train_value != test_value:
            raise UsageError(
                f"`test_inputs` {test.sources[0].path}: {what}: {test_value}, the other images' "
                f"{train_value}"
            )


def _digests(block: ImageBlock) -> NDArray[np.uint64]:
    """(n, 2): 128 bits of each image."""
    digests = [xxhash.xxh3_128_digest(image.tobytes()) for image in block.pixels]
    return np.frombuffer(b"".join(digests), dtype=">u8").reshape(-1, 2).astype(np.uint64)


def _append(writer: SplitWriter, block: ImageBlock, chosen: NDArray[np.bool_]) -> None:
    tokens = block.pixels.reshape(len(block.pixels), -1)[chosen]
    # Nothing follows the last pixel: it has no target.
    targets = np.pad(tokens, ((0, 0), (0, 1)), constant_values=IGNORE)
    lengths = np.full(len(tokens), tokens.shape[1])
    columns: dict[str, Column] = {
        "tokens": (tokens.ravel(), lengths),
        "targets": (targets.ravel(), lengths + 1),
    }
    if block.labels is not None:
        columns["label"] = block.labels[chosen]
    writer.append(columns)
