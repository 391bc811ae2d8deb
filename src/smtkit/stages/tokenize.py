"""`smtkit tokenize`: text or images to a `tokens` artifact."""

import os

from smtkit.config import TokenizeConfig
from smtkit.corpus.corpus import open_corpus
from smtkit.corpus.files import listing_digest
from smtkit.corpus.subwords import SentencePieceTokenizer
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
    """Tokenizes `config.inputs` into the artifact `out`.

    Raises UsageError where there is nothing to read, InputOutputError where a file is unreadable,
    broken or not UTF-8.
    """
    progress = progress or Silent()
    corpus = open_corpus(config, progress.update)
    with Run(
        out,
        "tokens",
        config,
        seed=config.seed,
        overwrite=overwrite,
        resume=resume,
        inputs={"input files": listing_digest(corpus.files())},
    ) as artifact:
        if artifact.finished:
            return artifact.finished
        corpus.assign_splits(artifact.directory)
        tokenizer = corpus.make_tokenizer()
        if isinstance(tokenizer, SentencePieceTokenizer) and tokenizer.unknown is not None:
            progress.warn(
                f"{config.tokenizer_model}: does not decode every text to itself (no byte "
                "fallback, or it normalises): no bits per byte will be computed"
            )
        tokenizer.save(artifact)
        return artifact.commit(corpus.write(artifact, tokenizer))
