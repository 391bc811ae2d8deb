"""`smtkit extract-labels`: an `encoder` artifact and `tokens` to a `labels` artifact.

All T + 1 memories of every window in one pass of the encoder. Shard k holds windows
[k R, (k + 1) R) of the list, so that a killed run goes on at the first shard that is missing, and
any process can write any shard: part w of n takes shards w, w + n, w + 2 n, ..., and so do ranks of
these.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from smtkit.config import ExtractLabelsConfig
from smtkit.corpus.seeded import IntArray, permute, random_key
from smtkit.corpus.shards import is_stream
from smtkit.corpus.stored_tokenizer import check_tokenizers, load_tokenizer
from smtkit.corpus.windows import Windows, open_windows
from smtkit.errors import ArtifactError, UsageError
from smtkit.labels.format import LabelShape
from smtkit.labels.writer import write_labels
from smtkit.networks.loading import load_teacher
from smtkit.networks.teacher import LabelTeacher
from smtkit.storage.artifact import Artifact
from smtkit.storage.manifest import Manifest
from smtkit.storage.run import Run
from smtkit.storage.shards import map_shard
from smtkit.storage.tensors import MODEL
from smtkit.training.distributed import SharedRun, join
from smtkit.training.interrupts import stop_signals, stopped
from smtkit.training.progress import Progress, Silent

LABEL_SPLITS = ("train", "validation")
_NAMED = 8  # missing shards, in an error


def run(
    config: ExtractLabelsConfig,
    encoder: str | os.PathLike[str],
    tokens: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    resume: bool = False,
    finalize: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Writes the teacher's memories of windows of `tokens` to the artifact `out`.

    Under torchrun, each rank writes shards of its own. `finalize`: makes an artifact of what
    `run_part` wrote. Raises ArtifactError (wrong kinds, another tokenizer; a memory that is not
    finite or does not fit `dtype`; missing shards, with `finalize`), InterruptedRunError
    (resumable).
    """
    ranks = join(config.device)
    teacher, source = _opened(encoder, tokens)
    with SharedRun(
        ranks,
        out,
        "labels",
        config,
        [teacher, source],
        seed=config.seed,
        overwrite=overwrite,
        resume=resume or finalize,
    ) as artifact:
        if artifact.finished:
            return artifact.finished
        extraction = _Extraction(config, teacher, source, ranks.device, artifact)
        if finalize:
            extraction.check_complete()
        own = extraction.shards[ranks.rank :: ranks.size]
        if ranks.size > 1:
            artifact.keep()  # what another rank has written, the first does not know
        extraction.write(own, progress or Silent())
        if ranks.is_first:
            LabelTeacher.of(extraction.teacher).save(artifact.directory / MODEL)
            artifact.add(MODEL)
            load_tokenizer(source).save(artifact)
        return artifact.commit({"windows": extraction.windows(), **vars(extraction.shape)})


def run_part(
    config: ExtractLabelsConfig,
    encoder: str | os.PathLike[str],
    tokens: str | os.PathLike[str],
    out: str | os.PathLike[str],
    part: int,
    parts: int,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> int:
    """Writes the shards of `part` (1 to `parts`), and no manifest: so that jobs that know nothing
    of each other share the work. Those that are there already are kept. Returns their number.

    Raises as `run` does, and UsageError where there is no such part.
    """
    if not 1 <= part <= parts:
        raise UsageError(f"--part {part}/{parts}: allowed: 1/{parts} to {parts}/{parts}")
    ranks = join(config.device)
    teacher, source = _opened(encoder, tokens)
    with SharedRun(
        ranks,
        out,
        "labels",
        config,
        [teacher, source],
        seed=config.seed,
        resume=resume,
        part=True,
    ) as artifact:
        if artifact.finished:
            return 0
        extraction = _Extraction(config, teacher, source, ranks.device, artifact)
        shards = extraction.shards[part - 1 :: parts]
        extraction.write(shards[ranks.rank :: ranks.size], progress or Silent())
        ranks.barrier()  # the first rank holds the lock for all
        return len(shards)


def _opened(
    encoder: str | os.PathLike[str], tokens: str | os.PathLike[str]
) -> tuple[Artifact, Artifact]:
    teacher, source = Artifact.open(encoder, "encoder"), Artifact.open(tokens, "tokens")
    check_tokenizers(teacher, source)
    return teacher, source


@dataclass(frozen=True)
class _Shard:
    name: str
    split: str
    origin: IntArray  # starts of its windows
    done: int  # windows of the split up to its end


class _Extraction:
    """One encoder, and the shards of one artifact, as which it writes its memories."""

    def __init__(
        self,
        config: ExtractLabelsConfig,
        encoder: Artifact,
        tokens: Artifact,
        device: torch.device,
        artifact: Run,
    ) -> None:
        self.teacher = load_teacher(encoder).to(device)
        window = self.teacher.architecture.window
        self._config = config
        self._encoder = self.teacher.encoder
        self._device = device
        self._artifact = artifact
        self._windows = {
            split: open_windows(tokens, split, window if is_stream(tokens) else None)
            for split in LABEL_SPLITS
        }
        self.shape = LabelShape(
            self._windows["train"].window,
            self._encoder.slots,
            self._encoder.slot_width,
            load_tokenizer(tokens).vocabulary_size,
            config.dtype,
        )
        self.shards = [shard for split in LABEL_SPLITS for shard in self._cut(split)]

    def windows(self) -> dict[str, int]:
        """How many of each split."""
        return dict.fromkeys(LABEL_SPLITS, 0) | {shard.split: shard.done for shard in self.shards}

    def write(self, shards: Sequence[_Shard], progress: Progress) -> None:
        """Writes what is missing of `shards`."""
        totals = self.windows()
        with stop_signals() as received:
            for shard in shards:
                self._write(shard)
                done, total = shard.done, totals[shard.split]
                progress.update(f"extracting {shard.split}", done, total)
                if received:
                    raise stopped(received[0], f"saved {shard.name} and those before it")

    def check_complete(self) -> None:
        """Raises ArtifactError that names what is missing."""
        missing = [shard.name for shard in self.shards if not self._artifact.has(shard.name)]
        if missing:
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            raise ArtifactError(
                f"{self._artifact.location}: of {len(self.shards)} shards {len(missing)} are "
                f"missing: {', '.join(missing[:_NAMED])}{more}",
                "run the parts that did not end with exit code 0 again",
            )

    def _cut(self, split: str) -> list[_Shard]:
        starts = self._chosen(split)
        rows = max(1, self._config.shard_bytes // self.shape.row_bytes)
        return [
            _Shard(
                f"{split}-{number:05d}.arrow",
                split,
                starts[first : first + rows],
                min(first + rows, len(starts)),
            )
            for number, first in enumerate(range(0, len(starts), rows))
        ]

    def _chosen(self, split: str) -> IntArray:
        """Starts of the windows to extract, ascending: all that tile the split, or a sample."""
        config = self._config
        limit = config.max_windows if split == "train" else config.max_validation_windows
        starts = self._windows[split].tiles()
        if limit is None or limit >= len(starts):
            return starts
        key = random_key(config.seed, "extract", split)
        return np.sort(starts[permute(np.arange(limit), len(starts), key)])

    def _write(self, shard: _Shard) -> None:
        path, origin = self._artifact.directory / shard.name, shard.origin
        if path.exists():
            rows = map_shard(path)[0].num_rows
            if rows != len(origin):
                raise ArtifactError(f"{path}: {rows} rows, expected {len(origin)}")
        elif not self._artifact.has(shard.name):
            content = self._windows[shard.split].read(origin)
            write_labels(path, self.shape, content, self._memories(content), origin)
        self._artifact.keep()
        self._artifact.add(shard.name, len(origin))

    @torch.inference_mode()
    def _memories(self, windows: Windows) -> NDArray[np.floating]:
        """(B, T + 1, K, D); zeros past each window's length. Windows that are as long as each other
        are encoded together, without the padding."""
        shape = self.shape
        size = (len(windows.length), shape.window + 1, shape.slots, shape.slot_width)
        memory = np.zeros(size, dtype=np.float32)
        by_length = np.argsort(windows.length, kind="stable")
        for first in range(0, len(by_length), self._config.batch_size):
            chosen = by_length[first : first + self._config.batch_size]
            longest = int(windows.length[chosen].max())
            tokens = torch.from_numpy(windows.tokens[chosen, :longest]).to(self._device)
            memory[chosen, : longest + 1] = self._encoder(tokens).float().cpu().numpy()
        return memory
