"""`smtkit train-encoder`: trains a teacher on a `tokens` artifact; writes an `encoder`."""

from typing import Any, Unpack

import numpy as np
import torch

from smtkit import IGNORE
from smtkit.config import TrainEncoderConfig
from smtkit.corpus.stored_tokenizer import load_tokenizer
from smtkit.corpus.windows import WindowReader, open_windows
from smtkit.errors import UsageError
from smtkit.evaluation.free_running import FreeRunning
from smtkit.methods.bptt import SequenceSampler
from smtkit.methods.predictive_state import PredictiveState, TeacherSampler
from smtkit.networks.architecture import Architecture
from smtkit.networks.teacher import Teacher
from smtkit.storage.artifact import Artifact
from smtkit.storage.location import PathOrURI
from smtkit.storage.manifest import METRICS, Manifest
from smtkit.storage.run import Existing
from smtkit.storage.tensors import MODEL
from smtkit.training.distributed import SharedRun, join
from smtkit.training.loop import Trainer
from smtkit.training.progress import Progress
from smtkit.training.protocols import Validation

_UNIGRAM_WINDOWS = 4096


def run(
    config: TrainEncoderConfig,
    tokens: PathOrURI,
    out: PathOrURI,
    *,
    progress: Progress | None = None,
    **existing: Unpack[Existing],
) -> Manifest:
    """Trains encoder, decoder, readout and co-trained transition on the artifact `tokens`.

    Under torchrun, the ranks train one teacher together.

    Raises ArtifactError (not tokens, an empty split), UsageError, NonFiniteLossError,
    InterruptedRunError.
    """
    ranks = join(config.device)
    _check_uniformity_group(config, ranks.size)
    data = Artifact.open(tokens, "tokens")
    tokenizer = load_tokenizer(data)
    with SharedRun(ranks, out, "encoder", config, [data], **existing) as artifact:
        if artifact.finished:
            return artifact.finished
        windows = _open_windows(config, data, "train")
        torch.manual_seed(config.seed)
        teacher = Teacher(
            Architecture.of_teacher(config, tokenizer.vocabulary_size, windows.window)
        )
        method = PredictiveState(teacher, config.objective, _unigram_nll(config, windows))
        trainer = Trainer(
            method,
            _sampler(config, windows, teacher),
            _validations(config, data, method),
            config.training,
            artifact.directory,
            ranks=ranks,
            progress=progress,
            on_checkpoint=artifact.keep,
        )
        validated = trainer.run()
        weights = trainer.weights()
        if ranks.is_first:
            tokenizer.save(artifact)
            teacher.save(artifact.directory / MODEL, weights)
            for name in (MODEL, METRICS):
                artifact.add(name)
        return artifact.commit({**trainer.statistics(), "validation": validated})


def _check_uniformity_group(config: TrainEncoderConfig, ranks: int) -> None:
    micro_batch, group = config.training.micro_batch(ranks), config.objective.uniformity_group
    if micro_batch % group:
        raise UsageError(
            f"`objective.uniformity_group` ({group}): must divide `training.batch_size` / "
            f"(ranks * `training.accumulation`) ({micro_batch})"
        )


def _open_windows(config: TrainEncoderConfig, tokens: Artifact, split: str) -> WindowReader:
    """Windows, each with as many tokens after it as the decoder reads."""
    window, future = config.data.window, config.objective.future_length
    if future == "rest":
        future = open_windows(tokens, split, window).window
    return open_windows(tokens, split, window, lookahead=future)


def _sampler(
    config: TrainEncoderConfig, windows: WindowReader, teacher: Teacher, *, by_length: bool = True
) -> TeacherSampler:
    return TeacherSampler(
        windows,
        config.objective,
        batch_size=config.training.batch_size,
        seed=config.seed,
        parallel=teacher.encoder.parallel,
        handoff=teacher.decoder is None,
        by_length=by_length,
    )


def _unigram_nll(config: TrainEncoderConfig, windows: WindowReader) -> float | None:
    """Nll of targets that are predicted by their frequency alone, in nats.

    None unless `dynamics_start` is "auto", which compares the decoding loss with it.
    """
    if config.objective.dynamics_start != "auto":
        return None
    some = windows.tiles()[:: max(1, windows.per_epoch // _UNIGRAM_WINDOWS)]
    targets = windows.read(some).targets
    counts = np.bincount(targets[targets != IGNORE])
    frequencies = counts[counts > 0] / counts.sum()
    return float(-(frequencies * np.log(frequencies)).sum())


def _validations(
    config: TrainEncoderConfig, tokens: Artifact, method: PredictiveState
) -> list[Validation[Any]]:
    """The teacher's own objective, and the co-trained transition free-running."""
    teacher, size, seed = method.network, config.training.batch_size, config.seed
    windows = _open_windows(config, tokens, "validation")
    rows = open_windows(tokens, "validation", config.data.window)
    sequences = SequenceSampler(rows, batch_size=size, seed=seed, by_length=False)
    batches = config.training.validation_batches(windows.per_epoch)
    return [
        Validation(method, _sampler(config, windows, teacher, by_length=False), batches),
        Validation(FreeRunning.of_teacher(teacher), sequences, batches),
    ]
