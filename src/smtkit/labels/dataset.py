"""Labels as a torch dataset: rows are read from disk, and checked, when they are needed.

T: window, S: segments per row, M = T + S: memories per row (T + 1 without segments), K: slots,
D: slot width.
"""

from collections.abc import Callable, Sequence
from typing import Literal, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from smtkit.corpus.stored_tokenizer import load_tokenizer
from smtkit.errors import UsageError
from smtkit.labels.format import LABEL_SPLITS
from smtkit.labels.reader import LabelShards
from smtkit.storage.artifact import Artifact
from smtkit.storage.location import PathOrURI


class LabelRow(TypedDict):
    """A row of labels: tokens (T,), targets (T + 1,), length (), all int64; memory (M, K, D),
    float32.

    Past `length`, tokens are 0 and targets -1, and the memories mean nothing.
    """

    tokens: Tensor
    targets: Tensor
    length: Tensor
    memory: Tensor


class LabelDataset(Dataset[LabelRow]):
    """The rows of one split of a `labels` artifact, for `torch.utils.data.DataLoader`.

    Nothing is held in memory but indices; a row is read when it is needed, and its checksums are
    compared. Works with `shuffle`, samplers and worker processes.

    `before` (T,): index in `memory` of the memory before each token. A transition leads from
    `memory[before[i]]` and `tokens[i]` to `memory[before[i] + 1]`. It is 0..T-1, unless the labels
    were extracted in segments.
    """

    def __init__(self, path: PathOrURI, split: Literal["train", "validation"] = "train") -> None:
        if split not in LABEL_SPLITS:
            raise UsageError(f"`split` {split}: allowed: {', '.join(LABEL_SPLITS)}")
        self._source = (path, split)
        artifact = Artifact.open(path, "labels")
        self._shards = LabelShards(artifact.files(f"{split}-"))
        shape = self._shards.shape
        self.tokenizer = load_tokenizer(artifact)
        self.vocabulary_size = shape.vocabulary_size
        self.window, self.slots, self.slot_width = shape.window, shape.slots, shape.slot_width
        self.before = torch.from_numpy(shape.before(np.arange(shape.window)))

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, row: int) -> LabelRow:
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row}, allowed: {-len(self)} to {len(self) - 1}")
        return self.__getitems__([row % len(self)])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[LabelRow]:
        """Several rows, which are read together; a DataLoader calls it for each batch."""
        numbers, memories = np.asarray(rows, dtype=np.int64), self._shards.shape.memories
        windows = self._shards.read(numbers)
        index = torch.arange(len(numbers) * memories).view(len(numbers), memories)
        memory = self._shards.memories(numbers, range(memories)).decode(index)
        tokens, targets, length = map(
            torch.from_numpy, (windows.tokens, windows.targets, windows.length)
        )
        return [
            {"tokens": tokens[i], "targets": targets[i], "length": length[i], "memory": memory[i]}
            for i in range(len(numbers))
        ]

    def __reduce__(self) -> tuple[Callable[..., "LabelDataset"], tuple[PathOrURI, str]]:
        """A worker process that is not forked opens the artifact itself."""
        return load_labels, self._source


def load_labels(path: PathOrURI, split: Literal["train", "validation"] = "train") -> LabelDataset:
    """Opens one split of a `labels` artifact, a path or URI, as a torch dataset that reads rows
    from disk when they are needed. Raises UsageError or ArtifactError."""
    return LabelDataset(path, split)
