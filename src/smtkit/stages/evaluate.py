"""`smtkit eval`: how well an RNN predicts a split of text, images or a task's rows, beside its
teacher and n-gram baselines.

B: windows, T: the window the RNN was trained on, L: tokens read here, `lengths` T or a whole row.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from smtkit import IGNORE
from smtkit.config import EvaluateConfig, TrainEncoderConfig
from smtkit.corpus.seeded import IntArray
from smtkit.corpus.stream import BATCH_TOKENS, is_stream, open_stream
from smtkit.corpus.tokenizers import TextTokenizer, Tokenizer, check_tokenizers, load_tokenizer
from smtkit.corpus.windows import RowWindows, WindowReader, open_windows
from smtkit.errors import ArtifactError
from smtkit.evaluation import gradients, inference_cost
from smtkit.evaluation.gradients import TrainedTeacher
from smtkit.evaluation.metrics import (
    Scores,
    summarize,
    summarize_by_distance,
    summarize_by_length,
    summarize_overall,
)
from smtkit.evaluation.ngrams import NgramModel
from smtkit.evaluation.predictors import BASELINES, Predictors
from smtkit.networks.loading import load_rnn, load_teacher
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.storage.files import write_atomically
from smtkit.storage.manifest import Artifact, Manifest
from smtkit.storage.run import Run
from smtkit.training.distributed import Ranks, SharedRun, join
from smtkit.training.progress import Progress, Silent

EVALUATION = "evaluation.json"
_HELD_BYTES = 2**27  # of the teacher's memories, at once


def run(
    config: EvaluateConfig,
    rnn: str | os.PathLike[str],
    tokens: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    encoder: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Evaluates the artifact `rnn` on a split of `tokens`; with `encoder`, beside its teacher.

    The result is `evaluation.json` in the artifact `out`, and the manifest's statistics. Under
    torchrun, the ranks share the windows: the result is the same. Raises ArtifactError where kinds
    or tokenizers differ, or the RNN learned from another encoder.
    """
    trained = Artifact.open(rnn, "rnn")
    source = Artifact.open(tokens, "tokens")
    teacher_artifact = Artifact.open(encoder, "encoder") if encoder is not None else None
    check_tokenizers(trained, source)
    _check_lineage(trained, teacher_artifact)
    parents = [artifact for artifact in (trained, source, teacher_artifact) if artifact]
    ranks = join(config.device)
    device = ranks.device
    with SharedRun(
        ranks, out, "evaluation", config, parents, overwrite=overwrite, resume=resume
    ) as artifact:
        if artifact.finished:
            return artifact.finished
        network, window = load_rnn(trained)
        subject = _Subject(
            network.to(device),
            window,
            _load_teacher(teacher_artifact, device) if teacher_artifact else None,
            device,
        )
        told = progress or Silent()
        scored = _scored(config, subject, source, told, ranks)
        result: dict[str, Any] = {}
        if ranks.is_first:
            result = _predictions(config, subject, source, scored)
            result["gradients"] = result["cost"] = None
            if config.gradients:
                result["gradients"] = _gradients(config, subject, source, artifact, told)
            if config.cost:
                result["cost"] = _cost(subject, told)
            write_atomically(artifact.directory / EVALUATION, json.dumps(result, indent=1) + "\n")
            artifact.add(EVALUATION)
        return artifact.commit(result)


@dataclass(frozen=True)
class _Subject:
    """What is evaluated, and where."""

    network: RecurrentNetwork
    window: int
    teacher: TrainedTeacher | None
    device: torch.device


def _load_teacher(artifact: Artifact, device: torch.device) -> TrainedTeacher:
    network, window = load_teacher(artifact)
    config = TrainEncoderConfig(**artifact.manifest.config)
    return TrainedTeacher(network.to(device), config, window)


@dataclass(frozen=True)
class _Scored:
    """The windows that were read, and what every predictor says of them."""

    windows: WindowReader
    starts: IntArray
    scores: dict[str, Scores]
    predictors: Predictors


def _scored(
    config: EvaluateConfig,
    subject: _Subject,
    source: Artifact,
    progress: Progress,
    ranks: Ranks,
) -> _Scored:
    """Batches of windows are dealt to the ranks; on each, the scores of all come together."""
    length = config.lengths * subject.window if is_stream(source) else None
    windows = open_windows(source, config.split, length)
    starts = _spread(windows, config.windows)
    predictors = Predictors(
        subject.network,
        subject.teacher.network if subject.teacher else None,
        _count_ngrams(source, load_tokenizer(source), config),
        subject.window,
        len(starts),
        windows.window,
        subject.device,
    )
    shape = (len(starts), windows.window + 1, 2)
    scores: dict[str, Scores] = {name: np.zeros(shape) for name in predictors.names}
    at_a_time = min(config.batch_size, _windows_at_once(subject, windows.window))
    for first in range(0, len(starts), at_a_time)[ranks.rank :: ranks.size]:
        here = slice(first, first + at_a_time)
        for name, values in predictors.score(windows.read(starts[here]), first).items():
            scores[name][here] = values
        progress.update("evaluating", min(first + at_a_time, len(starts)), len(starts))
    for name, values in scores.items():  # of windows that are another rank's, zeros
        (summed,) = ranks.sum_together([torch.from_numpy(values)])
        scores[name] = summed.numpy()
    predictors.share(ranks)
    return _Scored(windows, starts, scores, predictors)


def _predictions(
    config: EvaluateConfig, subject: _Subject, source: Artifact, scored: _Scored
) -> dict[str, Any]:
    """What every predictor scores, by position, distance and length; and how memories look."""
    tokenizer = load_tokenizer(source)
    windows, starts, scores = scored.windows, scored.starts, scored.scores
    read = windows.read(starts)
    sizes = _bytes_of(read.targets, tokenizer)
    return {
        "split": config.split,
        "window": subject.window,
        "windows": len(starts),
        "tokens": tokenizer.description()["kind"],
        "overall": summarize_overall(scores, sizes),
        "results": summarize(scores, subject.window, sizes),
        "drift": scored.predictors.drift.by_position() if subject.teacher else None,
        **_of_rows(scores, windows, starts, read.length),
        "memory": scored.predictors.health(),
    }


def _windows_at_once(subject: _Subject, length: int) -> int:
    """Of the memories of that many windows of `length` tokens, all are held; the encoder makes them
    from K streams of its own width at most."""
    slots, width = subject.network.empty_memory.shape
    if subject.teacher is not None:
        width = max(width, subject.teacher.config.encoder.width)
    return max(1, _HELD_BYTES // (4 * slots * width * (length + 1)))


def _of_rows(
    scores: dict[str, Scores], windows: WindowReader, starts: IntArray, lengths: IntArray
) -> dict[str, Any]:
    """By distance where rows say it, and by length where theirs differ; of text, neither."""
    if not isinstance(windows, RowWindows):
        return {"by_distance": None, "by_length": None}
    distance = windows.distance(starts)
    mixed = len(np.unique(lengths)) > 1
    return {
        "by_distance": None if distance is None else summarize_by_distance(scores, distance),
        "by_length": summarize_by_length(scores, lengths) if mixed else None,
    }


def _gradients(
    config: EvaluateConfig, subject: _Subject, source: Artifact, artifact: Run, progress: Progress
) -> list[dict[str, Any]]:
    """Records of `gradients.measure`, and their figure in the artifact."""
    windows = open_windows(source, config.split, subject.window if is_stream(source) else None)
    at_once = _windows_at_once(subject, windows.window)
    starts = _spread(windows, min(gradients.SAMPLES, at_once))
    records = gradients.measure(
        subject.network, subject.teacher, windows.read(starts), subject.window, progress
    )
    try:
        gradients.draw(records, artifact.directory / gradients.FIGURE)
    except ImportError:
        progress.warn(
            f"no {gradients.FIGURE}: matplotlib is not installed (pip install 'smtkit[figures]')"
        )
    else:
        artifact.add(gradients.FIGURE)
    return records


def _cost(subject: _Subject, progress: Progress) -> list[dict[str, Any]]:
    records = inference_cost.of_rnn(subject.network, subject.device, progress)
    if subject.teacher is not None:
        records += inference_cost.of_teacher(
            subject.teacher.network,
            subject.teacher.config.encoder,
            subject.teacher.window,
            subject.network.architecture["vocabulary_size"],
            subject.device,
            progress,
        )
    return records


def _bytes_of(targets: IntArray, tokenizer: Tokenizer) -> IntArray | None:
    """Bytes of text of every target; None where that is not known."""
    if not isinstance(tokenizer, TextTokenizer) or tokenizer.unknown is not None:
        return None
    return tokenizer.byte_lengths()[np.maximum(targets, 0)]


def _count_ngrams(tokens: Artifact, tokenizer: Tokenizer, config: EvaluateConfig) -> NgramModel:
    batches = _stream_batches if is_stream(tokens) else _row_batches
    return NgramModel.count(
        tokenizer.vocabulary_size, len(BASELINES), batches(tokens, config.baseline_tokens)
    )


def _stream_batches(tokens: Artifact, limit: int) -> Iterator[tuple[IntArray, IntArray]]:
    """The stream in long rows; each begins with what an n-gram looks back at, asked before."""
    stream = open_stream(tokens, "train")
    for start in range(0, min(len(stream), limit), BATCH_TOKENS):
        before = min(start, len(BASELINES) - 1)
        count = min(BATCH_TOKENS, limit - start) + before
        targets = stream.read(start - before, count).astype(np.int64)[None]
        inputs = targets[:, :-1].copy()
        targets[:, :before] = IGNORE
        yield inputs, targets


def _row_batches(tokens: Artifact, limit: int) -> Iterator[tuple[IntArray, IntArray]]:
    windows = open_windows(tokens, "train", None)
    starts = windows.tiles()[: max(1, limit // windows.window)]
    at_a_time = max(1, BATCH_TOKENS // windows.window)
    for first in range(0, len(starts), at_a_time):
        rows = windows.read(starts[first : first + at_a_time])
        yield rows.tokens, rows.targets


def _spread(windows: WindowReader, wanted: int) -> IntArray:
    """Starts of at most `wanted` windows that do not overlap, evenly over the split."""
    tiles = windows.tiles()
    whole = tiles[: windows.per_epoch]
    chosen = np.linspace(0, len(whole) - 1, min(wanted, len(whole))).round().astype(np.int64)
    return whole[chosen]


def _check_lineage(rnn: Artifact, encoder: Artifact | None) -> None:
    if encoder is None:
        return
    learned_from = rnn.manifest.ancestor("encoder")
    if learned_from is None or learned_from.digest != encoder.manifest.digest:
        found = f"{learned_from.path} ({learned_from.digest[:8]})" if learned_from else "none"
        raise ArtifactError(
            f"{encoder.directory} ({encoder.manifest.digest[:8]}): not the encoder that "
            f"{rnn.directory} learned from: {found}",
            "name that one, or leave --encoder out",
        )
