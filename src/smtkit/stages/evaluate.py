"""`smtkit eval`: how well an RNN predicts held-out text, beside its teacher and n-gram baselines.

B: windows, T: the window the RNN was trained on, L = 4 T: tokens read here.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from smtkit.artifacts.manifest import Artifact, Manifest
from smtkit.artifacts.run import Run, write_atomically
from smtkit.config import EvaluateConfig
from smtkit.convention import IGNORE
from smtkit.data.ngrams import NgramModel
from smtkit.data.order import IntArray
from smtkit.data.tokenizers import TOKENIZER, Tokenizer, load_tokenizer
from smtkit.data.tokens import BATCH_TOKENS, TokenStream
from smtkit.data.windows import TextWindows, Windows, open_stream
from smtkit.errors import ArtifactError
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

Nll = NDArray[np.float64]  # (B, L + 1), nats; NaN where nothing is asked or said


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
        tokenizer = load_tokenizer(source.verified(TOKENIZER))
        ngrams = _count_ngrams(source, tokenizer, config)
        predictors = _Predictors(
            network.to(device),
            load_teacher(teacher_artifact)[0].to(device) if teacher_artifact else None,
            ngrams,
            window,
            device,
        )
        windows = TextWindows(open_stream(source, config.split), _LENGTHS * window)
        starts = _spread(windows, config.windows)
        nll: dict[str, list[Nll]] = {}
        targets: list[IntArray] = []
        for first in range(0, len(starts), config.batch_size):
            batch = windows.read(starts[first : first + config.batch_size])
            targets.append(batch.targets)
            for name, values in predictors.score(batch).items():
                nll.setdefault(name, []).append(values)
            (progress or Silent()).update("evaluating", first + len(batch.targets), len(starts))
        result = {
            "split": config.split,
            "window": window,
            "windows": len(starts),
            "results": _results(
                {name: np.concatenate(values) for name, values in nll.items()},
                np.concatenate(targets),
                window,
                tokenizer,
            ),
            "drift": predictors.drift.by_position() if teacher_artifact else None,
        }
        write_atomically(artifact.directory / EVALUATION, json.dumps(result, indent=1) + "\n")
        artifact.add(EVALUATION)
        return artifact.commit(result)


def position_ranges(window: int) -> list[tuple[str, int, int]]:
    """(name, first, last): ranges of the position i at which targets[i] is predicted."""
    return [
        ("1..T/2", 1, window // 2),
        ("T/2..T", window // 2 + 1, window),
        ("T..2T", window + 1, 2 * window),
        ("2T..4T", 2 * window + 1, 4 * window),
    ]


class Drift:
    """Mean |rolled - teacher|^2 at each position over the mean of |teacher - its mean|^2."""

    def __init__(self, window: int) -> None:
        self._squared_error = np.zeros(window)
        self._rows = 0
        self._sum: NDArray[np.float64] | float = 0.0
        self._squared_sum = 0.0

    def add(self, rolled: Tensor, label: Tensor) -> None:
        """Memories (B, T, K, D) at positions 1..T: of the RNN, and of the teacher."""
        difference = (rolled - label).double().flatten(2).square().sum(2)
        self._squared_error += difference.sum(0).cpu().numpy()
        self._rows += len(label)
        flat = label.double().flatten(2).flatten(0, 1)
        self._sum = self._sum + flat.sum(0).cpu().numpy()
        self._squared_sum += float(flat.square().sum())

    def by_position(self) -> list[float] | None:
        """Drift at positions 1..T; None where no whole window was seen."""
        if self._rows == 0:
            return None
        count = self._rows * len(self._squared_error)
        spread = self._squared_sum / count - float(np.sum(np.square(self._sum / count)))
        return [float(value) for value in self._squared_error / self._rows / max(spread, 1e-12)]


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
    def score(self, windows: Windows) -> dict[str, Nll]:
        """Negative log-likelihood of every target, by every predictor."""
        asked = windows.targets != IGNORE
        tokens = torch.from_numpy(windows.tokens).to(self.device)
        targets = torch.from_numpy(windows.targets).to(self.device)
        scores = {name: self._ngram(windows, order) for order, name in enumerate(_BASELINES, 1)}
        if self.teacher is not None:
            memory = self.teacher.encoder(tokens)
            decode = DecoderReadout(self.teacher.decoder)
            scores["teacher, decoder"] = _nll(decode, memory, targets)
            if self.teacher.readout is not None:
                scores["teacher, readout"] = _nll(self.teacher.readout, memory, targets)
            scores["rnn, one step"] = self._one_step(memory, tokens, targets)
            self._add_drift(tokens, memory, windows)
        scores["rnn, free-running"] = self._free_running(tokens, targets)
        return {name: np.where(asked, values, np.nan) for name, values in scores.items()}

    def _ngram(self, windows: Windows, order: int) -> Nll:
        known = np.maximum(windows.targets, 0)
        return self.ngrams.negative_log_likelihood(known, order)

    def _one_step(self, memory: Tensor, tokens: Tensor, targets: Tensor) -> Nll:
        """One transition from each memory of the teacher, within its window."""
        window = self.window
        before = memory[:, :window].flatten(0, 1)
        predicted = self.network.step(before, tokens[:, :window].flatten())
        predicted = predicted.unflatten(0, (-1, window))
        scores = np.full(targets.shape, np.nan)
        scores[:, 1 : window + 1] = _nll(
            self.network.readout, predicted, targets[:, 1 : window + 1]
        )
        return scores

    def _free_running(self, tokens: Tensor, targets: Tensor) -> Nll:
        pieces = [
            _nll(self.network.readout, self.network.start(len(tokens))[:, None], targets[:, :1])
        ]
        for first, memory in self._rollout(tokens):
            length = memory.shape[1]
            pieces.append(_nll(self.network.readout, memory, targets[:, first : first + length]))
        return np.concatenate(pieces, axis=1)

    def _rollout(self, tokens: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(first position, memories) from the empty memory, T steps at a time."""
        memory = self.network.start(len(tokens))
        for first in range(0, tokens.shape[1], self.window):
            memories = self.network.rollout(tokens[:, first : first + self.window], memory)
            memory = memories[:, -1]
            yield first + 1, memories[:, 1:]

    def _add_drift(self, tokens: Tensor, memory: Tensor, windows: Windows) -> None:
        whole = torch.from_numpy(windows.length >= self.window).to(self.device)
        _, rolled = next(self._rollout(tokens))
        self.drift.add(rolled[whole], memory[whole, 1 : self.window + 1])


def _nll(readout: Callable[[Tensor], Tensor], memory: Tensor, targets: Tensor) -> Nll:
    """memory (B, L, K, D), targets (B, L) -> (B, L), a column of positions at a time."""
    pieces = []
    for some, wanted in zip(memory.split(64, 1), targets.split(64, 1), strict=True):
        logits = readout(some.flatten(0, 1)).float()
        losses = F.cross_entropy(logits, wanted.flatten(), ignore_index=IGNORE, reduction="none")
        pieces.append(losses.view(wanted.shape).double().cpu().numpy())
    return np.concatenate(pieces, axis=1)


def _results(
    nll: Mapping[str, Nll], targets: IntArray, window: int, tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    lengths = tokenizer.byte_lengths()[np.maximum(targets, 0)]
    return [
        {"predictor": predictor, "range": name, "first": first, "last": last, **measured}
        for predictor, values in nll.items()
        for name, first, last in position_ranges(window)
        if (
            measured := _measure(
                values[:, first : last + 1],
                lengths[:, first : last + 1] if tokenizer.unknown is None else None,
            )
        )
    ]


def _measure(nll: Nll, byte_lengths: IntArray | None) -> dict[str, float | int | None]:
    """Metrics of the targets scored, or nothing where there are none."""
    scored = ~np.isnan(nll)
    count = int(scored.sum())
    if count == 0:
        return {}
    total = float(nll[scored].sum())
    mean = total / count
    size = int(byte_lengths[scored].sum()) if byte_lengths is not None else 0
    return {
        "targets": count,
        "nll": mean,
        "nll_standard_error": _standard_error(nll, scored),
        "bits_per_token": mean / math.log(2),
        "bits_per_byte": total / math.log(2) / size if size else None,
        "perplexity": math.exp(min(mean, 700)),
    }


def _standard_error(nll: Nll, scored: NDArray[np.bool_]) -> float | None:
    """Of the mean, from the spread of the windows' means: targets of one window are not
    independent."""
    rows = scored.any(1)
    if rows.sum() < 2:
        return None
    means = np.nanmean(nll[rows], axis=1)
    return float(means.std(ddof=1) / math.sqrt(len(means)))


def _count_ngrams(tokens: Artifact, tokenizer: Tokenizer, config: EvaluateConfig) -> NgramModel:
    stream = open_stream(tokens, "train")
    limit = min(len(stream), config.baseline_tokens)
    return NgramModel.count(tokenizer.vocabulary_size, len(_BASELINES), _blocks(stream, limit))


def _blocks(stream: TokenStream, limit: int) -> Iterator[NDArray[Any]]:
    for start in range(0, limit, BATCH_TOKENS):
        yield stream.read(start, min(BATCH_TOKENS, limit - start))


def _spread(windows: TextWindows, wanted: int) -> IntArray:
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
