"""`smtkit extract-labels`: writes the memories of an `encoder` on `tokens` as a `labels` artifact.

Shard k holds windows [k R, (k + 1) R) of the list of windows. So a killed run goes on at the first
missing shard, and any process can write any shard: part w of n writes the shards w, w + n,
w + 2 n, ..., which the ranks of the process divide in the same way.
B: windows of a shard, T: window, K: slots, D: slot width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from smtkit.config import ExtractLabelsConfig
from smtkit.corpus.seeded import IntArray, permute, random_key
from smtkit.corpus.shards import is_stream
from smtkit.corpus.stored_tokenizer import check_tokenizers, load_tokenizer
from smtkit.corpus.windows import Windows, open_windows
from smtkit.errors import ArtifactError, InterruptedRunError, UsageError
from smtkit.labels.format import LabelShape
from smtkit.labels.writer import write_labels
from smtkit.networks.loading import load_teacher
from smtkit.networks.teacher import LabelTeacher
from smtkit.storage.artifact import Artifact
from smtkit.storage.location import PathOrURI
from smtkit.storage.manifest import Manifest
from smtkit.storage.run import Existing, Run
from smtkit.storage.shards import map_shard
from smtkit.storage.tensors import MODEL
from smtkit.training.distributed import SharedRun, join
from smtkit.training.interrupts import stop_signals
from smtkit.training.progress import Progress, Silent

LABEL_SPLITS = ("train", "validation")
_NAMED = 8  # missing shards that an error names


def run(
    config: ExtractLabelsConfig,
    encoder: PathOrURI,
    tokens: PathOrURI,
    out: PathOrURI,
    *,
    finalize: bool = False,
    progress: Progress | None = None,
    **existing: Unpack[Existing],
) -> Manifest:
    """Writes the teacher's memories of windows of `tokens` to the artifact `out`.

    Under torchrun, the ranks divide the shards. `finalize` commits the shards that `run_part` has
    written.

    Raises ArtifactError (wrong kinds, another tokenizer; a memory that is not finite or exceeds
    the range of `dtype`; missing shards, with `finalize`), and InterruptedRunError, which `resume`
    continues.
    """
    ranks = join(config.device)
    parents = _open(encoder, tokens)
    if finalize:
        existing["resume"] = True
    with SharedRun(ranks, out, "labels", config, parents, **existing) as artifact:
        if artifact.finished:
            return artifact.finished
        extraction = _Extraction(config, *parents, ranks.device, artifact)
        if finalize:
            extraction.check_complete()
        if ranks.size > 1:
            artifact.keep()  # rank 0 does not see what the others have written
        extraction.write(extraction.shards[ranks.rank :: ranks.size], progress or Silent())
        if ranks.is_first:
            LabelTeacher.of(extraction.teacher).save(artifact.directory / MODEL)
            artifact.add(MODEL)
            load_tokenizer(parents[1]).save(artifact)
        return artifact.commit({"windows": extraction.windows, **vars(extraction.shape)})


def run_part(
    config: ExtractLabelsConfig,
    encoder: PathOrURI,
    tokens: PathOrURI,
    out: PathOrURI,
    part: int,
    parts: int,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> int:
    """Writes the shards of `part` (1 to `parts`), without a manifest; returns their number.

    Independent jobs can write the parts, in any order and at the same time. Shards that are
    complete are kept. Raises as `run` does, and UsageError for a part that does not exist.
    """
    if not 1 <= part <= parts:
        raise UsageError(f"`part` {part}/{parts}: allowed: 1/{parts} to {parts}/{parts}")
    ranks = join(config.device)
    parents = _open(encoder, tokens)
    with SharedRun(ranks, out, "labels", config, parents, resume=resume, part=True) as artifact:
        if artifact.finished:
            return 0
        extraction = _Extraction(config, *parents, ranks.device, artifact)
        shards = extraction.shards[part - 1 :: parts]
        extraction.write(shards[ranks.rank :: ranks.size], progress or Silent())
        ranks.barrier()  # rank 0 holds the lock for all
        return len(shards)


def _open(encoder: PathOrURI, tokens: PathOrURI) -> tuple[Artifact, Artifact]:
    teacher, data = Artifact.open(encoder, "encoder"), Artifact.open(tokens, "tokens")
    check_tokenizers(teacher, data)
    return teacher, data


@dataclass(frozen=True)
class _Shard:
    """origin: first tokens of its windows. done: windows of the split up to the shard's end."""

    name: str
    split: str
    origin: IntArray
    done: int


class _Extraction:
    """The shards of one artifact: which windows they hold, and how they are written.

    `windows` is the number of windows per split.
    """

    def __init__(
        self,
        config: ExtractLabelsConfig,
        encoder: Artifact,
        tokens: Artifact,
        device: torch.device,
        artifact: Run,
    ) -> None:
        self.teacher = load_teacher(encoder).to(device)
        architecture = self.teacher.architecture
        window = architecture.window if is_stream(tokens) else None
        self._config = config
        self._device = device
        self._artifact = artifact
        self._readers = {split: open_windows(tokens, split, window) for split in LABEL_SPLITS}
        self.shape = LabelShape(
            window=self._readers["train"].window,
            slots=architecture.memory.slots,
            slot_width=architecture.memory.slot_width,
            vocabulary_size=architecture.vocabulary_size,
            dtype=config.dtype,
        )
        chosen = {split: self._choose(split) for split in LABEL_SPLITS}
        self.windows = {split: len(starts) for split, starts in chosen.items()}
        self.shards = [shard for split in chosen for shard in self._cut(split, chosen[split])]

    def write(self, shards: Sequence[_Shard], progress: Progress) -> None:
        """Writes those of `shards` that are not complete."""
        with stop_signals() as received:
            for shard in shards:
                self._write(shard)
                total = self.windows[shard.split]
                progress.update(f"extracting {shard.split}", shard.done, total)
                if received:
                    raise InterruptedRunError(
                        received[0], f"saved {shard.name} and those before it"
                    )

    def check_complete(self) -> None:
        """Raises ArtifactError if shards are missing, and names them."""
        missing = [shard.name for shard in self.shards if not self._artifact.has(shard.name)]
        if missing:
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            raise ArtifactError(
                f"{self._artifact.location}: of {len(self.shards)} shards {len(missing)} are "
                f"missing: {', '.join(missing[:_NAMED])}{more}",
                "run the parts that did not end with exit code 0 again",
            )

    def _choose(self, split: str) -> IntArray:
        """Starts of the windows to extract, ascending: all that tile the split, or a sample."""
        config = self._config
        limit = config.max_windows if split == "train" else config.max_validation_windows
        starts = self._readers[split].tiles()
        if limit is None or limit >= len(starts):
            return starts
        key = random_key(config.seed, "extract", split)
        return np.sort(starts[permute(np.arange(limit), len(starts), key)])

    def _cut(self, split: str, starts: IntArray) -> list[_Shard]:
        rows = max(1, self._config.shard_bytes // self.shape.row_bytes)
        pieces = [starts[first : first + rows] for first in range(0, len(starts), rows)]
        return [
            _Shard(f"{split}-{i:05d}.arrow", split, piece, min((i + 1) * rows, len(starts)))
            for i, piece in enumerate(pieces)
        ]

    def _write(self, shard: _Shard) -> None:
        path, origin = self._artifact.directory / shard.name, shard.origin
        if path.exists():
            rows = map_shard(path, lambda _: None)[0].num_rows
            if rows != len(origin):
                raise ArtifactError(f"{path}: {rows} rows, expected {len(origin)}")
        elif not self._artifact.has(shard.name):
            windows = self._readers[shard.split].read(origin)
            write_labels(path, self.shape, windows, self._memories(windows), origin)
        self._artifact.keep()
        self._artifact.add(shard.name, len(origin))

    @torch.inference_mode()
    def _memories(self, windows: Windows) -> NDArray[np.floating]:
        """Memories (B, T + 1, K, D), zero past the length of each window.

        Encodes windows of similar length together, to compute little padding.
        """
        shape = self.shape
        size = (len(windows.length), shape.window + 1, shape.slots, shape.slot_width)
        memory = np.zeros(size, dtype=np.float32)
        by_length = np.argsort(windows.length, kind="stable")
        for first in range(0, len(by_length), self._config.batch_size):
            rows = by_length[first : first + self._config.batch_size]
            longest = int(windows.length[rows].max())
            tokens = torch.from_numpy(windows.tokens[rows, :longest]).to(self._device)
            memory[rows, : longest + 1] = self.teacher.encoder(tokens).float().cpu().numpy()
        return memory
