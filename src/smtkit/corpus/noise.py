"""Random tokens, which stand for real ones where only time and memory are measured."""

import numpy as np

from smtkit.config import TokenizeConfig
from smtkit.corpus.shards import DocumentWriter, SplitWriter, rows_schema
from smtkit.corpus.splits import SPLITS
from smtkit.corpus.tokenizers import CharTokenizer, SymbolTokenizer, Tokenizer
from smtkit.storage.location import PathOrURI
from smtkit.storage.run import Run

_ROWS = 64
_STREAM_TOKENS = 2**18
_FIRST_CHARACTER = 0x10000


def write_noise(out: PathOrURI, vocabulary_size: int, row_length: int | None) -> None:
    """A tokens artifact of random tokens: rows of `row_length`, or with None a stream of text."""
    draw = np.random.default_rng(0)
    tokenizer: Tokenizer
    with Run(out, "tokens", TokenizeConfig(inputs=["noise"])) as artifact:
        if row_length is None:
            characters = range(_FIRST_CHARACTER, _FIRST_CHARACTER + vocabulary_size - 2)
            tokenizer = CharTokenizer("".join(map(chr, characters)))
            for split in SPLITS:
                with DocumentWriter(artifact, split, vocabulary_size) as stream:
                    stream.extend(0, 0, draw.integers(0, vocabulary_size, _STREAM_TOKENS))
        else:
            tokenizer = SymbolTokenizer([str(number) for number in range(vocabulary_size)])
            schema = rows_schema(vocabulary_size, distance=False, label=False)
            for split in SPLITS:
                targets = draw.integers(0, vocabulary_size, (_ROWS, row_length + 1))
                tokens, lengths = targets[:, :-1].flatten(), np.full(_ROWS, row_length)
                columns = {"tokens": (tokens, lengths), "targets": (targets.flatten(), lengths + 1)}
                with SplitWriter(artifact, split, schema) as rows:
                    rows.append(columns)
        tokenizer.save(artifact)
        layout = "stream" if row_length is None else "rows"
        artifact.commit({"layout": layout, "length": row_length})
