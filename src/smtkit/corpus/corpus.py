"""The corpus that the tokenize stage reads: text documents or images, behind one interface."""

from pathlib import Path
from typing import Any, Protocol

from smtkit.config import TokenizeConfig
from smtkit.corpus.image_corpus import ImageCorpus
from smtkit.corpus.parallel import Report
from smtkit.corpus.text_corpus import TextCorpus
from smtkit.corpus.tokenizers import Tokenizer
from smtkit.storage.run import Run


class Corpus(Protocol):
    """Documents or images of the inputs, read in passes; the methods are called in this order."""

    def files(self) -> list[Path]:
        """All files that the result depends on."""

    def assign_splits(self, directory: Path) -> None:
        """Reads everything once, finds duplicates, and assigns each document or image to a split.
        `directory` holds temporary files."""

    def make_tokenizer(self) -> Tokenizer:
        """The tokenizer of the config, fitted on train if it needs to be."""

    def write(self, run: Run, tokenizer: Any) -> dict[str, Any]:
        """Writes the shards of all splits; returns the statistics for the manifest."""


def open_corpus(config: TokenizeConfig, report: Report) -> Corpus:
    """The corpus of `config.inputs`. Raises UsageError where there is nothing to read."""
    kind = ImageCorpus if config.tokenizer == "pixel" else TextCorpus
    return kind(config, report)
