"""`smtkit extract-labels`: an `encoder` artifact and `tokens` to a `labels` artifact.

All T + 1 memories of every window in one pass of the encoder. Shard k holds windows
[k R, (k + 1) R) of the list, so that a killed run goes on at the first shard that is missing.
"""

import os

import numpy as np
import torch
from numpy.typing import NDArray

from smtkit.artifacts.checkpoint import MODEL, load_tensors, save_tensors
from smtkit.artifacts.manifest import Artifact, Manifest
from smtkit.artifacts.run import Run
from smtkit.artifacts.shards import read_shard
from smtkit.config import ExtractLabelsConfig
from smtkit.data.labels import LabelShape, write_labels
from smtkit.data.order import IntArray, permute, random_key
from smtkit.data.tokenizers import check_tokenizers, load_tokenizer
from smtkit.data.tokens import is_stream
from smtkit.data.windows import Windows, WindowSource, open_windows
from smtkit.errors import ArtifactError
from smtkit.interrupts import stop_signals, stopped
from smtkit.models.encoders import MemoryEncoder
from smtkit.progress import Progress, Silent
from smtkit.stages.train_encoder import load_teacher
from smtkit.training import choose_device

LABEL_SPLITS = ("train", "validation")
_NOT_NEEDED = "encoder."


def run(
    config: ExtractLabelsConfig,
    encoder: str | os.PathLike[str],
    tokens: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Writes the teacher's memories of windows of `tokens` to the artifact `out`.

    Raises ArtifactError (wrong kinds, another tokenizer, a memory that is not finite or does not
    fit `dtype`), InterruptedRunError (resumable).
    """
    device = choose_device(config.device)
    teacher_artifact = Artifact.open(encoder, "encoder")
    source = Artifact.open(tokens, "tokens")
    check_tokenizers(teacher_artifact, source)
    with Run(
        out,
        "labels",
        config,
        [teacher_artifact, source],
        seed=config.seed,
        overwrite=overwrite,
        resume=resume,
    ) as artifact:
        if artifact.finished:
            return artifact.finished
        tokenizer = load_tokenizer(source)
        teacher, window = load_teacher(teacher_artifact)
        windows = {
            split: open_windows(source, split, window if is_stream(source) else None)
            for split in LABEL_SPLITS
        }
        shape = LabelShape(
            windows["train"].window,
            teacher.encoder.slots,
            teacher.encoder.slot_width,
            tokenizer.vocabulary_size,
            config.dtype,
        )
        extraction = _Extraction(config, teacher.encoder.to(device), shape, device, artifact)
        counts = {
            split: extraction.write(split, windows[split], progress or Silent())
            for split in LABEL_SPLITS
        }
        _save_what_rnns_need(artifact, teacher_artifact, extraction.empty_memory())
        tokenizer.save(artifact)
        return artifact.commit({"windows": counts, **vars(shape)})


class _Extraction:
    """One encoder, writing the shards of one artifact."""

    def __init__(
        self,
        config: ExtractLabelsConfig,
        encoder: MemoryEncoder,
        shape: LabelShape,
        device: torch.device,
        artifact: Run,
    ) -> None:
        self._config = config
        self._encoder = encoder
        self._shape = shape
        self._device = device
        self._artifact = artifact

    def write(self, split: str, windows: WindowSource, progress: Progress) -> int:
        """Writes what is missing of the shards of `split`; returns the number of windows."""
        starts = self._chosen(split, windows)
        rows = max(1, self._config.shard_bytes // self._shape.row_bytes)
        with stop_signals() as received:
            for number, first in enumerate(range(0, len(starts), rows)):
                origin = starts[first : first + rows]
                self._shard(f"{split}-{number:05d}.arrow", windows, origin)
                done = first + len(origin)
                progress.update(f"extracting {split}", done, len(starts))
                if received:
                    raise stopped(received[0], f"saved {done} of {len(starts)} {split} windows")
        return len(starts)

    @torch.inference_mode()
    def empty_memory(self) -> torch.Tensor:
        return self._encoder.empty_memory().cpu()

    def _chosen(self, split: str, windows: WindowSource) -> IntArray:
        """Starts of the windows to extract, ascending: all that tile the split, or a sample."""
        config = self._config
        limit = config.max_windows if split == "train" else config.max_validation_windows
        starts = windows.tiles()
        if limit is None or limit >= len(starts):
            return starts
        key = random_key(config.seed, "extract", split)
        return np.sort(starts[permute(np.arange(limit), len(starts), key)])

    def _shard(self, name: str, windows: WindowSource, origin: IntArray) -> None:
        path = self._artifact.directory / name
        if path.exists():
            rows = read_shard(path).get_batch(0).num_rows
            if rows != len(origin):
                raise ArtifactError(f"{path}: {rows} rows, expected {len(origin)}")
        else:
            content = windows.read(origin)
            write_labels(path, self._shape, content, self._memories(content), origin)
        self._artifact.add(name, len(origin))
        self._artifact.keep()

    @torch.inference_mode()
    def _memories(self, windows: Windows) -> NDArray[np.floating]:
        """(B, T + 1, K, D); zeros past each window's length. Windows that are as long as each other
        are encoded together, without the padding."""
        shape = self._shape
        size = (len(windows.length), shape.window + 1, shape.slots, shape.slot_width)
        memory = np.zeros(size, dtype=np.float32)
        by_length = np.argsort(windows.length, kind="stable")
        for first in range(0, len(by_length), self._config.batch_size):
            chosen = by_length[first : first + self._config.batch_size]
            longest = int(windows.length[chosen].max())
            tokens = torch.from_numpy(windows.tokens[chosen, :longest]).to(self._device)
            memory[chosen, : longest + 1] = self._encoder(tokens).float().cpu().numpy()
        return memory


def _save_what_rnns_need(artifact: Run, encoder: Artifact, empty_memory: torch.Tensor) -> None:
    """Decoder, readout, co-trained cell and empty memory: `train-rnn` takes the labels alone."""
    tensors, header = load_tensors(encoder.file(MODEL))
    kept = {name: t for name, t in tensors.items() if not name.startswith(_NOT_NEEDED)}
    kept["empty_memory"] = empty_memory
    save_tensors(artifact.directory / MODEL, kept, header)
    artifact.add(MODEL)
