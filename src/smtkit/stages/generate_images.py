"""The images of `smtkit generate`: from nothing, or going on from the top of others.

N: images, H, W: their height and width.
"""

import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from smtkit.config import GenerateConfig
from smtkit.corpus.pictures import BETWEEN, shades, write_grid
from smtkit.corpus.tokenizers import PixelTokenizer
from smtkit.corpus.windows import Windows
from smtkit.errors import UsageError
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.networks.sampling import Sampling
from smtkit.storage.files import publish

_DOT = "\N{MIDDLE DOT} "

Levels = NDArray[np.int64]


def generated_images(
    config: GenerateConfig,
    network: RecurrentNetwork,
    tokenizer: PixelTokenizer,
    sampling: Sampling,
    rows: Windows | None,
    out: Path | None,
) -> Iterator[str]:
    """Draws `config.samples` images or, of each of `rows`, the original, what is given of it, and
    the completion; written to the PNG file `out`, or in pieces for a terminal."""
    size = tokenizer.height, tokenizer.width
    lines = 0 if rows is None else given_lines(config.given, tokenizer.height)
    if rows is None:
        prompts = np.empty((config.samples, 0), dtype=np.int64)
    else:
        prompts = rows.tokens[:, : lines * tokenizer.width]
    completed = _complete(network, tokenizer, sampling, prompts)
    originals = None if rows is None else rows.tokens.reshape(-1, *size)
    white = tokenizer.levels - 1
    if out is None:
        return _drawn(originals, lines, completed, white)
    if originals is None:
        _write(list(completed), white, out)
    else:
        pairs = zip(originals, completed, strict=True)
        _write([triple(original, lines, image, white) for original, image in pairs], 255, out)
    images = "1 image" if len(completed) == 1 else f"{len(completed)} images"
    what = "" if rows is None else ": original, given, completion"
    return iter([f"{out}: {images} of {size[0]} x {size[1]}{what}"])


def check_place(out: Path, overwrite: bool) -> None:
    """Raises UsageError where a picture cannot be written, or what is there would be lost."""
    if out.is_dir():
        raise UsageError(f"--out {out}: is a directory", "name a file, for example samples.png")
    if out.exists() and not overwrite:
        raise UsageError(f"--out {out}: exists", "--overwrite replaces it")


def given_lines(share: float, height: int) -> int:
    """How many whole lines are `share` of an image; at least one is left to complete."""
    return min(height - 1, round(share * height))


def triple(original: Levels, lines: int, completed: Levels, white: int) -> Levels:
    """Original, given lines and completion side by side, in greys of 0..255: (H + 2, 3 W + 4)."""
    originals, completion = (255 * image // white for image in (original, completed))
    given = originals.copy()
    given[lines:] = BETWEEN
    gap = np.full((len(original), 1), BETWEEN, dtype=np.int64)
    side_by_side = np.hstack([originals, gap, given, gap, completion])
    return np.pad(side_by_side, 1, constant_values=BETWEEN)


def _complete(
    network: RecurrentNetwork, tokenizer: PixelTokenizer, sampling: Sampling, prompts: Levels
) -> Levels:
    """(N, P) first pixels of images -> whole images, (N, H, W)."""
    pixels = tokenizer.height * tokenizer.width
    given = torch.from_numpy(prompts).to(network.empty_memory.device)
    completion = network.complete(given, pixels - prompts.shape[1], **sampling)
    whole = np.concatenate([prompts, completion.cpu().numpy()], axis=1)
    return whole.reshape(-1, tokenizer.height, tokenizer.width)


def _drawn(originals: Levels | None, lines: int, completed: Levels, white: int) -> Iterator[str]:
    for number, image in enumerate(completed):
        separator = "\n" if number else ""
        if originals is None:
            yield f"{separator}--- image {number + 1}\n{shades(image, white)}"
            continue
        original = shades(originals[number], white).split("\n")
        given = original[:lines] + [_DOT * image.shape[1]] * (len(image) - lines)
        columns = zip(original, given, shades(image, white).split("\n"), strict=True)
        picture = "\n".join(" | ".join(parts) for parts in columns)
        yield f"{separator}--- row {number + 1}: original | given | completion\n{picture}"


def _write(pictures: Sequence[Levels], white: int, out: Path) -> None:
    """Writes a grid; `out` is the old file or the new one, whole, at any time."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        write_grid(pictures, white, temporary)
        publish(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
