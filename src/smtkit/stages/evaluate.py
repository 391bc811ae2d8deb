"""`smtkit eval`: how well an RNN predicts a split, compared with its teacher and n-gram models.

B: windows, L: tokens per window, either `lengths` T or a whole row, with T the window the RNN was
trained on.
"""

import json
from typing import Any, Unpack

import numpy as np

from smtkit.config import EvaluateConfig
from smtkit.corpus.seeded import IntArray
from smtkit.corpus.shards import is_stream
from smtkit.corpus.stored_tokenizer import check_tokenizers, load_tokenizer
from smtkit.corpus.tokenizers import TextTokenizer, Tokenizer
from smtkit.corpus.windows import RowWindows, WindowReader, check_fit, open_windows
from smtkit.evaluation import gradients, inference_cost, metrics, sufficiency
from smtkit.evaluation.ngrams import count_ngrams
from smtkit.evaluation.predictors import BASELINES, evenly_spaced, score_windows
from smtkit.evaluation.subject import Subject, load_subject
from smtkit.networks.loading import check_lineage
from smtkit.storage.artifact import Artifact
from smtkit.storage.files import write_atomically
from smtkit.storage.location import PathOrURI
from smtkit.storage.manifest import Manifest
from smtkit.storage.run import Existing, Run
from smtkit.training.distributed import SharedRun, join
from smtkit.training.progress import Progress, Silent

EVALUATION = "evaluation.json"


def run(
    config: EvaluateConfig,
    rnn: PathOrURI,
    tokens: PathOrURI,
    out: PathOrURI,
    *,
    encoder: PathOrURI | None = None,
    progress: Progress | None = None,
    **existing: Unpack[Existing],
) -> Manifest:
    """Evaluates the artifact `rnn` on a split of `tokens`; with `encoder`, beside its teacher.

    The result is `evaluation.json` in the artifact `out`, and the manifest's statistics. Under
    torchrun, the ranks share the windows; the result is the same. Raises ArtifactError where kinds
    or tokenizers differ, or the RNN was trained on labels of another encoder.
    """
    trained = Artifact.open(rnn, "rnn")
    corpus = Artifact.open(tokens, "tokens")
    teacher = Artifact.open(encoder, "encoder") if encoder is not None else None
    check_tokenizers(trained, corpus)
    if teacher is not None:
        check_lineage(trained, teacher, "name that one, or leave `encoder` out")
    parents = [artifact for artifact in (trained, corpus, teacher) if artifact]
    ranks = join(config.device)
    with SharedRun(ranks, out, "evaluation", config, parents, **existing) as artifact:
        if artifact.finished:
            return artifact.finished
        progress = progress or Silent()
        subject = load_subject(trained, teacher, ranks.device)
        tokenizer = load_tokenizer(corpus)
        windows = _open_windows(config, corpus, subject.window)
        starts = evenly_spaced(windows, config.windows)
        ngrams = count_ngrams(
            corpus, tokenizer.vocabulary_size, len(BASELINES), config.baseline_tokens
        )
        scored = score_windows(subject, ngrams, windows, starts, config.batch_size, ranks, progress)
        result: dict[str, Any] = {}
        if ranks.is_first:
            result = {
                "split": config.split,
                "window": subject.window,
                "windows": len(starts),
                "tokens": tokenizer.description()["kind"],
                **_summaries(scored.scores, windows, starts, tokenizer, subject.window),
                "drift": scored.drift.by_position(),
                "drift_between_sequences": scored.drift.between_sequences(),
                "sufficiency": scored.sufficiency.by_offset() if scored.sufficiency else None,
                "memory": scored.health(),
                "gradients": None,
                "cost": None,
            }
            if config.gradients:
                result["gradients"] = _gradients(config, subject, corpus, progress)
            if config.cost:
                result["cost"] = inference_cost.measure(subject, progress)
            _draw_figures(result, artifact, progress)
            write_atomically(artifact.directory / EVALUATION, json.dumps(result, indent=1) + "\n")
            artifact.add(EVALUATION)
        return artifact.commit(result)


def _open_windows(config: EvaluateConfig, corpus: Artifact, window: int) -> WindowReader:
    """Windows of `lengths` windows of training. Raises UsageError where the split is shorter than
    the length that was set; the windows of the default length end with the split."""
    length = config.lengths * window if is_stream(corpus) else None
    windows = open_windows(corpus, config.split, length)
    if "lengths" in config.model_fields_set:
        check_fit(windows, f"`lengths` {config.lengths}", config.split)
    return windows


def _summaries(
    scores: metrics.Scores,
    windows: WindowReader,
    starts: IntArray,
    tokenizer: Tokenizer,
    window: int,
) -> dict[str, Any]:
    """Means over all targets and by position; for rows by distance, where they hold distances, and
    by length, where lengths differ."""
    read = windows.read(starts)
    sizes = _bytes_of(read.targets, tokenizer)
    by_distance, by_length = None, None
    if isinstance(windows, RowWindows):
        distance = windows.distance(starts)
        if distance is not None:
            by_distance = metrics.summarize_by_distance(scores, distance)
        if len(np.unique(read.length)) > 1:
            by_length = metrics.summarize_by_length(scores, read.length)
    return {
        "overall": metrics.summarize_overall(scores, sizes),
        "results": metrics.summarize(scores, window, sizes),
        "by_distance": by_distance,
        "by_length": by_length,
    }


def _bytes_of(targets: IntArray, tokenizer: Tokenizer) -> IntArray | None:
    """Bytes of text that each target stands for, -1 for unknown characters; None where the tokens
    do not determine the text."""
    if not isinstance(tokenizer, TextTokenizer) or not tokenizer.is_exact:
        return None
    sizes = tokenizer.byte_lengths()[np.maximum(targets, 0)]
    return np.where(targets == tokenizer.unknown, -1, sizes)


def _gradients(
    config: EvaluateConfig, subject: Subject, corpus: Artifact, progress: Progress
) -> list[dict[str, Any]]:
    """The records of `gradients.measure`."""
    windows = open_windows(corpus, config.split, subject.window if is_stream(corpus) else None)
    count = min(gradients.SAMPLES, subject.windows_at_once(windows.window))
    return gradients.measure(subject, windows.read(evenly_spaced(windows, count)), progress)


def _draw_figures(result: dict[str, Any], artifact: Run, progress: Progress) -> None:
    """Adds a figure of each measurement that has one."""
    missing = []
    for name, module in (("sufficiency", sufficiency), ("gradients", gradients)):
        if not result[name]:
            continue
        try:
            module.draw(result[name], artifact.directory / module.FIGURE)
        except ImportError:
            missing.append(module.FIGURE)
        else:
            artifact.add(module.FIGURE)
    if missing:
        why = "matplotlib is not installed (pip install 'smtkit[figures]')"
        progress.warn(f"no {', '.join(missing)}: {why}")
