"""`smtkit generate`: text, images, or answers to the rows of a task, by an RNN alone.

N: images or rows, H, W: height and width of images.
"""

import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from smtkit import IGNORE
from smtkit.config import GenerateConfig
from smtkit.corpus.pictures import (
    check_png,
    completion_shades,
    completion_strip,
    shades,
    write_grid,
)
from smtkit.corpus.seeded import choose, random_key
from smtkit.corpus.stored_tokenizer import check_tokenizers, load_tokenizer
from smtkit.corpus.tokenizers import PixelTokenizer, SymbolTokenizer, TextTokenizer, Tokenizer
from smtkit.corpus.windows import Windows, open_windows
from smtkit.errors import UsageError
from smtkit.inference.trained import SamplingOptions, TrainedRNN
from smtkit.storage.artifact import Artifact
from smtkit.storage.location import PathOrURI, local_path
from smtkit.training.distributed import choose_device
from smtkit.training.progress import Progress, Silent

_SETTINGS = {
    "text": ("prompt", "max_tokens"),
    "images": ("tokens", "from_split", "given", "samples", "out"),
    "answers": ("tokens", "from_split", "samples"),
}
"""The settings that have a meaning for what an RNN writes, besides those of all."""


def run(
    config: GenerateConfig,
    rnn: PathOrURI,
    *,
    tokens: PathOrURI | None = None,
    out: PathOrURI | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Iterator[str]:
    """Text for a person, in pieces; the RNN starts from its empty memory.

    Text: the continuation of `config.prompt`, as it is sampled, until the end of the document or
    `max_tokens`; memory and time per token do not grow with the length. Images: from nothing or,
    with `from_split`, completions of images in the artifact `tokens`; drawn, or written to the PNG
    file `out`. Tasks: rows of `tokens` with the answers of the RNN.

    Raises ArtifactError and UsageError, before the first piece.
    """
    trained = Artifact.open(rnn, "rnn")
    tokenizer = load_tokenizer(trained)
    kind = _kind(tokenizer)
    path = None if out is None else local_path(out, "out")
    _check_settings(config, kind, trained, tokens, path)
    if path is not None:
        check_png(path, "out")
    if path is not None and path.is_dir():
        raise UsageError(f"`out` {path}: is a directory", "name a file, for example samples.png")
    if path is not None and path.exists() and not overwrite:
        raise UsageError(f"`out` {path}: exists", "`overwrite` replaces it")
    seed = secrets.randbits(64) if config.seed is None else config.seed
    rows = None
    if tokens is not None and config.from_split is not None:
        corpus = Artifact.open(tokens, "tokens")
        check_tokenizers(trained, corpus)
        windows = open_windows(corpus, config.from_split, None)
        key = random_key(seed, "generate")
        rows = windows.read(choose(config.samples, windows.per_epoch, key))
    network = TrainedRNN(trained, choose_device(config.device))
    temperature = 0.0 if kind == "answers" else 1.0
    sampling = SamplingOptions(
        temperature=temperature if config.temperature is None else config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        seed=seed,
    )
    if isinstance(tokenizer, TextTokenizer):
        if unknown := _unknown(tokenizer, config.prompt):
            (progress or Silent()).warn(
                f"{unknown} in the prompt: read as an unknown character, since the tokenizer of "
                f"{trained.directory} lacks it"
            )
        return network.stream(config.prompt, config.max_tokens, **sampling)
    if isinstance(tokenizer, PixelTokenizer):
        return _images(config, network, tokenizer, sampling, rows, path)
    assert rows is not None
    assert isinstance(tokenizer, SymbolTokenizer)
    return _answers(network, tokenizer, sampling, rows)


def given_lines(share: float, height: int) -> int:
    """How many whole lines are `share` of an image; at least one is left to complete."""
    return min(height - 1, round(share * height))


def _unknown(tokenizer: TextTokenizer, text: str) -> str:
    """The characters of a text that the tokenizer lacks, for a message."""

    def has_unknown(part: str) -> bool:
        return tokenizer.unknown in tokenizer.encode(part.encode("utf-8", "surrogateescape"))

    if tokenizer.unknown is None or not has_unknown(text):
        return ""
    return ", ".join(map(repr, filter(has_unknown, dict.fromkeys(text))))


def _kind(tokenizer: Tokenizer) -> str:
    if isinstance(tokenizer, TextTokenizer):
        return "text"
    return "images" if isinstance(tokenizer, PixelTokenizer) else "answers"


def _check_settings(
    config: GenerateConfig,
    kind: str,
    rnn: Artifact,
    tokens: PathOrURI | None,
    out: Path | None,
) -> None:
    """Raises UsageError where a setting is missing, or has no meaning for what the RNN writes."""
    found = {**config.model_dump(exclude_unset=True), "tokens": tokens, "out": out}
    given = {name for name, value in found.items() if value is not None}
    for name in sorted(given & set().union(*_SETTINGS.values()) - set(_SETTINGS[kind])):
        allowed = ", ".join(f"`{other}`" for other in _SETTINGS[kind])
        raise UsageError(f"`{name}`: {rnn.directory} writes {kind}", f"allowed: {allowed}")
    if config.from_split is not None and tokens is None:
        raise UsageError(
            f"`from_split` {config.from_split}: `tokens` must be set too",
            "name the tokens artifact whose rows to go on from",
        )
    if config.from_split is None:
        for name in sorted(given & {"tokens", "given"}):
            raise UsageError(f"`{name}`: `from_split` must be set too", "`from_split` test")
        if kind == "answers":
            raise UsageError(
                f"{rnn.directory}: learned a task, it needs rows to answer",
                "`tokens` TOKENS `from_split` test",
            )


def _images(
    config: GenerateConfig,
    network: TrainedRNN,
    tokenizer: PixelTokenizer,
    sampling: SamplingOptions,
    rows: Windows | None,
    out: Path | None,
) -> Iterator[str]:
    """Images from nothing; or, of each of `rows`, the original, the given lines, the completion."""
    height, width, white = tokenizer.height, tokenizer.width, tokenizer.levels - 1
    lines = 0 if rows is None else given_lines(config.given, height)
    originals = np.empty((config.samples, 0), dtype=np.int64) if rows is None else rows.tokens
    prompts = torch.from_numpy(originals[:, : lines * width]).to(network.device)
    rest = network.complete(prompts, (height - lines) * width, **sampling)
    completed = torch.cat([prompts, rest], 1).cpu().numpy().reshape(-1, height, width)
    images = completed if rows is None else originals.reshape(-1, height, width)
    pairs = zip(images, completed, strict=True)
    if out is not None:
        if rows is None:
            write_grid(list(completed), white, out)
        else:
            strips = [completion_strip(original, lines, image, white) for original, image in pairs]
            write_grid(strips, 255, out)
        count = "1 image" if len(completed) == 1 else f"{len(completed)} images"
        what = "" if rows is None else ": original, given, completion"
        return iter([f"{out}: {count} of {height} x {width}{what}"])
    if rows is None:
        title, drawn = "image {}", [shades(image, white) for image in completed]
    else:
        title = "row {}: original | given | completion"
        drawn = [completion_shades(original, lines, image, white) for original, image in pairs]
    pictures = [f"--- {title.format(n)}\n{picture}" for n, picture in enumerate(drawn, start=1)]
    return iter(["\n".join(pictures)])


def _answers(
    network: TrainedRNN, tokenizer: SymbolTokenizer, sampling: SamplingOptions, rows: Windows
) -> Iterator[str]:
    """A line for each row: symbols, each target with the answer and whether it is right; and a line
    that counts the right answers."""
    symbols, has_target = tokenizer.symbols, rows.targets != IGNORE
    answers = np.full_like(rows.targets, IGNORE)
    drawn = network.answer(rows.tokens, torch.from_numpy(has_target), **sampling)
    answers[has_target] = drawn.cpu().numpy()
    for row, length in enumerate(rows.length):
        cells = []
        for i, token in enumerate(rows.tokens[row, :length]):
            target, answer = rows.targets[row, i + 1], answers[row, i + 1]
            right = f"({symbols[target]})" if answer == target else f"not {symbols[target]}"
            shown = "" if target == IGNORE else f"->{symbols[answer]} {right}"
            cells.append(symbols[token] + shown)
        yield " ".join(cells) + "\n"
    right_count = int((answers == rows.targets)[has_target].sum())
    yield f"answers right: {right_count} of {has_target.sum()}"
