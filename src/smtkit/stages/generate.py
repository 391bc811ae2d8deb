"""`smtkit generate`: text from an RNN alone, streamed as it comes."""

import os
from collections.abc import Iterator
from itertools import islice, takewhile

import torch

from smtkit.artifacts.manifest import Artifact
from smtkit.config import GenerateConfig
from smtkit.data.tokenizers import load_text_tokenizer
from smtkit.stages.train_rnn import load_rnn
from smtkit.training import choose_device


def run(config: GenerateConfig, rnn: str | os.PathLike[str]) -> Iterator[str]:
    """Pieces of text that follow `config.prompt`, until the end of the document or `max_tokens`.

    The RNN starts from its empty memory; memory and time a token do not grow with the length.
    Raises ArtifactError, before the first piece.
    """
    device = choose_device(config.device)
    trained = Artifact.open(rnn, "rnn")
    tokenizer = load_text_tokenizer(trained)
    network, _ = load_rnn(trained)
    generator = torch.Generator()
    if config.seed is None:
        generator.seed()
    else:
        generator.manual_seed(config.seed)
    tokens = network.to(device).generate(
        [int(t) for t in tokenizer.encode(config.prompt.encode("utf-8", "surrogateescape"))],
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        generator=generator,
    )
    document = takewhile(lambda token: token != tokenizer.end_of_document, tokens)
    return tokenizer.pieces(islice(document, config.max_tokens))
