"""Windows anywhere in a token stream: what the teacher reads, and what labels are made of.

B: windows, T: window, F: look-ahead.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smtkit.artifacts.manifest import Artifact
from smtkit.convention import IGNORE
from smtkit.data.order import IntArray, SampleOrder, mixed, random_key, stratified, uniform
from smtkit.data.rows import RowStore
from smtkit.data.tokens import TokenStream, is_stream, open_stream
from smtkit.errors import ArtifactError, UsageError

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


class WindowSource(Protocol):
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


@dataclass(frozen=True)
class TeacherBatch:
    """Windows and the positions at which they are used.

    tokens (B, T + F), targets (B, T + F + 1), length (B,) at most T; anchors (B, A) and
    uniformity_positions (B, U) in 0..length; dynamics_positions (B, P) in 0..length - 1;
    dense_positions (B, Q) in 0..length, or, of short rows, past it: there nothing is asked.
    """

    tokens: Tensor
    targets: Tensor
    length: Tensor
    anchors: Tensor
    dynamics_positions: Tensor
    uniformity_positions: Tensor
    dense_positions: Tensor

    @property
    def tokens_read(self) -> int:
        return int(self.length.sum())


class TeacherSource:
    """Batches for the teacher: a pure function of the seed and the step.

    Where as many positions are asked for dynamics, or for uniformity, as there are anchors, they
    are the anchors (or, where no transition leads on, the position before): an encoder that makes
    one memory a pass then makes one and its successor for each.

    `aligned`: so many windows, one after the other, draw the same uniformity positions, if they are
    equally long. `dense_positions`: how many are drawn; None: all. `rest`: windows look ahead as
    far as they are long. T is cut to the longest window of the batch. `by_length`: a batch takes
    windows of one length; if not, of all that there are, in proportion.
    """

    def __init__(
        self,
        windows: WindowSource,
        *,
        batch_size: int,
        seed: int,
        anchors: int,
        dynamics_positions: int,
        uniformity_positions: int,
        aligned: int = 1,
        dense_positions: int | None = None,
        rest: bool = False,
        by_length: bool = True,
    ) -> None:
        self._windows = windows
        lengths = windows.lengths() if by_length else None
        self._order = SampleOrder(windows.per_epoch, batch_size, seed, lengths)
        self._rest = rest
        self._seed = seed
        self._anchors = anchors
        self._dynamics_positions = dynamics_positions
        self._uniformity_positions = uniformity_positions
        self._aligned = aligned
        self._dense_positions = dense_positions

    def batch(self, step: int, part: int = 0, parts: int = 1) -> TeacherBatch:
        entries = self._order.entries(step, part, parts)
        epochs, rows = self._order.rows(entries)
        windows = self._windows.read(self._windows.starts(epochs, rows, self._seed))
        length = np.minimum(windows.length, self._windows.window)
        positions = length + 1
        longest = int(length.max())
        anchors = self._draw("anchors", entries, self._anchors, positions)
        if self._dynamics_positions == self._anchors:
            dynamics = np.minimum(anchors, length[:, None] - 1)
        else:
            dynamics = self._draw("dynamics", entries, self._dynamics_positions, length)
        if self._uniformity_positions == self._anchors and self._aligned == 1:
            uniformity = anchors
        else:
            groups = entries // self._aligned
            uniformity = self._draw("uniformity", groups, self._uniformity_positions, positions)
        lookahead = longest if self._rest else windows.tokens.shape[1] - self._windows.window
        width = longest + lookahead
        return TeacherBatch(
            *_tensors(
                windows.tokens[:, :width],
                windows.targets[:, : width + 1],
                length,
                anchors,
                dynamics,
                uniformity,
                self._dense(entries, positions, longest),
            )
        )

    def _dense(self, entries: IntArray, sizes: IntArray, longest: int) -> IntArray:
        if self._dense_positions is None:
            return np.tile(np.arange(longest + 1), (len(entries), 1))
        return self._draw("dense", entries, self._dense_positions, sizes)

    def _draw(self, purpose: str, entries: IntArray, draws: int, sizes: IntArray) -> IntArray:
        return stratified(random_key(self._seed, purpose), entries, draws, sizes)


def open_windows(
    tokens: Artifact, split: str, window: int | None, lookahead: int = 0
) -> WindowSource:
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


def _tensors(*arrays: NDArray[Any]) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(array) for array in arrays)
