"""Synthetic memory tasks: rows of tokens whose targets follow from what was read long before.

`targets[i + 1]` answers `tokens[i]`; `targets[0]` is IGNORE, as is every target that is not asked.
Targets are token numbers of the same vocabulary. `distance[i + 1]` is i - j where the answer to
`tokens[i]` was written at `tokens[j]`; -1 where nothing is asked or the answer is computed.

Noise, unless a task says otherwise, is a share of the tokens of a row (rounded down to an even
number of them) that are NOOPs, at random places. They change nothing: without them the row is a
shorter row of the same task. Distances count them.

A row is a function of settings, seed, split and its number. T is the length of the longest row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from smtkit import IGNORE
from smtkit.corpus.seeded import IntArray, random_key, uniform
from smtkit.errors import UsageError


@dataclass(frozen=True)
class TaskSettings:
    """What to generate."""

    task: str  # a name in TASKS
    lengths: tuple[int, ...]  # in tokens; rows draw theirs from these, all equally likely
    vocabulary: int  # different tokens; TASKS[task].vocabulary is a sensible number
    noise: float | None = None  # None: TASKS[task].noise
    reverse: bool = False  # string-copy: the copy runs from the end of the string
    depth: int = 8  # stack: values it can hold; other tasks pass over it
    pairs: int | None = None  # keys-values: None is half of the tokens, or as many as have keys


@dataclass(frozen=True)
class Rows:
    """n rows, padded past `length`."""

    tokens: IntArray  # (n, T), padded with 0
    targets: IntArray  # (n, T + 1), padded with IGNORE
    distance: NDArray[np.int32]  # (n, T + 1), in tokens, padded with -1
    length: IntArray  # (n,), in tokens


def symbols(settings: TaskSettings) -> list[str]:
    """A name for every token, for display: (vocabulary,). Impossible settings: UsageError."""
    task = _checked_task(settings)
    share = (settings.vocabulary - len(task.marks)) // len(task.values)
    *firsts, last = task.values
    names = [*task.marks, *(f"{prefix}{n}" for prefix in firsts for n in range(share))]
    return names + [f"{last}{n}" for n in range(settings.vocabulary - len(names))]


def generate(
    settings: TaskSettings, seed: int, split: str, sequences: int, block: int = 4096
) -> Iterator[Rows]:
    """Rows 0 to `sequences` - 1 of a split, `block` at a time; the last block may be smaller.

    A row does not depend on `sequences` or `block`. Memory grows with `block` * T. Impossible
    settings: UsageError, before the first block is asked for.
    """
    task = _checked_task(settings)
    starts = range(0, sequences, block)
    numbers = (np.arange(start, min(start + block, sequences)) for start in starts)
    return (_write_rows(task, settings, Draw((seed, split, settings.task), n)) for n in numbers)


@dataclass(frozen=True)
class Draw:
    """Random numbers of n rows: each a function of `parts`, row, purpose and place alone."""

    parts: tuple[int | str, ...]
    rows: IntArray  # (n,), their numbers

    def uniform(self, purpose: str, count: int) -> NDArray[np.float64]:
        """(n, count) numbers in [0, 1)."""
        return uniform(random_key(*self.parts, purpose), self.rows, count)

    def integers(self, purpose: str, count: int, size: int | IntArray) -> IntArray:
        """(n, count) integers in [0, size); size: one for all rows, or (n, 1)."""
        return (self.uniform(purpose, count) * size).astype(np.int64)

    def distinct(self, purpose: str, count: int, size: int) -> IntArray:
        """(n, count) integers in [0, size), none twice in a row.

        Floyd's sampling (Bentley and Floyd, "A sample of brilliance", 1987), whose work does not
        grow with `size`; then a shuffle, because large numbers tend to come last.
        """
        numbers = self.uniform(purpose, count)
        sample = np.empty(numbers.shape, dtype=np.int64)
        for place, limit in enumerate(range(size - count + 1, size + 1)):
            drawn = (numbers[:, place] * limit).astype(np.int64)
            repeated = (sample[:, :place] == drawn[:, None]).any(axis=1)
            sample[:, place] = np.where(repeated, limit - 1, drawn)
        order = np.argsort(self.uniform(f"{purpose} order", count), axis=1)
        return np.take_along_axis(sample, order, axis=1)


class Content(NamedTuple):
    """What a task writes: n rows of `length` (n, 1) tokens, without NOOPs; past it, anything."""

    tokens: IntArray  # (n, T)
    answers: IntArray  # (n, T), to each token, or IGNORE
    written: IntArray  # (n, T), index of the token that holds the answer, or -1


def retrieval(settings: TaskSettings, length: IntArray, draw: Draw) -> Content:
    """Needle in a haystack: in the first half of a row of fillers, a marker and then the needle.

    The last token is the query. Its answer, the only one, is the needle, a random value. Distance:
    to the needle. Noise: the probability that a filler is a random value and not a blank.
    """
    blank, mark, query, first_value = range(4)
    position, last = np.arange(max(settings.lengths)), length - 1
    marked = draw.integers("marker", 1, length // 2 - 1)
    values = first_value + draw.integers("values", len(position), settings.vocabulary - first_value)
    noisy = draw.uniform("noise", len(position)) < _noise(settings)
    shown = [position == marked, position == last, noisy | (position == marked + 1)]
    tokens = np.select(shown, [mark, query, values], blank)
    return _recalled(tokens, np.where(position == last, marked + 1, -1))


def string_copy(settings: TaskSettings, length: IntArray, draw: Draw) -> Content:
    """A string of random symbols, a separator, then the string again or, `reverse`, backwards.

    Half of the tokens are the string; the separator asks for the first symbol of the copy, and each
    symbol of the copy for the next. The last is asked but not read. Distance: into the string.
    """
    separator, first_symbol = 1, 2
    half, width = length // 2, max(settings.lengths)
    string = first_symbol + draw.integers("string", width, settings.vocabulary - first_symbol)
    output = np.arange(width) - half
    source = half - 1 - output if settings.reverse else output
    written = np.where((output >= 0) & (output < half), source, -1)
    answers = _recalled(string, written).answers
    parts = [output < 0, output == 0]
    tokens = np.select(parts, [string, separator], np.roll(answers, 1, axis=1))
    return Content(tokens, answers, written)


def stack(settings: TaskSettings, length: IntArray, draw: Draw) -> Content:
    """Random pushes and pops; a pop asks for the value it takes, as the token that pushed it.

    An empty stack is pushed, one of `depth` values popped, any other either, equally likely.
    Distance: to the push.
    """
    pop, first_push = 1, 2
    width = max(settings.lengths)
    push = draw.uniform("push", width) < 0.5
    height = np.zeros(len(push), dtype=np.int64)
    for position in range(width):
        push[:, position] = (height == 0) | (push[:, position] & (height < settings.depth))
        height += np.where(push[:, position], 1, -1)
    cell = np.cumsum(np.where(push, 1, -1), axis=1) - push  # that is written, or read and left
    values = first_push + draw.integers("values", width, settings.vocabulary - first_push)
    return _recalled(np.where(push, values, pop), np.where(push, -1, _previous_equal(cell)))


def keys_values(settings: TaskSettings, length: IntArray, draw: Draw) -> Content:
    """Associative recall: pairs of a key and a value, then keys alone that ask for their values.

    The pairs of a row have distinct keys; each query is one of these at random. Half of the
    vocabulary is keys, the rest values. Distance: to the value in its pair.
    """
    keys, width = (settings.vocabulary - 1) // 2, max(settings.lengths)
    most = settings.pairs or min(max(width // 4, 1), keys)
    pairs = np.full_like(length, most) if settings.pairs else np.clip(length // 4, 1, most)
    key = 1 + draw.distinct("keys", most, keys)
    value = 1 + keys + draw.integers("values", most, settings.vocabulary - 1 - keys)
    position = np.arange(width)
    shown = position < 2 * pairs
    pair = np.where(shown, position // 2, draw.integers("queries", width, pairs))
    key, value = (np.take_along_axis(each, pair, axis=1) for each in (key, value))
    tokens = np.where(shown & (position % 2 == 1), value, key)
    return _recalled(tokens, np.where(shown, -1, 2 * pair + 1))


def modular_arithmetic(settings: TaskSettings, length: IntArray, draw: Draw) -> Content:
    """x, y, x, y, ... with y = w x + b modulo a prime, the vocabulary; w > 0 and b differ by row.

    The first two x differ, so their pairs determine w and b; every later x asks for its y.
    Distance: -1. Noise: none.
    """
    modulus, width = settings.vocabulary, max(settings.lengths)
    w, b = 1 + draw.integers("w", 1, modulus - 1), draw.integers("b", 1, modulus)
    x = draw.integers("x", (width + 1) // 2, modulus)
    x[:, 1:2] = (x[:, :1] + 1 + draw.integers("second x", 1, modulus - 1)) % modulus
    y = (w * x + b) % modulus
    tokens = np.stack([x, y], axis=2).reshape(len(x), -1)[:, :width]
    answers = np.full_like(tokens, IGNORE)
    answers[:, 4::2] = y[:, 2:]
    return Content(tokens, answers, np.full_like(tokens, -1))


def parity(settings: TaskSettings, length: IntArray, draw: Draw) -> Content:
    """Random bits; each asks for the parity of all up to it. Distance: -1. Noise: none."""
    bits = draw.integers("bits", max(settings.lengths), 2)
    return Content(bits, np.cumsum(bits, axis=1) % 2, np.full_like(bits, -1))


def recency(settings: TaskSettings, length: IntArray, draw: Draw) -> Content:
    """Induction: random symbols; one seen before asks for what followed it the last time.

    Distance: to what followed it; 0 where that is the symbol itself, as in the second of a pair.
    """
    tokens = 1 + draw.integers("symbols", max(settings.lengths), settings.vocabulary - 1)
    previous = _previous_equal(tokens)
    return _recalled(tokens, np.where(previous < 0, -1, previous + 1))


def _recalled(tokens: IntArray, written: IntArray) -> Content:
    """Rows whose answers are their own tokens at `written`."""
    answers = np.take_along_axis(tokens, np.maximum(written, 0), axis=1)
    return Content(tokens, np.where(written < 0, IGNORE, answers), written)


def _previous_equal(labels: IntArray) -> IntArray:
    """(n, T): where each label of (n, T) stood in its row the last time before, or -1."""
    order = np.argsort(labels, axis=1, kind="stable")
    ordered = np.take_along_axis(labels, order, axis=1)
    before = np.where(ordered[:, 1:] == ordered[:, :-1], order[:, :-1], -1)
    previous = np.full_like(labels, -1)
    np.put_along_axis(previous, order[:, 1:], before, axis=1)
    return previous


@dataclass(frozen=True)
class Task:
    """How a task is written, and what it allows. Where noise is NOOPs, token 0 is the NOOP."""

    write: Callable[[TaskSettings, IntArray, Draw], Content]
    marks: tuple[str, ...]  # symbols of the first tokens
    values: tuple[str, ...]  # prefixes of the symbols of all others, in equal shares
    shortest: int  # row, in tokens without NOOPs
    vocabulary: int = 64  # a sensible number
    noise: float = 0.0  # where none is set
    noise_is: Literal["noops", "fillers", "nothing"] = "noops"


TASKS = {
    "retrieval": Task(retrieval, (".", "#", "?"), ("a",), 4, noise=1.0, noise_is="fillers"),
    "string-copy": Task(string_copy, (".", "|"), ("a",), 2),
    "stack": Task(stack, (".", "pop"), ("push ",), 2),
    "keys-values": Task(keys_values, (".",), ("k", "v"), 3),
    "modular-arithmetic": Task(modular_arithmetic, (), ("",), 5, 61, noise_is="nothing"),
    "parity": Task(parity, (), ("",), 1, 2, noise_is="nothing"),
    "recency": Task(recency, (".",), ("a",), 2),
}


def _checked_task(settings: TaskSettings) -> Task:
    name, vocabulary, noise = settings.task, settings.vocabulary, settings.noise
    _require(name in TASKS, f"{name}: no such task, allowed: {', '.join(TASKS)}")
    task = TASKS[name]
    smallest = len(task.marks) + 2 * len(task.values)
    _require(vocabulary >= smallest, f"--vocabulary {vocabulary}: {name} needs {smallest} or more")
    most, allowed = (0, "0, it has none") if task.noise_is == "nothing" else (1, "0 to 1")
    _require(0 <= _noise(settings) <= most, f"--noise {noise}: {name} allows {allowed}")
    _require(len(settings.lengths) > 0, "--length: none given, allowed: one or more")
    if name == "stack":
        _require(settings.depth >= 1, f"--depth {settings.depth}: allowed: 1 or more")
    if name == "parity":
        _require(vocabulary == 2, f"--vocabulary {vocabulary}: parity is of bits, allowed: 2")
    if name == "modular-arithmetic":
        _check_prime(vocabulary)
    _require(name == "string-copy" or not settings.reverse, f"--reverse: {name} has no reverse")
    pairs, keys = settings.pairs, (vocabulary - 1) // 2
    if pairs is not None:
        _require(name == "keys-values", f"--pairs {pairs}: {name} has no pairs")
        message = f"--pairs {pairs}: allowed: 1 to {keys}, the keys in --vocabulary {vocabulary}"
        _require(1 <= pairs <= keys, message)
    for length in settings.lengths:
        even = f"--length {length}: half is string and half copy, allowed: even lengths"
        _require(name != "string-copy" or length % 2 == 0, even)
        _check_length(task, settings, length)
    return task


def _check_length(task: Task, settings: TaskSettings, length: int) -> None:
    left = int(_without_noops(settings, np.array(length)))
    needed = task.shortest if settings.pairs is None else 2 * settings.pairs + 1
    noops = f" with --noise {settings.noise} leaves {left}" if left < length else ""
    pairs = f" with --pairs {settings.pairs}" if settings.pairs is not None else ""
    message = f"--length {length}{noops}: {settings.task}{pairs} needs {needed} tokens or more"
    _require(left >= needed, message)


def _check_prime(size: int) -> None:
    below = next(number for number in range(size, 1, -1) if _is_prime(number))
    above = next(number for number in range(size, 2 * size) if _is_prime(number))
    message = f"--vocabulary {size}: the modulus of modular-arithmetic, allowed: primes"
    _require(below == size, message, f"the nearest are {below} and {above}")


def _is_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def _require(condition: bool, message: str, hint: str | None = None) -> None:
    if not condition:
        raise UsageError(message, hint)


def _noise(settings: TaskSettings) -> float:
    return TASKS[settings.task].noise if settings.noise is None else settings.noise


def _without_noops(settings: TaskSettings, length: IntArray) -> IntArray:
    """How many tokens of rows of `length` tokens are not NOOPs."""
    share = _noise(settings) if TASKS[settings.task].noise_is == "noops" else 0.0
    return length - 2 * (length * share / 2).astype(np.int64)


def _write_rows(task: Task, settings: TaskSettings, draw: Draw) -> Rows:
    length = np.array(settings.lengths)[draw.integers("length", 1, len(settings.lengths))]
    left = _without_noops(settings, length)
    content = task.write(settings, left, draw)
    if (left < length).any():
        content = _insert_noops(content, length, left, draw)
    position = np.arange(max(settings.lengths))
    inside = position < length
    answers = np.where(inside, content.answers, IGNORE)
    distance = np.where(inside & (content.written >= 0), position - content.written, -1)
    return Rows(
        tokens=np.where(inside, content.tokens, 0),
        targets=np.pad(answers, ((0, 0), (1, 0)), constant_values=IGNORE),
        distance=np.pad(distance, ((0, 0), (1, 0)), constant_values=-1).astype(np.int32),
        length=length[:, 0],
    )


def _insert_noops(content: Content, length: IntArray, left: IntArray, draw: Draw) -> Content:
    """Spread the first `left` tokens of each row over its first `length` places; both (n, 1)."""
    position = np.arange(content.tokens.shape[1])
    key = np.where(position < length, draw.uniform("noops", len(position)), 1)
    kept = np.empty(key.shape, dtype=bool)
    np.put_along_axis(kept, np.argsort(key, axis=1), position < left, axis=1)
    place = np.argsort(~kept, axis=1, kind="stable")  # of each token
    token = np.maximum(np.cumsum(kept, axis=1) - 1, 0)  # at each place
    tokens = np.where(kept, np.take_along_axis(content.tokens, token, axis=1), 0)
    written = np.where(kept, np.take_along_axis(content.written, token, axis=1), -1)
    moved = np.take_along_axis(place, written, axis=1)
    return _recalled(tokens, np.where(written < 0, -1, moved))
