"""`smtkit train-encoder`: a `tokens` artifact to an `encoder` artifact, the teacher."""

import os
from typing import Any

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
from smtkit.storage.manifest import METRICS, Manifest
from smtkit.storage.tensors import MODEL
from smtkit.training.distributed import Ranks, SharedRun, join
from smtkit.training.loop import Trainer
from smtkit.training.progress import Progress
from smtkit.training.protocols import Validation

_UNIGRAM_WINDOWS = 4096


def run(
    config: TrainEncoderConfig,
    tokens: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Trains encoder, decoder, readout and co-trained cell on the artifact `tokens`.

    Under torchrun, the ranks train it together. Raises ArtifactError (not tokens, an empty split),
    UsageError, NonFiniteLossError, InterruptedRunError.
    """
    ranks = join(config.device)
    _check_groups(config, ranks)
    source = Artifact.open(tokens, "tokens")
    tokenizer = load_tokenizer(source)
    with SharedRun(
        ranks,
        out,
        "encoder",
        config,
        [source],
        seed=config.seed,
        overwrite=overwrite,
        resume=resume,
    ) as artifact:
        if artifact.finished:
            return artifact.finished
        windows = _windows(config, source, "train")
        torch.manual_seed(config.seed)
        teacher = Teacher(
            Architecture.of_teacher(config, tokenizer.vocabulary_size, windows.window)
        )
        method = PredictiveState(teacher, config.objective, _unigram(config, windows))
        trainer = Trainer(
            method,
            _source(config, windows, teacher),
            _validations(config, source, method),
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


def _windows(config: TrainEncoderConfig, tokens: Artifact, split: str) -> WindowReader:
    """Windows with the look-ahead that the decoder wants."""
    future = config.objective.future_length
    if future == "rest":
        window = open_windows(tokens, split, config.data.window).window
        return open_windows(tokens, split, config.data.window, lookahead=window)
    return open_windows(tokens, split, config.data.window, lookahead=future)


def _source(
    config: TrainEncoderConfig,
    windows: WindowReader,
    teacher: Teacher,
    *,
    by_length: bool = True,
) -> TeacherSampler:
    return TeacherSampler(
        windows,
        config.objective,
        batch_size=config.training.batch_size,
        seed=config.seed,
        parallel=teacher.encoder.parallel,
        by_length=by_length,
    )


def _check_groups(config: TrainEncoderConfig, ranks: Ranks) -> None:
    micro_batch, group = config.training.micro_batch(ranks.size), config.objective.uniformity_group
    if micro_batch % group:
        raise UsageError(
            f"objective.uniformity_group ({group}): must divide training.batch_size / "
            f"(ranks * training.accumulation) ({micro_batch})"
        )


def _unigram(config: TrainEncoderConfig, windows: WindowReader) -> float | None:
    """Nll of the targets by their frequency alone, where the start of dynamics depends on it."""
    if config.objective.dynamics_start != "auto":
        return None
    some = windows.tiles()[:: max(1, windows.per_epoch // _UNIGRAM_WINDOWS)]
    targets = windows.read(some).targets
    counts = np.bincount(targets[targets != IGNORE])
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def _validations(
    config: TrainEncoderConfig, tokens: Artifact, method: PredictiveState
) -> list[Validation[Any]]:
    """The objective; and the co-trained cell, rolled out on its own."""
    windows = _windows(config, tokens, "validation")
    alone = open_windows(tokens, "validation", config.data.window)
    batches = config.training.validation_batches(windows.per_epoch)
    sequences = SequenceSampler(
        alone, batch_size=config.training.batch_size, seed=config.seed, by_length=False
    )
    return [
        Validation(method, _source(config, windows, method.network, by_length=False), batches),
        Validation(FreeRunning.of_teacher(method.network), sequences, batches),
    ]
