"""`smtkit tokenize --tokenizer pixel`: images to a `tokens` artifact, one image a row."""

import os
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import xxhash
from numpy.typing import NDArray

from smtkit import IGNORE
from smtkit.config import TokenizeConfig
from smtkit.corpus import splits
from smtkit.corpus.files import listing_digest
from smtkit.corpus.images import ImageBlock, ImageSet, PixelSettings, open_images
from smtkit.corpus.rows import RowWriter, rows_schema
from smtkit.corpus.splits import SPLITS, Fractions
from smtkit.corpus.tokenizers import PixelTokenizer
from smtkit.errors import UsageError
from smtkit.storage.manifest import Manifest
from smtkit.storage.run import Run
from smtkit.training.progress import Progress, Silent


def run(
    config: TokenizeConfig,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Tokenizes the images of `config.inputs`; raises UsageError, InputOutputError."""
    settings = _settings(config)
    images = open_images(config.inputs, settings)
    test = open_images(config.test_inputs, settings) if config.test_inputs else None
    if test is not None:
        _check_match(images, test)
    sets = [s for s in (test, images) if s is not None]  # a given test comes first
    paths = [file for s in sets for source in s.sources for file in source.files()]
    with Run(
        out,
        "tokens",
        config,
        seed=config.seed,
        overwrite=overwrite,
        resume=resume,
        inputs={"input files": listing_digest(paths)},
    ) as artifact:
        if artifact.finished:
            return artifact.finished
        tokenizer = PixelTokenizer(settings.levels, images.height, images.width)
        tokenizer.save(artifact)
        codes = _assign(config, sets, test.count if test else 0)
        schema = rows_schema(tokenizer.vocabulary_size, distance=False, label=images.labelled)
        with ExitStack() as stack:
            writers = [stack.enter_context(RowWriter(artifact, split, schema)) for split in SPLITS]
            _write(sets, codes, writers, progress or Silent())
        return artifact.commit(
            {
                "layout": "rows",
                "length": images.height * images.width,
                "height": images.height,
                "width": images.width,
                "label_names": images.label_names,
                "images": len(codes),
                "duplicate_images": int((codes == splits.REMOVED).sum()),
                "vocabulary_size": tokenizer.vocabulary_size,
                "splits": {w.split: {"rows": w.rows, "tokens": w.tokens} for w in writers},
            }
        )


def _settings(config: TokenizeConfig) -> PixelSettings:
    pixel = config.pixel
    default_levels = 256 if pixel.binarize is None else 2
    return PixelSettings(pixel.levels or default_levels, pixel.size, pixel.maximum, pixel.binarize)


def _check_match(images: ImageSet, test: ImageSet) -> None:
    for what, train_value, test_value in (
        ("size", (images.height, images.width), (test.height, test.width)),
        ("labels", images.labelled, test.labelled),
        ("label names", images.label_names, test.label_names),
    ):
        if train_value != test_value:
            raise UsageError(
                f"--test-input {test.sources[0].path}: {what}: {test_value}, the other images' "
                f"{train_value}"
            )


def _assign(config: TokenizeConfig, sets: Sequence[ImageSet], given: int) -> NDArray[np.int8]:
    digests = np.concatenate([_digest(block) for images in sets for block in images.blocks()])
    return splits.assign_splits(
        digests,
        np.ones(len(digests), dtype=np.int64),
        Fractions(config.validation_fraction, config.test_fraction),
        config.seed,
        given_test=given,
        by_position=False,
    )


def _digest(block: ImageBlock) -> NDArray[np.uint64]:
    digests = [xxhash.xxh3_128_digest(image.tobytes()) for image in block.pixels]
    return np.frombuffer(b"".join(digests), dtype=">u8").reshape(-1, 2).astype(np.uint64)


def _write(
    sets: Sequence[ImageSet],
    codes: NDArray[np.int8],
    writers: Sequence[RowWriter],
    progress: Progress,
) -> None:
    done = 0
    for images in sets:
        for block in images.blocks():
            code = codes[done : done + len(block.pixels)]
            for split, writer in enumerate(writers):
                _append(writer, block, code == split)
            done += len(block.pixels)
            progress.update("tokenizing", done, len(codes))


def _append(writer: RowWriter, block: ImageBlock, chosen: NDArray[np.bool_]) -> None:
    count, height, width = int(chosen.sum()), *block.pixels.shape[1:]
    tokens = block.pixels[chosen].reshape(count, height * width)
    # Nothing follows the last pixel: no answer is asked there.
    targets = np.pad(tokens, ((0, 0), (0, 1)), constant_values=IGNORE)
    columns = {"tokens": tokens, "targets": targets}
    if block.labels is not None:
        columns["label"] = block.labels[chosen]
    writer.append(np.full(count, height * width, dtype=np.int64), columns)
