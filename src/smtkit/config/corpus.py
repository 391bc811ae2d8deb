"""Settings of the stages that write tokens."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from smtkit.config.base import Config, Fraction, Only, Positive, Seed


class PixelConfig(Config):
    """How images become tokens."""

    levels: Annotated[int, Field(ge=2, le=256)] | None = None
    """Grey levels; unset: 256, or 2 with `binarize`."""
    size: tuple[Positive, Positive] | None = None
    """Height and width to resample to, by area; unset: as the source has them."""
    maximum: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """The source's white; unset: 255 for whole numbers, 1 for others."""
    binarize: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of white from which a pixel is 1, else 0."""
    order: Literal["raster"] = "raster"
    """Line by line from the top left corner."""


class TokenizeConfig(Config):
    """`smtkit tokenize`."""

    only: ClassVar[tuple[Only, ...]] = (
        *(
            Only(key, "tokenizer", ("sentencepiece",))
            for key in ("vocabulary_size", "model_type", "tokenizer_model", "training_bytes")
        ),
        *(
            Only(key, "tokenizer_model", (None,))
            for key in ("vocabulary_size", "model_type", "training_bytes")
        ),
        *(
            Only(key, "tokenizer", ("byte", "char", "sentencepiece"))
            for key in ("format", "text_field", "errors")
        ),
        Only("pixel", "tokenizer", ("pixel",)),
    )

    inputs: list[str] = Field(min_length=1)
    """Files, directories, globs; `-`: standard input, also compressed by gzip or zstd."""
    test_inputs: list[str] = Field(default_factory=list)
    """Files that are the test split; unset: a share of the inputs is."""
    tokenizer: Literal["byte", "char", "sentencepiece", "pixel"] = "byte"
    """`byte`: any file; `char`: vocabulary from train; `sentencepiece`; `pixel`: images."""
    include: list[str] = Field(default_factory=list)
    """Of directories, only files that match one of these globs."""
    exclude: list[str] = Field(default_factory=list)
    """Of directories, no files that match one of these globs."""
    format: Literal["text", "jsonl", "csv", "parquet"] | None = None
    """Of text; unset: by the file's suffix."""
    text_field: str = "text"
    """The field, or column, of the text in jsonl, csv and parquet."""
    errors: Literal["strict", "replace", "skip"] = "strict"
    """Broken rows and bytes that are not UTF-8: an error, U+FFFD, or pass over the document."""
    max_expansion: Annotated[float, Field(ge=1)] = 200.0
    """What a compressed file may expand to, in multiples of its size; 64 MiB always."""
    vocabulary_size: Annotated[int, Field(ge=300)] = 4096
    """Of a sentencepiece model to train, with its bytes and the end of a document."""
    model_type: Literal["unigram", "bpe"] = "unigram"
    """Of a sentencepiece model to train."""
    tokenizer_model: str | None = None
    """An existing sentencepiece model."""
    training_bytes: Positive = 10 * 2**20
    """Text of train, drawn by the seed, on which a sentencepiece model is trained."""
    pixel: PixelConfig = PixelConfig()
    validation_fraction: Fraction = 0.05
    """Share of the bytes."""
    test_fraction: Fraction = 0.05
    """Share of the bytes."""
    seed: Seed = 0
    """Of all random numbers."""
    workers: Positive | None = None
    """Threads; unset: one a core."""

    @model_validator(mode="after")
    def _train_is_left(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction must be below 1")
        return self


class SynthesizeConfig(Config):
    """`smtkit synthesize`."""

    only: ClassVar[tuple[Only, ...]] = (
        Only("reverse", "task", ("string-copy",)),
        Only("depth", "task", ("stack",)),
        Only("pairs", "task", ("keys-values",)),
    )

    task: Literal[
        "retrieval",
        "string-copy",
        "stack",
        "keys-values",
        "modular-arithmetic",
        "parity",
        "recency",
    ]
    """What is to be remembered."""
    lengths: list[Positive] = Field(min_length=1)
    """Tokens a row; of several, each row draws one."""
    sequences: Positive
    """Rows of train."""
    validation_sequences: Positive = 1000
    """Rows of validation."""
    test_sequences: Positive = 1000
    """Rows of test."""
    vocabulary: Annotated[int, Field(ge=2)] | None = None
    """Tokens, with the task's marks; unset: what suits the task."""
    noise: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the tokens that mean nothing; unset: what suits the task."""
    reverse: bool = False
    """Of `string-copy`: the last symbol first."""
    depth: Positive = 8
    """Of `stack`: the most values on it."""
    pairs: Positive | None = None
    """Of `keys-values`: pairs a row; unset: a quarter of the length."""
    seed: Seed = 0
    """Of all random numbers."""
