"""`smtkit train-encoder`: trains a teacher on a `tokens` artifact; writes an `encoder`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Unpack

import numpy as np
import torch
from pydantic import ValidationError

from smtkit import IGNORE
from smtkit.config import TrainEncoderConfig
from smtkit.corpus.stored_tokenizer import check_tokenizers, check_vocabulary, load_tokenizer
from smtkit.corpus.windows import WindowReader, check_fit, open_windows
from smtkit.errors import UsageError
from smtkit.evaluation.free_running import FreeRunning
from smtkit.evaluation.samples import sampler
from smtkit.evaluation.sufficiency import PairSampler, SufficiencyMeasure, offsets_up_to
from smtkit.methods.bptt import SequenceSampler
from smtkit.methods.predictive_state import PredictiveState, TeacherSampler
from smtkit.networks.architecture import Architecture
from smtkit.networks.loading import check_parts, load_teacher
from smtkit.networks.teacher import Teacher
from smtkit.storage.artifact import Artifact
from smtkit.storage.location import PathOrURI
from smtkit.storage.manifest import Manifest
from smtkit.storage.run import Existing
from smtkit.storage.tensors import MODEL
from smtkit.training.distributed import SharedRun, join
from smtkit.training.listeners import Listener
from smtkit.training.loop import Trainer
from smtkit.training.progress import Progress, Silent
from smtkit.training.protocols import Validation

_PARTS = ("encoder", "decoder", "cell", "readout")
"""Sections of the config that describe the network."""
_UNIGRAM_WINDOWS = 4096
_NEAR_UNIGRAM = 0.95  # decoding nll, as a share of the unigram's
_LEAST_SHARE = 0.75  # of what full context predicts, to be predicted from memory


def run(
    config: TrainEncoderConfig,
    tokens: PathOrURI,
    out: PathOrURI,
    *,
    init: PathOrURI | None = None,
    progress: Progress | None = None,
    listeners: Sequence[Listener] = (),
    **existing: Unpack[Existing],
) -> Manifest:
    """Trains encoder, decoder, readout and co-trained transition on the artifact `tokens`.

    The weights start from the `encoder` artifact `init`, or from random numbers. Under torchrun,
    the ranks train one teacher together.

    Raises ArtifactError (not tokens, an empty split, `init` of another tokenizer), UsageError,
    NonFiniteLossError, InterruptedRunError.
    """
    ranks = join(config.device)
    _check_uniformity_group(config, ranks.size)
    data = Artifact.open(tokens, "tokens")
    tokenizer = load_tokenizer(data)
    parents = [data] if init is None else [data, Artifact.open(init, "encoder")]
    for initial in parents[1:]:
        check_tokenizers(initial, data)
    with SharedRun(ranks, out, "encoder", config, parents, **existing) as artifact:
        if artifact.finished:
            return artifact.finished
        windows = _train_windows(config, data)
        torch.manual_seed(config.seed)
        if init is None:
            sizes = tokenizer.vocabulary_size, windows.window
            teacher = Teacher(Architecture.of_teacher(config, *sizes))
        else:
            teacher, config = _further(config, parents[1], windows.window)
        unigram_nll = _unigram_nll(windows)
        method = PredictiveState(teacher, config.objective, unigram_nll)
        trainer = Trainer(
            method,
            _sampler(config, windows, teacher),
            _validations(config, data, method),
            config.training,
            artifact.directory,
            ranks=ranks,
            progress=progress,
            on_checkpoint=artifact.keep,
            listeners=listeners,
            sample=sampler(config.training, FreeRunning.of_teacher(teacher), tokenizer),
        )
        validated, weights = trainer.run(), trainer.weights()
        warnings = list(_warnings(config, method, trainer.state.step, validated, unigram_nll))
        if ranks.is_first:
            for warning in warnings:
                (progress or Silent()).warn(warning)
            tokenizer.save(artifact)
            teacher.save(artifact.directory / MODEL, weights)
            for name in (MODEL, *trainer.files()):
                artifact.add(name)
        statistics = {**trainer.statistics(), "validation": validated}
        return artifact.commit(statistics | ({"warnings": warnings} if warnings else {}), config)


def _further(
    config: TrainEncoderConfig, initial: Artifact, window: int
) -> tuple[Teacher, TrainEncoderConfig]:
    """The teacher of `initial`, to be trained on windows of `window` tokens, and the settings with
    its architecture. Raises UsageError where the settings ask for another one."""
    found = load_teacher(initial)
    check_vocabulary(initial, found.architecture.vocabulary_size)
    check_parts(config, found.architecture, _PARTS, f"`init` {initial.directory} starts from the")
    teacher = Teacher(found.architecture.model_copy(update={"window": window}))
    teacher.load_state_dict(found.state_dict())
    parts = {part: getattr(found.architecture, part).model_dump() for part in _PARTS}
    try:
        return teacher, TrainEncoderConfig(**{**config.model_dump(), **parts})
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UsageError(f"`init` {initial.directory}: {reason}") from None


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


def _train_windows(config: TrainEncoderConfig, tokens: Artifact) -> WindowReader:
    """Raises UsageError where a window is longer than the split."""
    windows = _open_windows(config, tokens, "train")
    if config.data.window is not None:
        check_fit(windows, f"data.window = {config.data.window}", "train")
    return windows


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


def _unigram_nll(windows: WindowReader) -> float:
    """Nll of targets that are predicted by their frequency alone, in nats."""
    some = windows.tiles()[:: max(1, windows.per_epoch // _UNIGRAM_WINDOWS)]
    targets = windows.read(some).targets
    counts = np.bincount(targets[targets != IGNORE])
    frequencies = counts[counts > 0] / counts.sum()
    return float(-(frequencies * np.log(frequencies)).sum())


def _validations(
    config: TrainEncoderConfig, tokens: Artifact, method: PredictiveState
) -> list[Validation[Any]]:
    """The teacher's own objective, the co-trained transition free-running, and sufficiency at
    offsets of 1, 4, 16, ... tokens."""
    teacher, size, seed = method.network, config.training.batch_size, config.seed
    windows = _open_windows(config, tokens, "validation")
    rows = open_windows(tokens, "validation", config.data.window)
    sequences = SequenceSampler(rows, batch_size=size, seed=seed, by_length=False)
    batches = config.training.validation_batches(windows.per_epoch)
    validations: list[Validation[Any]] = [
        Validation(method, _sampler(config, windows, teacher, by_length=False), batches),
        Validation(FreeRunning.of_teacher(teacher), sequences, batches),
    ]
    offsets = _validated_offsets(config, rows)
    if offsets:
        pairs = PairSampler(rows, batch_size=size, seed=seed, by_length=False, offsets=offsets)
        validations.append(Validation(SufficiencyMeasure(teacher, offsets), pairs, batches))
    return validations


def _validated_offsets(config: TrainEncoderConfig, rows: WindowReader) -> list[int]:
    return offsets_up_to(config.objective.future_length, rows.window)[1::2]


def _warnings(
    config: TrainEncoderConfig,
    method: PredictiveState,
    steps: int,
    validated: Mapping[str, float],
    unigram_nll: float,
) -> Iterator[str]:
    """Warnings to heed before labels are extracted from a teacher of `steps` updates."""
    objective = config.objective
    last = method.weights(steps - 1, (steps - 1) / steps)
    if objective.dynamics_weight and not last["dynamics"]:
        yield (
            f"training ended after {steps} updates, before dynamics began "
            f"(`objective.dynamics_start` = {objective.dynamics_start}): no cell was trained, and "
            "an RNN may be unable to follow these memories; train longer, or set it lower"
        )
    if not objective.decoding_weight:
        return
    if validated["decoding"] > _NEAR_UNIGRAM * unigram_nll:
        yield (
            f"decoding is at {validated['decoding']:.3g} nats per target, the targets' frequencies "
            f"alone are at {unigram_nll:.3g}: the memories hold hardly anything yet; train longer, "
            "or with another `training.learning_rate`"
        )
    nll, gap = (
        np.array([v for key, v in validated.items() if key.startswith(f"sufficiency_{name}_")])
        for name in ("nll", "gap")
    )
    if not len(gap):
        return
    full = float((nll - gap).mean())
    is_ahead = unigram_nll - nll.mean() < _LEAST_SHARE * (unigram_nll - full)
    if is_ahead and full < _NEAR_UNIGRAM * unigram_nll:
        handoff = "`encoder.memory` = gated with `decoder.kind` = handoff, "
        yield (
            "the readout looks back; the memory does not hold it: at the same targets, decoding is "
            f"at {nll.mean():.3g} nats, the readout with full context at {full:.3g}, and no cell "
            "can follow what is not in the memory; try "
            f"{'' if config.decoder.kind == 'handoff' else handoff}a smaller "
            "`objective.dense_weight`, more `objective.anchors`, or longer training"
        )
