"""Rows of the synthetic tasks: lengths, noise, padding, targets and distances.

`targets[i + 1]` answers `tokens[i]`; `targets[0]` is IGNORE, and so is every target without an
answer. Targets are tokens of the same vocabulary. `distance[i + 1]` is i - j where the answer to
`tokens[i]` was written at `tokens[j]`; -1 where there is no answer or it is computed.

Noise, unless a task says otherwise, is a share of the tokens of a row (rounded down to an even
number) that are NOOPs, at random positions. They change nothing: without them the row is a shorter
row of the same task. Distances count them.

A row is a function of settings, seed, split and its number. T is the length of the longest row.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from smtkit import IGNORE
from smtkit.config import SynthesizeConfig
from smtkit.corpus.seeded import IntArray, RowDraws
from smtkit.corpus.tasks import (
    TASKS,
    Content,
    Task,
    noise_of,
    recalled,
    require,
    vocabulary_of,
)


@dataclass(frozen=True)
class TaskRows:
    """n rows, padded past `lengths`."""

    tokens: IntArray  # (n, T), padded with 0
    targets: IntArray  # (n, T + 1), padded with IGNORE
    distance: NDArray[np.int32]  # (n, T + 1), in tokens, padded with -1
    length: IntArray  # (n,), in tokens


def symbols(settings: SynthesizeConfig) -> list[str]:
    """(vocabulary,) a name for every token, for display. Raises UsageError for settings that the
    task does not allow."""
    task = _checked_task(settings)
    share = (vocabulary_of(settings) - len(task.marks)) // len(task.values)
    *firsts, last = task.values
    names = [*task.marks, *(f"{prefix}{n}" for prefix in firsts for n in range(share))]
    return names + [f"{last}{n}" for n in range(vocabulary_of(settings) - len(names))]


def generate(
    settings: SynthesizeConfig, seed: int, split: str, sequences: int, block: int = 4096
) -> Iterator[TaskRows]:
    """Rows 0 to `sequences` - 1 of a split, `block` at a time; the last block may be smaller.

    A row does not depend on `sequences` or `block`. Memory grows with `block` * T. Raises
    UsageError, before the first block is generated, for settings that the task does not allow.
    """
    task = _checked_task(settings)
    starts = range(0, sequences, block)
    numbers = (np.arange(start, min(start + block, sequences)) for start in starts)
    return (_write_rows(task, settings, RowDraws((seed, split, settings.task), n)) for n in numbers)


def _checked_task(settings: SynthesizeConfig) -> Task:
    name, vocabulary, task = settings.task, vocabulary_of(settings), TASKS[settings.task]
    smallest = len(task.marks) + 2 * len(task.values)
    require(vocabulary >= smallest, f"`vocabulary` {vocabulary}: {name} needs {smallest} or more")
    has_noise = task.noise_is != "nothing"
    require(has_noise or not settings.noise, f"`noise` {settings.noise}: {name} allows 0 alone")
    task.check(settings)
    for length in settings.lengths:
        left = int(_without_noops(task, settings, np.array(length)))
        needed = task.shortest if settings.pairs is None else 2 * settings.pairs + 1
        noops = f" with `noise` {settings.noise} leaves {left}" if left < length else ""
        pairs = f" with `pairs` {settings.pairs}" if settings.pairs is not None else ""
        message = f"`lengths` {length}{noops}: {name}{pairs} needs {needed} tokens or more"
        require(left >= needed, message)
    return task


def _without_noops(task: Task, settings: SynthesizeConfig, length: IntArray) -> IntArray:
    """Number of tokens in rows of `lengths` tokens that are not NOOPs."""
    share = noise_of(settings) if task.noise_is == "noops" else 0.0
    return length - 2 * (length * share / 2).astype(np.int64)


def _write_rows(task: Task, settings: SynthesizeConfig, draw: RowDraws) -> TaskRows:
    length = np.array(settings.lengths)[draw.integers("length", 1, len(settings.lengths))]
    left = _without_noops(task, settings, length)
    content = task.write(settings, left, draw)
    if (left < length).any():
        content = _insert_noops(content, length, left, draw)
    position = np.arange(max(settings.lengths))
    inside = position < length
    answers = np.where(inside, content.answers, IGNORE)
    distance = np.where(inside & (content.written >= 0), position - content.written, -1)
    return TaskRows(
        tokens=np.where(inside, content.tokens, 0),
        targets=np.pad(answers, ((0, 0), (1, 0)), constant_values=IGNORE),
        distance=np.pad(distance, ((0, 0), (1, 0)), constant_values=-1).astype(np.int32),
        length=length[:, 0],
    )


def _insert_noops(content: Content, length: IntArray, left: IntArray, draw: RowDraws) -> Content:
    """Spreads the first `left` tokens of a row over its first `length` positions; both (n, 1)."""
    position = np.arange(content.tokens.shape[1])
    key = np.where(position < length, draw.uniform("noops", len(position)), 1)
    kept = np.empty(key.shape, dtype=bool)
    np.put_along_axis(kept, np.argsort(key, axis=1), position < left, axis=1)
    new_position = np.argsort(~kept, axis=1, kind="stable")  # of each token
    token = np.maximum(np.cumsum(kept, axis=1) - 1, 0)  # at each new position
    tokens = np.where(kept, np.take_along_axis(content.tokens, token, axis=1), 0)
    written = np.where(kept, np.take_along_axis(content.written, token, axis=1), -1)
    moved = np.take_along_axis(new_position, written, axis=1)
    return recalled(tokens, np.where(written < 0, -1, moved))
