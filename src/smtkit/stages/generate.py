"""`smtkit generate`: what an RNN alone writes: text, images, answers to the rows of a task."""

import os
from collections.abc import Iterator
from itertools import islice, takewhile
from pathlib import Path

import numpy as np
import torch

from smtkit.config import GenerateConfig
from smtkit.corpus.seeded import permute, random_key
from smtkit.corpus.tokenizers import (
    PixelTokenizer,
    TextTokenizer,
    Tokenizer,
    check_tokenizers,
    load_tokenizer,
)
from smtkit.corpus.windows import Windows, open_windows
from smtkit.errors import UsageError
from smtkit.networks.loading import load_rnn
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.networks.sampling import Sampling
from smtkit.stages.generate_answers import answered_rows
from smtkit.stages.generate_images import check_place, generated_images
from smtkit.storage.artifact import Artifact
from smtkit.training.distributed import choose_device

_SETTINGS = {
    "text": ("prompt", "max_tokens"),
    "images": ("tokens", "from_split", "given", "samples", "out"),
    "answers": ("tokens", "from_split", "samples"),
}


def run(
    config: GenerateConfig,
    rnn: str | os.PathLike[str],
    *,
    tokens: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Iterator[str]:
    """What the RNN writes, in pieces, for a person; it starts from its empty memory.

    Text: what follows `config.prompt`, as it comes, until the end of the document or `max_tokens`;
    memory and time a token do not grow with the length. Images: from nothing or, with `from_split`,
    completions of images in the artifact `tokens`; drawn, or written to the PNG file `out`. Tasks:
    rows of `tokens` with the answers of the RNN.

    Raises ArtifactError and UsageError, before the first piece.
    """
    trained = Artifact.open(rnn, "rnn")
    tokenizer = load_tokenizer(trained)
    kind = _kind(tokenizer)
    place = None if out is None else Path(out)
    _check_settings(config, kind, trained, tokens, place)
    if place is not None:
        check_place(place, overwrite)
    generator = torch.Generator()
    if config.seed is None:
        generator.seed()
    else:
        generator.manual_seed(config.seed)
    rows = None
    if tokens is not None:
        rows = _rows(config, trained, Artifact.open(tokens, "tokens"), generator.initial_seed())
    network = load_rnn(trained).to(choose_device(config.device))
    temperature = 0.0 if kind == "answers" else 1.0
    sampling = Sampling(
        temperature=temperature if config.temperature is None else config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        generator=generator,
    )
    if isinstance(tokenizer, TextTokenizer):
        return _text(config, network, tokenizer, sampling)
    if isinstance(tokenizer, PixelTokenizer):
        return generated_images(config, network, tokenizer, sampling, rows, place)
    assert rows is not None
    return answered_rows(network, tokenizer, sampling, rows)


def _kind(tokenizer: Tokenizer) -> str:
    if isinstance(tokenizer, TextTokenizer):
        return "text"
    return "images" if isinstance(tokenizer, PixelTokenizer) else "answers"


def _check_settings(
    config: GenerateConfig,
    kind: str,
    rnn: Artifact,
    tokens: str | os.PathLike[str] | None,
    out: Path | None,
) -> None:
    """Raises UsageError where a setting is missing, or means nothing for what the RNN writes."""
    found = {name: getattr(config, name) for name in config.model_fields_set}
    found |= {"tokens": tokens, "out": out}
    given = {name for name, value in found.items() if value is not None}
    for name in sorted(given & {name for names in _SETTINGS.values() for name in names}):
        if name not in _SETTINGS[kind]:
            allowed = ", ".join(map(_flag, _SETTINGS[kind]))
            raise UsageError(f"{_flag(name)}: {rnn.directory} writes {kind}", f"allowed: {allowed}")
    if config.from_split is not None and tokens is None:
        raise UsageError(
            f"--from-split {config.from_split}: --tokens must be set too",
            "name the tokens artifact whose rows to go on from",
        )
    if config.from_split is None:
        for name in sorted(given & {"tokens", "given"}):
            raise UsageError(f"{_flag(name)}: --from-split must be set too", "--from-split test")
        if kind == "answers":
            raise UsageError(
                f"{rnn.directory}: learned a task, it needs rows to answer",
                "--tokens TOKENS --from-split test",
            )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _rows(config: GenerateConfig, rnn: Artifact, tokens: Artifact, seed: int) -> Windows:
    """`config.samples` whole rows of `config.from_split`, or all; which ones, the seed decides."""
    assert config.from_split is not None
    check_tokenizers(rnn, tokens)
    windows = open_windows(tokens, config.from_split, None)
    count = min(config.samples, windows.per_epoch)
    chosen = permute(np.arange(count), windows.per_epoch, random_key(seed, "generate"))
    return windows.read(chosen)


def _text(
    config: GenerateConfig, network: RecurrentNetwork, tokenizer: TextTokenizer, sampling: Sampling
) -> Iterator[str]:
    prompt = tokenizer.encode(config.prompt.encode("utf-8", "surrogateescape"))
    tokens = network.generate([int(token) for token in prompt], **sampling)
    document = takewhile(lambda token: token != tokenizer.end_of_document, tokens)
    return tokenizer.pieces(islice(document, config.max_tokens))
