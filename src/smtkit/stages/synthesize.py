"""`smtkit synthesize`: rows of a synthetic memory task, a `tokens` artifact."""

from typing import Unpack

from smtkit.config import SynthesizeConfig
from smtkit.corpus.shards import SplitWriter, rows_schema, without_padding
from smtkit.corpus.splits import SPLITS
from smtkit.corpus.task_rows import generate, symbols
from smtkit.corpus.tokenizers import SymbolTokenizer
from smtkit.storage.location import PathOrURI
from smtkit.storage.manifest import Manifest
from smtkit.storage.run import Existing, Run
from smtkit.training.progress import Progress, Silent

_BLOCK_TOKENS = 2**20


def run(
    config: SynthesizeConfig,
    out: PathOrURI,
    *,
    progress: Progress | None = None,
    **existing: Unpack[Existing],
) -> Manifest:
    """Writes the rows of `config.task`; raises UsageError where the task does not allow them."""
    tokenizer = SymbolTokenizer(symbols(config))
    counts = (config.sequences, config.validation_sequences, config.test_sequences)
    with Run(out, "tokens", config, **existing) as artifact:
        if artifact.finished:
            return artifact.finished
        tokenizer.save(artifact)
        schema = rows_schema(tokenizer.vocabulary_size, distance=True, label=False)
        block = max(1, _BLOCK_TOKENS // max(config.lengths))
        of_splits, longest = {}, 0
        for split, count in zip(SPLITS, counts, strict=True):
            with SplitWriter(artifact, split, schema) as writer:
                for rows in generate(config, config.seed, split, count, block):
                    longest = max(longest, int(rows.length.max()))
                    writer.append(
                        {
                            "tokens": without_padding(rows.tokens, rows.length),
                            "targets": without_padding(rows.targets, rows.length + 1),
                            "distance": without_padding(rows.distance, rows.length + 1),
                        }
                    )
                    (progress or Silent()).update(f"writing {split}", writer.rows, count)
            of_splits[split] = {"rows": writer.rows, "tokens": writer.tokens}
        return artifact.commit(
            {
                "layout": "rows",
                "length": longest,
                "vocabulary_size": tokenizer.vocabulary_size,
                "splits": of_splits,
            }
        )
