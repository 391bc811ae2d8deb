"""All that predicts, scored on the same windows, a few positions at a time.

B: windows, L: tokens a window, T: the window the RNN was trained on, K: slots, D: slot width. Of
the RNN's memories only `_POSITIONS` a window are held at once; of logits, as many.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smtkit.convention import IGNORE
from smtkit.data.ngrams import NgramModel
from smtkit.data.order import IntArray, random_key, stratified
from smtkit.data.windows import Windows
from smtkit.metrics import Drift, Scores
from smtkit.models.rnn import RecurrentNetwork
from smtkit.models.teacher import DecoderReadout, Teacher
from smtkit.objectives import memory_health

BASELINES = ("unigram", "bigram", "trigram")
FREE_RUNNING = "rnn, free-running"
_POSITIONS = 64
_HEALTH_MEMORIES = 4096
_HEALTH_PAIRS = 2**26  # K N^2 numbers, of which uniformity holds a few copies


class Predictors:
    """n-gram models, the RNN, and its teacher if it is given.

    `drift` and `health()` tell of the memories of all windows scored so far, at positions 1..T;
    `windows` is how many will be.
    """

    def __init__(
        self,
        network: RecurrentNetwork,
        teacher: Teacher | None,
        ngrams: NgramModel,
        window: int,
        windows: int,
        device: torch.device,
    ) -> None:
        self.drift = Drift(window)
        self._network = network
        self._teacher = teacher
        self._ngrams = ngrams
        self._window = window
        self._device = device
        slots = network.empty_memory.shape[0]
        self._kept = min(_HEALTH_MEMORIES, math.isqrt(_HEALTH_PAIRS // slots))
        self._draws = math.ceil(self._kept / windows)
        self._scored = 0
        self._samples: dict[str, list[Tensor]] = {}

    @torch.inference_mode()
    def score(self, windows: Windows) -> dict[str, Scores]:
        """Scores of every target, by every predictor. Padding past the longest is not computed."""
        width = windows.targets.shape[1]
        windows = _without_padding(windows)
        asked = (windows.targets != IGNORE)[..., None]
        tokens = torch.from_numpy(windows.tokens).to(self._device)
        targets = torch.from_numpy(windows.targets).to(self._device)
        whole = torch.from_numpy(windows.length >= self._window).to(self._device)
        sampled = torch.from_numpy(self._sampled(windows)).to(self._device)
        scores = {name: self._ngram(windows, order) for order, name in enumerate(BASELINES, 1)}
        labels = None
        if self._teacher is not None:
            labels = self._teacher.encoder(tokens)
            decode = DecoderReadout(self._teacher.decoder)
            scores["teacher, decoder"] = _scored(decode, labels, targets)
            if self._teacher.readout is not None:
                scores["teacher, readout"] = _scored(self._teacher.readout, labels, targets)
            scores["rnn, one step"] = self._one_step(labels, tokens, targets)
            self._sample("teacher", labels, 0, sampled)
        scores[FREE_RUNNING] = self._free_running(tokens, targets, labels, whole, sampled)
        self._scored += len(tokens)
        padding = ((0, 0), (0, width - asked.shape[1]), (0, 0))
        return {
            name: np.pad(np.where(asked, values, np.nan), padding, constant_values=np.nan)
            for name, values in scores.items()
        }

    def health(self) -> dict[str, dict[str, float]]:
        """Signs of collapse in a sample of the memories at 1..T; empty for fewer than two."""
        healths = {}
        for name, samples in self._samples.items():
            memory = torch.cat(samples)
            if len(memory) > 1:
                spread = np.linspace(0, len(memory) - 1, min(self._kept, len(memory)))
                healths[name] = memory_health(memory[spread.round().astype(np.int64)])
        return healths

    def _ngram(self, windows: Windows, order: int) -> Scores:
        nll = self._ngrams.negative_log_likelihood(windows.tokens, windows.targets, order)
        return np.stack([nll, np.full_like(nll, np.nan)], axis=-1)

    def _one_step(self, memory: Tensor, tokens: Tensor, targets: Tensor) -> Scores:
        """One transition from each memory of the teacher, within its window."""
        scores = np.full((*targets.shape, 2), np.nan)
        window = min(self._window, tokens.shape[1])
        for first in range(0, window, _POSITIONS):
            here = slice(first, min(first + _POSITIONS, window))
            after = slice(here.start + 1, here.stop + 1)
            predicted = self._network.step(memory[:, here].flatten(0, 1), tokens[:, here].flatten())
            predicted = predicted.unflatten(0, (len(tokens), -1))
            scores[:, after] = _scored(self._network.readout, predicted, targets[:, after])
        return scores

    def _free_running(
        self,
        tokens: Tensor,
        targets: Tensor,
        labels: Tensor | None,
        whole: Tensor,
        sampled: Tensor,
    ) -> Scores:
        """Scores of the rollout from the empty memory; notes its drift from `labels`."""
        readout = self._network.readout
        memory = self._network.start(len(tokens))
        pieces = [_scored(readout, memory[:, None], targets[:, :1])]
        for first in range(1, tokens.shape[1] + 1, _POSITIONS):
            read = tokens[:, first - 1 : first - 1 + _POSITIONS]
            rolled = self._network.rollout(read, memory)[:, 1:]
            memory = rolled[:, -1]
            pieces.append(_scored(readout, rolled, targets[:, first : first + _POSITIONS]))
            self._sample(FREE_RUNNING, rolled, first, sampled)
            inside = rolled[whole, : max(0, self._window + 1 - first)]
            if labels is not None and inside.numel():
                self.drift.add(inside, labels[whole, first : first + inside.shape[1]], first)
        return np.concatenate(pieces, axis=1)

    def _sampled(self, windows: Windows) -> IntArray:
        """(B, draws): positions in 1..T at which memories are kept for `health`, each once; -1
        where a window has fewer."""
        count, width = windows.tokens.shape
        rows = np.arange(self._scored, self._scored + count, dtype=np.int64)
        draws = min(self._draws, self._window, width)
        sizes = np.minimum(windows.length, self._window)
        drawn = 1 + stratified(random_key("memory health"), rows, draws, sizes)
        drawn[:, 1:][np.diff(drawn) == 0] = -1
        return drawn

    def _sample(self, name: str, memory: Tensor, first: int, sampled: Tensor) -> None:
        """Keeps the sampled ones of the memories (B, n, K, D) at positions `first`, ..."""
        place = sampled - first
        rows, draws = ((place >= 0) & (place < memory.shape[1])).nonzero(as_tuple=True)
        self._samples.setdefault(name, []).append(memory[rows, place[rows, draws]].float().cpu())


def _without_padding(windows: Windows) -> Windows:
    """As far as the longest of the windows goes."""
    longest = int(windows.length.max())
    return Windows(windows.tokens[:, :longest], windows.targets[:, : longest + 1], windows.length)


def _scored(readout: Callable[[Tensor], Tensor], memory: Tensor, targets: Tensor) -> Scores:
    """memory (B, L, K, D), targets (B, L) -> (B, L, 2), some positions at a time."""
    pieces = []
    splits = memory.split(_POSITIONS, 1), targets.split(_POSITIONS, 1)
    for some, wanted in zip(*splits, strict=True):
        logits = readout(some.flatten(0, 1)).float()
        nll = F.cross_entropy(logits, wanted.flatten(), ignore_index=IGNORE, reduction="none")
        correct = logits.argmax(-1) == wanted.flatten()
        both = torch.stack([nll.double(), correct.double()], dim=-1)
        pieces.append(both.view(*wanted.shape, 2).cpu().numpy())
    return np.concatenate(pieces, axis=1)
