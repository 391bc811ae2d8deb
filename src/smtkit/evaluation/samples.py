"""Samples of what an RNN writes during training, from its empty memory."""

from collections.abc import Callable

import numpy as np
import torch

from smtkit.config import TrainingConfig
from smtkit.corpus.pictures import shades
from smtkit.corpus.seeded import UniformStream
from smtkit.corpus.tokenizers import PixelTokenizer, TextTokenizer, Tokenizer
from smtkit.errors import UsageError
from smtkit.evaluation.free_running import FreeRunning

_TOKENS = 150
_TEMPERATURE = 0.8
_SEED = 0


def sampler(
    training: TrainingConfig, running: FreeRunning, tokenizer: Tokenizer
) -> Callable[[], str] | None:
    """A function that draws a text, or an image in shades, always with the same seed; None where
    `sample_every` is unset. Raises UsageError for tasks, which have answers in place of samples."""
    if training.sample_every is None:
        return None

    def draw(count: int) -> list[int]:
        stream = UniformStream(_SEED)
        return running.draw(
            count,
            temperature=_TEMPERATURE,
            uniforms=lambda size: torch.from_numpy(stream.draw(size)),
        )

    def text() -> str:
        assert isinstance(tokenizer, TextTokenizer)
        tokens = draw(_TOKENS)
        end = tokenizer.end_of_document
        return tokenizer.decode(tokens[: tokens.index(end)] if end in tokens else tokens)

    def picture() -> str:
        assert isinstance(tokenizer, PixelTokenizer)
        shape = tokenizer.height, tokenizer.width
        return shades(np.array(draw(shape[0] * shape[1])).reshape(shape), tokenizer.levels - 1)

    if isinstance(tokenizer, TextTokenizer):
        return text
    if isinstance(tokenizer, PixelTokenizer):
        return picture
    raise UsageError(
        "`training.sample_every`: a task has nothing to sample", "validations show its accuracy"
    )
