"""Windows of the token shards: what encoders read, and what labels are made of.

B: windows, T: window, F: look-ahead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from smtkit import IGNORE
from smtkit.corpus.seeded import IntArray, random_key, uniform
from smtkit.corpus.shards import TokenShards, open_split, row_length
from smtkit.errors import UsageError
from smtkit.storage.artifact import Artifact

DEFAULT_WINDOW = 128


@dataclass(frozen=True)
class Windows:
    """tokens (B, T + F) and targets (B, T + F + 1), int64; length (B,): tokens before padding.

    `targets[:, i]` follows `tokens[:, :i]`. Past `length`, tokens are 0 and targets IGNORE.
    """

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    length: NDArray[np.int64]

    @classmethod
    def of_stored(cls, *columns: NDArray[Any]) -> "Windows":
        """Tokens, targets and length, in the smaller types that shards have."""
        return cls(*(column.astype(np.int64) for column in columns))


class WindowReader(Protocol):
    """Reads windows of `window` (T) tokens, of which an epoch has `per_epoch`."""

    window: int
    per_epoch: int

    def lengths(self) -> IntArray | None:
        """Tokens of each window of an epoch, where it pays to batch windows of like length."""

    def tiles(self) -> IntArray:
        """Starts of the windows that cover all tokens once; ascending."""

    def starts(self, epochs: IntArray, rows: IntArray, seed: int) -> IntArray:
        """Start of window `row` of `epoch`, elementwise."""

    def read(self, starts: IntArray) -> Windows:
        """The windows at `starts`."""


class RowWindows:
    """Every row is a window, with nothing beyond its end."""

    def __init__(self, shards: TokenShards, window: int, lookahead: int = 0) -> None:
        self.window = window
        self.per_epoch = shards.rows
        self._shards = shards
        self._width = window + lookahead

    def lengths(self) -> IntArray | None:
        return unequal_lengths(self._shards.lengths())

    def tiles(self) -> IntArray:
        return np.arange(self.per_epoch, dtype=np.int64)

    def starts(self, epochs: IntArray, rows: IntArray, seed: int) -> IntArray:
        return rows

    def read(self, starts: IntArray) -> Windows:
        tokens = self._shards.column("tokens", starts)
        targets = self._shards.column("targets", starts)
        return Windows(
            _padded(tokens, self._width, 0),
            _padded(targets, self._width + 1, IGNORE),
            np.array([len(row) for row in tokens], dtype=np.int64),
        )

    def distance(self, starts: IntArray) -> IntArray | None:
        """(B, T + F + 1) distance in tokens from each target of `read(starts)` back to where it was
        written, or -1. None where the rows have no distances."""
        if "distance" not in self._shards.columns:
            return None
        return _padded(self._shards.column("distance", starts), self._width + 1, -1)


class TextWindows:
    """Windows of `window` tokens that tile a stream of `tokens` tokens, from a phase that changes
    with the epoch."""

    def __init__(self, stream: TokenShards, window: int, lookahead: int = 0) -> None:
        self.window = window
        self.tokens = stream.tokens
        self.per_epoch = max(1, stream.tokens // window)
        self._stream = stream
        self._width = window + lookahead

    def lengths(self) -> IntArray | None:
        return None

    def tiles(self) -> IntArray:
        """Starts of the windows that cover the stream once; the last may be shorter."""
        return np.arange(0, self._stream.tokens, self.window, dtype=np.int64)

    def starts(self, epochs: IntArray, rows: IntArray, seed: int) -> IntArray:
        room = min(self.window, self._stream.tokens)
        phase = uniform(random_key(seed, "phase"), epochs, 1)[:, 0] * room
        return rows * self.window + phase.astype(np.int64)

    def read(self, starts: IntArray) -> Windows:
        pieces = [self._stream.read(int(start), self._width + 1) for start in starts]
        targets = _padded(pieces, self._width + 1, IGNORE)
        tokens = np.where(targets == IGNORE, 0, targets)[:, :-1]
        length = np.array([min(len(piece), self._width) for piece in pieces], dtype=np.int64)
        return Windows(tokens, targets, length)


def open_windows(
    tokens: Artifact, split: str, window: int | None, lookahead: int = 0
) -> WindowReader:
    """The windows of one split: `window` tokens of a stream (None: 128), or whole rows.

    Raises ArtifactError where the split is empty, UsageError where `window` does not fit the rows.
    """
    length = row_length(tokens)
    if length is None:
        return TextWindows(open_split(tokens, split), window or DEFAULT_WINDOW, lookahead)
    if window not in (None, length):
        raise UsageError(
            f"data.window = {window}: {tokens.directory} holds rows of up to {length} tokens",
            "leave data.window out: every row is a window",
        )
    return RowWindows(open_split(tokens, split), length, lookahead)


def check_fit(windows: WindowReader, setting: str, split: str) -> None:
    """Raises UsageError, which begins with `setting`, where windows of text exceed their split."""
    if isinstance(windows, TextWindows) and windows.window > windows.tokens:
        raise UsageError(
            f"{setting}: windows of {windows.window:,} tokens, but the {split} split has "
            f"{windows.tokens:,}"
        )


def unequal_lengths(lengths: IntArray) -> IntArray | None:
    """The lengths, where padding all rows to the longest would add more than a tenth; else None."""
    return lengths if lengths.mean() < 0.9 * lengths.max() else None


def _padded(rows: Sequence[NDArray[Any]], width: int, padding: int) -> IntArray:
    """(len(rows), width)"""
    padded = np.full((len(rows), width), padding, dtype=np.int64)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded
