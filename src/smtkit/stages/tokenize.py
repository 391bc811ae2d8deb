"""`smtkit tokenize`: text or images to a `tokens` artifact."""

from typing import Unpack

from smtkit.config import TokenizeConfig
from smtkit.corpus.files import listing_digest
from smtkit.corpus.image_corpus import ImageCorpus
from smtkit.corpus.images import is_image
from smtkit.corpus.subwords import SentencePieceTokenizer
from smtkit.corpus.text_corpus import TextCorpus
from smtkit.storage.location import PathOrURI
from smtkit.storage.manifest import Manifest
from smtkit.storage.run import Existing, Run
from smtkit.training.progress import Progress, Silent


def run(
    config: TokenizeConfig,
    out: PathOrURI,
    *,
    progress: Progress | None = None,
    **existing: Unpack[Existing],
) -> Manifest:
    """Tokenizes `config.inputs` into the artifact `out`.

    Raises UsageError where there is nothing to read, InputOutputError where a file is unreadable,
    broken or not UTF-8.
    """
    progress = progress or Silent()
    kind = ImageCorpus if config.tokenizer == "pixel" else TextCorpus
    corpus = kind(config, progress.update)
    if isinstance(corpus, TextCorpus):
        _warn_of_other_data(corpus, progress)
    with Run(
        out, "tokens", config, **existing, inputs={"input files": listing_digest(corpus.files())}
    ) as artifact:
        if artifact.finished:
            return artifact.finished
        corpus.assign_splits(artifact.directory)
        tokenizer = corpus.tokenizer
        if isinstance(tokenizer, SentencePieceTokenizer) and not tokenizer.is_exact:
            progress.warn(
                f"{config.tokenizer_model}: does not decode every text to itself (no byte "
                "fallback, or it normalises): no bits per byte will be computed"
            )
        tokenizer.save(artifact)
        statistics = corpus.write(artifact)
        shares = {"train": 1.0, "validation": config.validation_fraction}
        shares["test"] = 1.0 if config.test_inputs else config.test_fraction
        for split, counts in statistics["splits"].items():
            if shares[split] and not counts["tokens"]:
                progress.warn(f"the {split} split is empty: there is too little to split")
        return artifact.commit(statistics)


def _warn_of_other_data(corpus: TextCorpus, progress: Progress) -> None:
    """Warns of files that are probably no text."""
    images = [path for path in corpus.files() if is_image(path)]
    others = [path for path in corpus.binary_files() if path not in images]
    for paths, what in (
        (images, "images, read as text; the pixel tokenizer reads images"),
        (others, "binary, not text: every byte is read as a part of it"),
    ):
        if paths:
            more = f" and {len(paths) - 1} more" if paths[1:] else ""
            progress.warn(f"{paths[0]}{more}: {what}")
