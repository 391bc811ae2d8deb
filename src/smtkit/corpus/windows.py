"""Windows anywhere in a token stream: what the teacher reads, and what labels are made of.

B: windows, T: window, F: look-ahead.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from smtkit import IGNORE
from smtkit.corpus.rows import RowStore
from smtkit.corpus.seeded import IntArray, random_key, uniform
from smtkit.corpus.stream import TokenStream, is_stream, open_stream
from smtkit.errors import ArtifactError, UsageError
from smtkit.storage.artifact import Artifact


def mixed(lengths: IntArray) -> IntArray | None:
    """The lengths of rows, where padding them to the longest would cost more than a tenth."""
    return lengths if lengths.mean() < 0.9 * lengths.max() else None


DEFAULT_WINDOW = 128


@dataclass(frozen=True)
class Windows:
    """tokens (B, T + F) and targets (B, T + F + 1), int64; length (B,): tokens that are there.

    `targets[:, i]` is what follows `tokens[:, :i]`. Past `length` there is padding: tokens 0,
    targets IGNORE.
    """

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    length: NDArray[np.int64]


class WindowReader(Protocol):
    """Where windows of `window` (T) tokens come from: a stream of text, or rows."""

    window: int
    per_epoch: int

    def lengths(self) -> IntArray | None:
        """Tokens of each window of an epoch; None where hardly any is shorter than the others."""

    def tiles(self) -> IntArray:
        """Where the windows start that cover everything once; ascending."""

    def starts(self, epochs: IntArray, rows: IntArray, seed: int) -> IntArray:
        """Where window `row` of `epoch` starts."""

    def read(self, starts: IntArray) -> Windows:
        """The windows at `starts`."""


class RowWindows:
    """Every row is a window, with nothing beyond its end."""

    def __init__(self, store: RowStore, window: int, lookahead: int = 0) -> None:
        self.window = window
        self.per_epoch = len(store)
        self._store = store
        self._lookahead = lookahead

    def lengths(self) -> IntArray | None:
        return mixed(self._store.lengths())

    def tiles(self) -> IntArray:
        return np.arange(len(self._store), dtype=np.int64)

    def starts(self, epochs: IntArray, rows: IntArray, seed: int) -> IntArray:
        return rows

    def read(self, starts: IntArray) -> Windows:
        width = self.window + self._lookahead
        tokens = np.zeros((len(starts), width), dtype=np.int64)
        targets = np.full((len(starts), width + 1), IGNORE, dtype=np.int64)
        length = np.zeros(len(starts), dtype=np.int64)
        columns = self._store.column("tokens", starts), self._store.column("targets", starts)
        for row, (inputs, answers) in enumerate(zip(*columns, strict=True)):
            length[row] = len(inputs)
            tokens[row, : len(inputs)] = inputs
            targets[row, : len(answers)] = answers
        return Windows(tokens, targets, length)

    def distance(self, starts: IntArray) -> IntArray | None:
        """Tokens back to where each target of `read(starts)` was written: (B, T + F + 1), -1 where
        that is nowhere. None where rows do not say."""
        if "distance" not in self._store.columns:
            return None
        width = self.window + self._lookahead + 1
        distance = np.full((len(starts), width), -1, dtype=np.int64)
        for row, values in enumerate(self._store.column("distance", starts)):
            distance[row, : len(values)] = values
        return distance


class TextWindows:
    """Windows of `window` tokens that tile a stream, from a phase that changes with the epoch."""

    def __init__(self, stream: TokenStream, window: int, lookahead: int = 0) -> None:
        self.window = window
        self._stream = stream
        self._lookahead = lookahead
        self.per_epoch = max(1, len(stream) // window)

    def lengths(self) -> IntArray | None:
        return None

    def tiles(self) -> IntArray:
        """Starts of the windows that cover the stream once; the last may be shorter."""
        return np.arange(0, len(self._stream), self.window, dtype=np.int64)

    def starts(self, epochs: IntArray, rows: IntArray, seed: int) -> IntArray:
        """Start of window `row` of the tiling of `epoch`."""
        room = min(self.window, len(self._stream))
        phase = uniform(random_key(seed, "phase"), epochs, 1)[:, 0] * room
        return rows * self.window + phase.astype(np.int64)

    def read(self, starts: IntArray) -> Windows:
        """The windows at `starts`."""
        width = self.window + self._lookahead
        targets = np.full((len(starts), width + 1), IGNORE, dtype=np.int64)
        available = np.zeros(len(starts), dtype=np.int64)
        for row, start in enumerate(starts):
            tokens = self._stream.read(int(start), width + 1)
            targets[row, : len(tokens)] = tokens
            available[row] = len(tokens)
        tokens = np.where(targets == IGNORE, 0, targets)[:, :width]
        return Windows(tokens, targets, np.minimum(available, width))


def open_windows(
    tokens: Artifact, split: str, window: int | None, lookahead: int = 0
) -> WindowReader:
    """The windows of one split: of a stream, `window` tokens each (None: 128); of rows, one a row.

    Raises ArtifactError where the split is empty, UsageError where `window` does not fit the rows.
    """
    if is_stream(tokens):
        return TextWindows(open_stream(tokens, split), window or DEFAULT_WINDOW, lookahead)
    length = int(tokens.manifest.statistics["length"])
    if window not in (None, length):
        raise UsageError(
            f"data.window = {window}: {tokens.directory} holds rows of up to {length} tokens",
            "leave data.window out: every row is a window",
        )
    store = RowStore(tokens.files(f"{split}-"))
    if len(store) == 0:
        raise ArtifactError(f"{tokens.directory}: the {split} split is empty")
    return RowWindows(store, length, lookahead)
