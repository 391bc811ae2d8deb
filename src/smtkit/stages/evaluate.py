"""`smtkit eval`: how well an RNN predicts held-out text, beside its teacher and n-gram baselines.

B: windows, T: the window the RNN was trained on, L = 4 T: tokens read here.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smtkit.artifacts.manifest import Artifact, Manifest
from smtkit.artifacts.run import Run, write_atomically
from smtkit.config import EvaluateConfig
from smtkit.convention import IGNORE
from smtkit.data.ngrams import NgramModel
from smtkit.data.order import IntArray
from smtkit.data.tokenizers import TextTokenizer, Tokenizer, load_tokenizer
from smtkit.data.tokens import BATCH_TOKENS, is_stream, open_stream
from smtkit.data.windows import Windows, WindowSource, open_windows
from smtkit.errors import ArtifactError
from smtkit.metrics import Drift, Scores, summarize
from smtkit.models.rnn import RecurrentNetwork
from smtkit.models.teacher import DecoderReadout, Teacher
from smtkit.progress import Progress, Silent
from smtkit.stages.extract_labels import check_tokenizers
from smtkit.stages.train_encoder import load_teacher
from smtkit.stages.train_rnn import load_rnn
from smtkit.training import choose_device

EVALUATION = "evaluation.json"
_BASELINES = ("unigram", "bigram", "trigram")
_LENGTHS = 4  # windows of 4 T tokens


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

    The result is `evaluation.json` in the artifact `out`, and the manifest's statistics.
    Raises ArtifactError where kinds or tokenizers differ, or the RNN learned from another encoder.
    """
    device = choose_device(config.device)
    trained = Artifact.open(rnn, "rnn")
    source = Artifact.open(tokens, "tokens")
    teacher_artifact = Artifact.open(encoder, "encoder") if encoder is not None else None
    check_tokenizers(trained, source)
    _check_lineage(trained, teacher_artifact)
    parents = [artifact for artifact in (trained, source, teacher_artifact) if artifact]
    with Run(out, "evaluation", config, parents, overwrite=overwrite, resume=resume) as artifact:
        if artifact.finished:
            return artifact.finished
        network, window = load_rnn(trained)
        tokenizer = load_tokenizer(source)
        ngrams = _count_ngrams(source, tokenizer, config)
        predictors = _Predictors(
            network.to(device),
            load_teacher(teacher_artifact)[0].to(device) if teacher_artifact else None,
            ngrams,
            window,
            device,
        )
        windows = open_windows(
            source, config.split, _LENGTHS * window if is_stream(source) else None
        )
        starts = _spread(windows, config.windows)
        scores: dict[str, list[Scores]] = {}
        targets: list[IntArray] = []
        for first in range(0, len(starts), config.batch_size):
            batch = windows.read(starts[first : first + config.batch_size])
            targets.append(batch.targets)
            for name, values in predictors.score(batch).items():
                scores.setdefault(name, []).append(values)
            (progress or Silent()).update("evaluating", first + len(batch.targets), len(starts))
        result = {
            "split": config.split,
            "window": window,
            "windows": len(starts),
            "tokens": tokenizer.description()["kind"],
            "results": summarize(
                {name: np.concatenate(values) for name, values in scores.items()},
                window,
                _bytes_of(np.concatenate(targets), tokenizer),
            ),
            "drift": predictors.drift.by_position() if teacher_artifact else None,
        }
        write_atomically(artifact.directory / EVALUATION, json.dumps(result, indent=1) + "\n")
        artifact.add(EVALUATION)
        return artifact.commit(result)


@dataclass
class _Predictors:
    """All that predicts, scored on the same windows."""

    network: RecurrentNetwork
    teacher: Teacher | None
    ngrams: NgramModel
    window: int
    device: torch.device

    def __post_init__(self) -> None:
        self.drift = Drift(self.window)

    @torch.inference_mode()
    def score(self, windows: Windows) -> dict[str, Scores]:
        """Scores of every target, by every predictor."""
        asked = (windows.targets != IGNORE)[..., None]
        tokens = torch.from_numpy(windows.tokens).to(self.device)
        targets = torch.from_numpy(windows.targets).to(self.device)
        scores = {name: self._ngram(windows, order) for order, name in enumerate(_BASELINES, 1)}
        labels = None
        if self.teacher is not None:
            labels = self.teacher.encoder(tokens)
            decode = DecoderReadout(self.teacher.decoder)
            scores["teacher, decoder"] = _scored(decode, labels, targets)
            if self.teacher.readout is not None:
                scores["teacher, readout"] = _scored(self.teacher.readout, labels, targets)
            scores["rnn, one step"] = self._one_step(labels, tokens, targets)
        scores["rnn, free-running"] = self._free_running(tokens, targets, windows, labels)
        return {name: np.where(asked, values, np.nan) for name, values in scores.items()}

    def _ngram(self, windows: Windows, order: int) -> Scores:
        nll = self.ngrams.negative_log_likelihood(windows.tokens, windows.targets, order)
        return np.stack([nll, np.full_like(nll, np.nan)], axis=-1)

    def _one_step(self, memory: Tensor, tokens: Tensor, targets: Tensor) -> Scores:
        """One transition from each memory of the teacher, within its window."""
        window = self.window
        before = memory[:, :window].flatten(0, 1)
        predicted = self.network.step(before, tokens[:, :window].flatten())
        predicted = predicted.unflatten(0, (-1, window))
        scores = np.full((*targets.shape, 2), np.nan)
        scores[:, 1 : window + 1] = _scored(
            self.network.readout, predicted, targets[:, 1 : window + 1]
        )
        return scores

    def _free_running(
        self, tokens: Tensor, targets: Tensor, windows: Windows, labels: Tensor | None
    ) -> Scores:
        """Scores of the rollout from the empty memory; notes its drift from `labels`."""
        readout = self.network.readout
        pieces = [_scored(readout, self.network.start(len(tokens))[:, None], targets[:, :1])]
        for first, memory in self._rollout(tokens):
            length = memory.shape[1]
            pieces.append(_scored(readout, memory, targets[:, first : first + length]))
            if first == 1 and labels is not None:
                whole = torch.from_numpy(windows.length >= self.window).to(self.device)
                self.drift.add(memory[whole], labels[whole, 1 : self.window + 1])
        return np.concatenate(pieces, axis=1)

    def _rollout(self, tokens: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(first position, memories) from the empty memory, T steps at a time."""
        memory = self.network.start(len(tokens))
        for first in range(0, tokens.shape[1], self.window):
            memories = self.network.rollout(tokens[:, first : first + self.window], memory)
            memory = memories[:, -1]
            yield first + 1, memories[:, 1:]


def _scored(readout: Callable[[Tensor], Tensor], memory: Tensor, targets: Tensor) -> Scores:
    """memory (B, L, K, D), targets (B, L) -> (B, L, 2), some positions at a time."""
    pieces = []
    for some, wanted in zip(memory.split(64, 1), targets.split(64, 1), strict=True):
        logits = readout(some.flatten(0, 1)).float()
        nll = F.cross_entropy(logits, wanted.flatten(), ignore_index=IGNORE, reduction="none")
        correct = logits.argmax(-1) == wanted.flatten()
        both = torch.stack([nll.double(), correct.double()], dim=-1)
        pieces.append(both.view(*wanted.shape, 2).cpu().numpy())
    return np.concatenate(pieces, axis=1)


def _bytes_of(targets: IntArray, tokenizer: Tokenizer) -> IntArray | None:
    """Bytes of text of every target; None where that is not known."""
    if not isinstance(tokenizer, TextTokenizer) or tokenizer.unknown is not None:
        return None
    return tokenizer.byte_lengths()[np.maximum(targets, 0)]


def _count_ngrams(tokens: Artifact, tokenizer: Tokenizer, config: EvaluateConfig) -> NgramModel:
    batches = _stream_batches if is_stream(tokens) else _row_batches
    return NgramModel.count(
        tokenizer.vocabulary_size, len(_BASELINES), batches(tokens, config.baseline_tokens)
    )


def _stream_batches(tokens: Artifact, limit: int) -> Iterator[tuple[IntArray, IntArray]]:
    """The stream in long rows; each begins with what an n-gram looks back at, asked before."""
    stream = open_stream(tokens, "train")
    for start in range(0, min(len(stream), limit), BATCH_TOKENS):
        before = min(start, len(_BASELINES) - 1)
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


def _spread(windows: WindowSource, wanted: int) -> IntArray:
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
