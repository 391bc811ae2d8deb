"""`smtkit extract-labels`: writes the memories of an `encoder` on `tokens` as a `labels` artifact.

Shard k holds windows [k R, (k + 1) R) of the list of windows. So a killed run goes on at the first
missing shard, and any process can write any shard: part w of n writes the shards w, w + n,
w + 2 n, ..., which the ranks of the process divide in the same way.
B: windows of a shard, T: window, K: slots, D: slot width.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smtkit.config import ExtractLabelsConfig
from smtkit.corpus.seeded import IntArray, permute, random_key
from smtkit.corpus.shards import is_stream
from smtkit.corpus.stored_tokenizer import check_tokenizers, check_vocabulary, load_tokenizer
from smtkit.corpus.windows import Windows, open_windows
from smtkit.errors import ArtifactError, InterruptedRunError, UsageError
from smtkit.labels.format import LABEL_SPLITS, LabelShape
from smtkit.labels.reader import LabelShards
from smtkit.labels.writer import write_labels
from smtkit.methods.collapse import collapse
from smtkit.methods.losses import memory_health
from smtkit.networks.encoders import GatedEncoder
from smtkit.networks.loading import check_lineage, load_rnn, load_teacher
from smtkit.networks.reachable import encode_within_reach
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.networks.teacher import LabelTeacher, Teacher
from smtkit.storage.artifact import Artifact
from smtkit.storage.files import named_errors
from smtkit.storage.location import PathOrURI
from smtkit.storage.manifest import Manifest
from smtkit.storage.run import Existing, Run
from smtkit.storage.shards import has_only
from smtkit.storage.tensors import MODEL
from smtkit.training.distributed import SharedRun, join
from smtkit.training.interrupts import stop_signals
from smtkit.training.progress import Progress, Silent

_NAMED = 8  # missing shards that an error names
_COMPARED = 512  # memories that are checked for collapse


def run(
    config: ExtractLabelsConfig,
    encoder: PathOrURI,
    tokens: PathOrURI,
    out: PathOrURI,
    *,
    rnn: PathOrURI | None = None,
    finalize: bool = False,
    progress: Progress | None = None,
    **existing: Unpack[Existing],
) -> Manifest:
    """Writes the teacher's memories of windows of `tokens` to the artifact `out`.

    With `rnn`, an RNN trained on labels of this encoder, the encoder starts from its memory again
    every `context` tokens. Under torchrun, the ranks divide the shards. `finalize` commits the
    shards that `run_part` has written.

    Raises UsageError (`rnn` without `context`, an encoder that cannot start from a memory),
    ArtifactError (wrong kinds, another tokenizer, an RNN of another encoder; a memory that is not
    finite or exceeds the range of `dtype`; missing shards, with `finalize`), and
    InterruptedRunError, which `resume` continues.
    """
    ranks = join(config.device)
    sources = _Sources(config, encoder, tokens, rnn)
    if finalize:
        existing["resume"] = True
    with SharedRun(ranks, out, "labels", config, sources.parents, **existing) as artifact:
        if artifact.finished:
            return artifact.finished
        extraction = _Extraction(config, sources, ranks.device, artifact)
        if finalize:
            extraction.check_complete()
        if ranks.size > 1:
            artifact.keep()  # rank 0 does not see what the others have written
        shown = progress or Silent()
        sources.repeat_warnings(shown)
        extraction.write(extraction.shards[ranks.rank :: ranks.size], shown)
        if ranks.is_first:
            LabelTeacher.of(sources.teacher).save(artifact.directory / MODEL)
            artifact.add(MODEL)
            load_tokenizer(sources.tokens).save(artifact)
        return artifact.commit({"windows": extraction.windows, **extraction.shape.description()})


def run_part(
    config: ExtractLabelsConfig,
    encoder: PathOrURI,
    tokens: PathOrURI,
    out: PathOrURI,
    part: int,
    parts: int,
    *,
    rnn: PathOrURI | None = None,
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
    sources = _Sources(config, encoder, tokens, rnn)
    parents = sources.parents
    with SharedRun(ranks, out, "labels", config, parents, resume=resume, part=True) as artifact:
        if artifact.finished:
            return 0
        extraction = _Extraction(config, sources, ranks.device, artifact)
        shards, shown = extraction.shards[part - 1 :: parts], progress or Silent()
        sources.repeat_warnings(shown)
        extraction.write(shards[ranks.rank :: ranks.size], shown)
        ranks.barrier()  # rank 0 holds the lock for all
        return len(shards)


class _Sources:
    """The artifacts that labels are made from. Raises UsageError or ArtifactError where they, or
    the settings, do not fit together."""

    def __init__(
        self,
        config: ExtractLabelsConfig,
        encoder: PathOrURI,
        tokens: PathOrURI,
        rnn: PathOrURI | None,
    ) -> None:
        self._encoder = Artifact.open(encoder, "encoder")
        self.tokens = Artifact.open(tokens, "tokens")
        check_tokenizers(self._encoder, self.tokens)
        if (rnn is None) != (config.context is None):
            given = "`context`" if rnn is None else "`rnn`"
            raise UsageError(f"`rnn` and `context`: found {given} alone, allowed: both or neither")
        self.parents = [self._encoder, self.tokens]
        self._context = config.context
        self._network: RecurrentNetwork | None = None
        if rnn is not None:
            self._network = self._load_rnn(rnn)

    @cached_property
    def teacher(self) -> Teacher:
        teacher = load_teacher(self._encoder)
        check_vocabulary(self._encoder, teacher.architecture.vocabulary_size)
        return teacher

    def repeat_warnings(self, progress: Progress) -> None:
        """Shows the warnings at the end of the encoder's training again."""
        for warning in self._encoder.manifest.statistics.get("warnings", []):
            progress.warn(f"{self._encoder.directory}: {warning}")

    def encoder(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """Computes the memories of rows as they are stored: (B, T) -> (B, memories, K, D)."""
        encoder = self.teacher.to(device).encoder
        if self._network is None or self._context is None:
            return encoder
        assert isinstance(encoder, GatedEncoder)
        network = self._network.to(device)
        return partial(encode_within_reach, encoder, network, context=self._context)

    def _load_rnn(self, path: PathOrURI) -> RecurrentNetwork:
        """The RNN, from whose memories the encoder is to start."""
        rnn, encoder = Artifact.open(path, "rnn"), self.teacher.architecture.encoder
        if encoder is None or encoder.memory != "gated":
            raise UsageError(
                f"`context`: {self._encoder.directory} cannot start from a memory: encoder.memory "
                f"is {encoder and encoder.memory}, allowed: gated"
            )
        check_tokenizers(rnn, self.tokens)
        hint = "name that one, or an RNN trained on labels of this encoder"
        check_lineage(rnn, self._encoder, hint)
        network = load_rnn(rnn)
        check_vocabulary(rnn, network.architecture.vocabulary_size)
        found, allowed = network.architecture.memory, self.teacher.architecture.memory
        if found != allowed:
            raise ArtifactError(
                f"{rnn.directory}: its memory is {found.slots} x {found.slot_width}, allowed: "
                f"{allowed.slots} x {allowed.slot_width}, that of the encoder"
            )
        self.parents.append(rnn)
        return network


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
        sources: _Sources,
        device: torch.device,
        artifact: Run,
    ) -> None:
        architecture, tokens = sources.teacher.architecture, sources.tokens
        window = architecture.window if is_stream(tokens) else None
        self._encode = sources.encoder(device)
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
            context=config.context,
        )
        chosen = {split: self._choose(split) for split in LABEL_SPLITS}
        self.windows = {split: len(starts) for split, starts in chosen.items()}
        self._is_checked = False  # for collapse
        self.shards = [shard for split in chosen for shard in self._cut(split, chosen[split])]

    def write(self, shards: Sequence[_Shard], progress: Progress) -> None:
        """Writes those of `shards` that are not complete."""
        with stop_signals() as received:
            for shard in shards:
                self._write(shard, progress)
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

    def _damage(self, path: Path, origin: IntArray) -> str | None:
        """The damage of a shard in a file that another process has left; None if it is whole."""
        try:
            labels = LabelShards([path])
            if labels.shape != self.shape or not np.array_equal(labels.verify(), origin):
                return f"{path}: labels of other windows"
            if not has_only(path, self.shape.schema()):
                return f"{path}: damaged between its columns"
        except ArtifactError as error:
            return str(error)
        return None

    def _write(self, shard: _Shard, progress: Progress) -> None:
        path, origin = self._artifact.directory / shard.name, shard.origin
        is_here = os.path.lexists(path)
        damage = self._damage(path, origin) if is_here else self._artifact.damage(shard.name)
        if damage:
            progress.warn(f"{damage}; {shard.name} is written again")
            with named_errors(path):
                path.unlink(missing_ok=True)
        if not self._artifact.has(shard.name):
            windows = self._readers[shard.split].read(origin)
            memory = self._memories(windows)
            write_labels(path, self.shape, windows, memory, origin)
            if not self._is_checked:
                self._check_collapse(memory, windows.length, progress)
        self._artifact.keep()
        self._artifact.add(shard.name, len(origin))

    def _check_collapse(
        self, memory: NDArray[np.floating], length: IntArray, progress: Progress
    ) -> None:
        """Warns where the memories (B, memories, K, D) of the longest windows are about equal."""
        self._is_checked, longest = True, int(length.max())
        found = torch.from_numpy(memory[length == longest])[:, : self.shape.stored(longest)]
        found = found.flatten(0, 1)
        if sign := collapse(memory_health(found[:: -(-len(found) // _COMPARED)])):
            progress.warn(f"the labels hardly differ from each other: {sign}")

    @torch.inference_mode()
    def _memories(self, windows: Windows) -> NDArray[np.floating]:
        """Memories of windows as they are stored, (B, memories, K, D); zero past the longest one.

        Encodes windows of similar length together, to compute little padding.
        """
        shape = self.shape
        size = (len(windows.length), shape.memories, shape.slots, shape.slot_width)
        memory = np.zeros(size, dtype=np.float32)
        by_length = np.argsort(windows.length, kind="stable")
        for first in range(0, len(by_length), self._config.batch_size):
            rows = by_length[first : first + self._config.batch_size]
            longest = int(windows.length[rows].max())
            tokens = torch.from_numpy(windows.tokens[rows, :longest]).to(self._device)
            encoded = self._encode(tokens).float().cpu().numpy()
            memory[rows, : shape.stored(longest)] = encoded
        return memory
