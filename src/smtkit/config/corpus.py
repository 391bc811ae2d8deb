"""Settings of the stages that write tokens."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from smtkit.config.base import Config, Flag, Fraction, Positive, Seed


def _height_and_width(value: Any) -> Any:
    """`28x14` as a list, and 28 or `28` as the two sides of a square; anything else as it is."""
    if type(value) is int:
        return [value, value]
    if not isinstance(value, str):
        return value
    parts = value.lower().split("x")
    if len(parts) > 2:
        raise ValueError("expected HxW, for example 28x28, or N for a square")
    return parts if parts[1:] else 2 * parts


def _comma_separated(value: Any) -> Any:
    if isinstance(value, int):  # one number of a TOML file, or of Python
        return [value]
    return value.split(",") if isinstance(value, str) else value


class PixelConfig(Config):
    """How images become tokens: pixels row by row, from the top left corner."""

    levels: Annotated[Annotated[int, Field(ge=2, le=256)] | None, Flag()] = None
    """Number of grey levels; unset: 256, or 2 with `pixel.binarize`. Lower it for a smaller
    vocabulary."""
    size: Annotated[
        tuple[Positive, Positive] | None, BeforeValidator(_height_and_width), Flag(metavar="HxW")
    ] = None
    """Height and width to which images are resampled, by area; one number: a square; unset: as they
    are. Lower it for shorter sequences."""
    maximum: Annotated[Annotated[float, Field(gt=0, allow_inf_nan=False)] | None, Flag()] = None
    """Value of white in the images; unset: 255 for integers, 1 for floats."""
    binarize: Annotated[Annotated[float, Field(ge=0, le=1)] | None, Flag()] = None
    """Threshold, as a share of white, from which a pixel becomes 1, else 0; unset: grey levels."""

    @property
    def level_count(self) -> int:
        return self.levels or (256 if self.binarize is None else 2)

    @model_validator(mode="after")
    def _binary_images_have_two_levels(self) -> Self:
        if self.binarize is not None and self.level_count != 2:
            raise ValueError("pixel.binarize is only allowed with pixel.levels 2")
        return self


class TokenizeConfig(Config):
    """Turn text or images into train, validation and test tokens.

    Text comes from plain files and from rows of .jsonl, .csv and .parquet, also compressed (.gz,
    .zst); a document is a file or a row. Images come from IDX files (as MNIST), .npy, .npz, and
    directories of PNG or JPEG files.
    """

    main = ("tokenizer", "vocabulary_size", "test_inputs", "validation_fraction", "test_fraction")
    requires = {
        "vocabulary_size": {"tokenizer": ("sentencepiece",), "tokenizer_model": (None,)},
        "model_type": {"tokenizer": ("sentencepiece",), "tokenizer_model": (None,)},
        "training_bytes": {"tokenizer": ("sentencepiece",), "tokenizer_model": (None,)},
        "tokenizer_model": {"tokenizer": ("sentencepiece",)},
        "format": {"tokenizer": ("byte", "char", "sentencepiece")},
        "text_field": {"tokenizer": ("byte", "char", "sentencepiece")},
        "pixel": {"tokenizer": ("pixel",)},
    }

    inputs: Annotated[list[str], Field(min_length=1), Flag(metavar="INPUT", positional=True)]
    """Files, directories or globs; `-` reads standard input. Files may be compressed by gzip or
    zstd."""
    test_inputs: Annotated[list[str], Flag("test-input", metavar="PATH")] = Field(
        default_factory=list
    )
    """Files of the test split, repeatable; none: a share of the inputs. Set it where the data come
    with a test set."""
    tokenizer: Annotated[Literal["byte", "char", "sentencepiece", "pixel"], Flag()] = "byte"
    """Bytes of text, its characters, subwords, or the pixels of images. The vocabulary of `char`
    and the model of `sentencepiece` are fitted on the train split alone."""
    include: Annotated[list[str], Flag(metavar="GLOB")] = Field(default_factory=list)
    """In directories, read only files that match one of these globs, repeatable."""
    exclude: Annotated[list[str], Flag(metavar="GLOB")] = Field(default_factory=list)
    """In directories, skip files that match one of these globs, repeatable."""
    format: Annotated[Literal["text", "jsonl", "csv", "parquet"] | None, Flag()] = None
    """Format of text inputs; unset: from the suffix of each file."""
    text_field: Annotated[str, Flag(metavar="NAME")] = "text"
    """Field or column that holds the text in jsonl, csv and parquet."""
    errors: Annotated[Literal["strict", "replace", "skip"], Flag()] = "strict"
    """On broken rows, bytes that are not UTF-8 and pictures that cannot be decoded: stop, insert
    U+FFFD, or skip the document or picture."""
    max_expansion: Annotated[Annotated[float, Field(ge=1)], Flag()] = 200.0
    """Largest size of a decompressed file, as a multiple of its compressed size. 64 MiB are always
    allowed. Raise it for text that repeats itself; it protects from decompression bombs."""
    max_value_bytes: Annotated[Annotated[int, Field(ge=2**16)], Flag()] = 2**24
    """Largest value that is held in memory whole: a row of text, a page of a parquet file, an image
    as it is stored, and one of 8 bytes per pixel as it becomes tokens. Raise it for longer rows and
    larger images; up to 40 times as much memory is used."""
    vocabulary_size: Annotated[Annotated[int, Field(ge=300)], Flag("vocab-size")] = 4096
    """Vocabulary size of the sentencepiece model to train. It includes the 256 bytes and the
    end-of-document token. Raise it for shorter sequences from a large corpus."""
    model_type: Annotated[Literal["unigram", "bpe"], Flag()] = "unigram"
    """Algorithm of the sentencepiece model to train."""
    tokenizer_model: Annotated[str | None, Flag(metavar="FILE")] = None
    """Existing sentencepiece model to use; unset: one is trained."""
    training_bytes: Positive = 10 * 2**20
    """Bytes of train text, drawn by the seed, on which the sentencepiece model is trained. Raise it
    for a large vocabulary."""
    pixel: PixelConfig = PixelConfig()
    validation_fraction: Annotated[Fraction, Flag()] = 0.05
    """Validation split, as a share of the bytes of text, or of the images."""
    test_fraction: Annotated[Fraction, Flag()] = 0.05
    """Test split, as a share of the bytes of text, or of the images. Ignored with
    `test_inputs`."""
    seed: Annotated[Seed, Flag()] = 0
    """Seed of the split and of the sentencepiece sample."""
    workers: Annotated[Positive | None, Flag()] = None
    """Number of threads; unset: one per core."""

    @model_validator(mode="after")
    def _train_split_is_not_empty(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction must be below 1")
        return self

    @model_validator(mode="after")
    def _pictures_are_skipped_or_not(self) -> Self:
        if self.tokenizer == "pixel" and self.errors == "replace":
            raise ValueError("errors = replace is for text; pictures allow strict, skip")
        return self


class SynthesizeConfig(Config):
    """Write rows of a synthetic memory task, with their answers.

    A row is a sequence of tokens with targets at some positions: the answers, which depend on
    tokens read long before.
    """

    main = ("lengths", "sequences", "vocabulary", "noise", "seed")
    requires = {
        "reverse": {"task": ("string-copy",)},
        "depth": {"task": ("stack",)},
        "pairs": {"task": ("keys-values",)},
    }

    task: Annotated[
        Literal[
            "retrieval",
            "string-copy",
            "stack",
            "keys-values",
            "modular-arithmetic",
            "parity",
            "recency",
        ],
        Flag(metavar="TASK", positional=True),
    ]
    """The memory task."""
    lengths: Annotated[
        list[Positive],
        Field(min_length=1),
        BeforeValidator(_comma_separated),
        Flag("lengths", metavar="T,T,...", alias="length"),
    ]
    """Tokens per row. With several lengths, each row draws one of them."""
    sequences: Annotated[Positive, Flag()]
    """Number of train rows."""
    validation_sequences: Annotated[Positive, Flag()] = 1000
    """Number of validation rows."""
    test_sequences: Annotated[Positive, Flag()] = 1000
    """Number of test rows."""
    vocabulary: Annotated[Annotated[int, Field(ge=2)] | None, Flag()] = None
    """Vocabulary size, including the task's markers; unset: the task's default. Raise it for a
    harder task."""
    noise: Annotated[Annotated[float, Field(ge=0, le=1)] | None, Flag()] = None
    """Share of tokens that carry no information; unset: the task's default."""
    reverse: Annotated[bool, Flag()] = False
    """The answer repeats the symbols in reverse order."""
    depth: Annotated[Positive, Flag()] = 8
    """Largest number of values on the stack."""
    pairs: Annotated[Positive | None, Flag()] = None
    """Key-value pairs per row; unset: a quarter of the length."""
    seed: Annotated[Seed, Flag()] = 0
    """Seed of the rows."""
