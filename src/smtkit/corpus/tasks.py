"""Synthetic memory tasks: rows of tokens, and the answers that follow from tokens read long before.

To add a task, write a function that returns its `Content`, and add a row to `TASKS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from smtkit import IGNORE
from smtkit.config import SynthesizeConfig
from smtkit.corpus.seeded import IntArray, RowDraws
from smtkit.errors import UsageError


class Content(NamedTuple):
    """n rows of `lengths` (n, 1) tokens, without NOOPs; past `lengths`, any values."""

    tokens: IntArray  # (n, T)
    answers: IntArray  # (n, T), to each token, or IGNORE
    written: IntArray  # (n, T), index of the token that holds the answer, or -1


def retrieval(settings: SynthesizeConfig, length: IntArray, draw: RowDraws) -> Content:
    """Needle in a haystack: in the first half of a row of fillers, a marker and then the needle.

    The last token is the query, and the needle, a random value, its answer. Distance: to the
    needle. Noise: the probability that a filler is a random value and not a blank.
    """
    blank, mark, query, first_value = range(4)
    position, last = np.arange(max(settings.lengths)), length - 1
    marked = draw.integers("marker", 1, length // 2 - 1)
    values = first_value + draw.integers(
        "values", len(position), vocabulary_of(settings) - first_value
    )
    noisy = draw.uniform("noise", len(position)) < noise_of(settings)
    shown = [position == marked, position == last, noisy | (position == marked + 1)]
    tokens = np.select(shown, [mark, query, values], blank)
    return recalled(tokens, np.where(position == last, marked + 1, -1))


def string_copy(settings: SynthesizeConfig, length: IntArray, draw: RowDraws) -> Content:
    """A string of random symbols, a separator, then the string again or, `reverse`, backwards.

    Half of the tokens are the string. The answer to the separator is the first symbol of the copy,
    and the answer to each symbol of the copy the next one; the last symbol is an answer but no
    token. Distance: into the string.
    """
    separator, first_symbol = 1, 2
    half, width = length // 2, max(settings.lengths)
    string = first_symbol + draw.integers("string", width, vocabulary_of(settings) - first_symbol)
    output = np.arange(width) - half
    copied = half - 1 - output if settings.reverse else output
    written = np.where((output >= 0) & (output < half), copied, -1)
    answers = recalled(string, written).answers
    parts = [output < 0, output == 0]
    tokens = np.select(parts, [string, separator], np.roll(answers, 1, axis=1))
    return Content(tokens, answers, written)


def stack(settings: SynthesizeConfig, length: IntArray, draw: RowDraws) -> Content:
    """Random pushes and pops; the answer to a pop is the token that pushed the popped value.

    The next token is a push where the stack is empty, a pop where it holds `depth` values, and
    otherwise one or the other, equally likely. Distance: to the push.
    """
    pop, first_push = 1, 2
    width = max(settings.lengths)
    push = draw.uniform("push", width) < 0.5
    height = np.zeros(len(push), dtype=np.int64)
    for position in range(width):
        push[:, position] = (height == 0) | (push[:, position] & (height < settings.depth))
        height += np.where(push[:, position], 1, -1)
    cell = np.cumsum(np.where(push, 1, -1), axis=1) - push  # height of the value put or taken
    values = first_push + draw.integers("values", width, vocabulary_of(settings) - first_push)
    return recalled(np.where(push, values, pop), np.where(push, -1, _previous_equal(cell)))


def keys_values(settings: SynthesizeConfig, length: IntArray, draw: RowDraws) -> Content:
    """Associative recall: pairs of a key and a value, then keys alone, answered by their values.

    The pairs of a row have distinct keys; each query is one of them at random. Half of the
    vocabulary is keys, the rest values. Distance: to the value in its pair.
    """
    keys, width = (vocabulary_of(settings) - 1) // 2, max(settings.lengths)
    most = settings.pairs or min(max(width // 4, 1), keys)
    pairs = np.full_like(length, most) if settings.pairs else np.clip(length // 4, 1, most)
    key = 1 + draw.distinct("keys", most, keys)
    value = 1 + keys + draw.integers("values", most, vocabulary_of(settings) - 1 - keys)
    position = np.arange(width)
    shown = position < 2 * pairs
    pair = np.where(shown, position // 2, draw.integers("queries", width, pairs))
    key, value = (np.take_along_axis(each, pair, axis=1) for each in (key, value))
    tokens = np.where(shown & (position % 2 == 1), value, key)
    return recalled(tokens, np.where(shown, -1, 2 * pair + 1))


def modular_arithmetic(settings: SynthesizeConfig, length: IntArray, draw: RowDraws) -> Content:
    """x, y, x, y, ... with y = w x + b modulo a prime, the vocabulary; w > 0 and b differ by row.

    The first two x differ, so their pairs determine w and b; the answer to every later x is its y.
    Distance: -1. Noise: none.
    """
    modulus, width = vocabulary_of(settings), max(settings.lengths)
    w, b = 1 + draw.integers("w", 1, modulus - 1), draw.integers("b", 1, modulus)
    x = draw.integers("x", (width + 1) // 2, modulus)
    x[:, 1:2] = (x[:, :1] + 1 + draw.integers("second x", 1, modulus - 1)) % modulus
    y = (w * x + b) % modulus
    tokens = np.stack([x, y], axis=2).reshape(len(x), -1)[:, :width]
    answers = np.full_like(tokens, IGNORE)
    answers[:, 4::2] = y[:, 2:]
    return Content(tokens, answers, np.full_like(tokens, -1))


def parity(settings: SynthesizeConfig, length: IntArray, draw: RowDraws) -> Content:
    """Random bits, each answered by the parity of all up to it. Distance: -1. Noise: none."""
    bits = draw.integers("bits", max(settings.lengths), 2)
    return Content(bits, np.cumsum(bits, axis=1) % 2, np.full_like(bits, -1))


def recency(settings: SynthesizeConfig, length: IntArray, draw: RowDraws) -> Content:
    """Induction: random symbols; the answer to one seen before is what followed it the last time.

    Distance: to what followed it; 0 where that is the symbol itself, as in the second of a pair.
    """
    tokens = 1 + draw.integers("symbols", max(settings.lengths), vocabulary_of(settings) - 1)
    previous = _previous_equal(tokens)
    return recalled(tokens, np.where(previous < 0, -1, previous + 1))


def recalled(tokens: IntArray, written: IntArray) -> Content:
    """Rows whose answers are their own tokens at `written`."""
    answers = np.take_along_axis(tokens, np.maximum(written, 0), axis=1)
    return Content(tokens, np.where(written < 0, IGNORE, answers), written)


def _previous_equal(labels: IntArray) -> IntArray:
    """(n, T): index of the previous occurrence of each label of (n, T) in its row, or -1."""
    order = np.argsort(labels, axis=1, kind="stable")
    ordered = np.take_along_axis(labels, order, axis=1)
    before = np.where(ordered[:, 1:] == ordered[:, :-1], order[:, :-1], -1)
    previous = np.full_like(labels, -1)
    np.put_along_axis(previous, order[:, 1:], before, axis=1)
    return previous


@dataclass(frozen=True)
class Task:
    """How to write the rows of a task, and which settings it allows.

    The first tokens are `marks`; all others are values. Where noise is NOOPs, token 0 is the NOOP.
    """

    write: Callable[[SynthesizeConfig, IntArray, RowDraws], Content]
    marks: tuple[str, ...]
    values: tuple[str, ...]  # prefixes of the values' symbols, which share the tokens equally
    shortest: int  # row, in tokens without NOOPs
    vocabulary: int = 64  # where it is unset
    noise: float = 0.0  # where it is unset
    noise_is: Literal["noops", "fillers", "nothing"] = "noops"
    check: Callable[[SynthesizeConfig], None] = lambda settings: None  # raises UsageError


def vocabulary_of(settings: SynthesizeConfig) -> int:
    """The vocabulary size, or the task's default where it is unset."""
    return settings.vocabulary or TASKS[settings.task].vocabulary


def noise_of(settings: SynthesizeConfig) -> float:
    """The noise, or the task's default where it is unset."""
    return TASKS[settings.task].noise if settings.noise is None else settings.noise


def require(condition: bool, message: str, hint: str | None = None) -> None:
    """Raises UsageError where the condition is false."""
    if not condition:
        raise UsageError(message, hint)


def _check_copy(settings: SynthesizeConfig) -> None:
    for length in settings.lengths:
        even = f"`lengths` {length}: half is string and half copy, allowed: even lengths"
        require(length % 2 == 0, even)


def _check_pairs(settings: SynthesizeConfig) -> None:
    keys = (vocabulary_of(settings) - 1) // 2
    allowed = f"allowed: 1 to {keys}, the keys in `vocabulary` {vocabulary_of(settings)}"
    require((settings.pairs or 1) <= keys, f"`pairs` {settings.pairs}: {allowed}")


def _check_modulus(settings: SynthesizeConfig) -> None:
    size = vocabulary_of(settings)
    below = next(number for number in range(size, 1, -1) if _is_prime(number))
    above = next(number for number in range(size, 2 * size) if _is_prime(number))
    message = f"`vocabulary` {size}: the modulus of modular-arithmetic, allowed: primes"
    require(below == size, message, f"the nearest are {below} and {above}")


def _check_parity(settings: SynthesizeConfig) -> None:
    message = f"`vocabulary` {vocabulary_of(settings)}: parity is of bits, allowed: 2"
    require(vocabulary_of(settings) == 2, message)


def _is_prime(number: int) -> bool:
    return all(number % divisor for divisor in range(2, int(number**0.5) + 1))


TASKS = {
    "retrieval": Task(retrieval, (".", "#", "?"), ("a",), 4, noise=1.0, noise_is="fillers"),
    "string-copy": Task(string_copy, (".", "|"), ("a",), 2, check=_check_copy),
    "stack": Task(stack, (".", "pop"), ("push ",), 2),
    "keys-values": Task(keys_values, (".",), ("k", "v"), 3, check=_check_pairs),
    "modular-arithmetic": Task(
        modular_arithmetic, (), ("",), 5, vocabulary=61, noise_is="nothing", check=_check_modulus
    ),
    "parity": Task(parity, (), ("",), 1, vocabulary=2, noise_is="nothing", check=_check_parity),
    "recency": Task(recency, (".",), ("a",), 2),
}
