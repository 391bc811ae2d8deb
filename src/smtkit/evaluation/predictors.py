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

from smtkit import IGNORE
from smtkit.corpus.seeded import IntArray, random_key, stratified
from smtkit.corpus.windows import Windows
from smtkit.evaluation.metrics import Drift, Scores
from smtkit.evaluation.ngrams import NgramModel
from smtkit.methods.losses import memory_health
from smtkit.networks.heads import DecoderReadout
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.networks.teacher import Teacher
from smtkit.training.distributed import Ranks

BASELINES = ("unigram", "bigram", "trigram")
TEACHER = "teacher"
TEACHER_DECODER = "teacher, decoder"
TEACHER_READOUT = "teacher, readout"
ONE_STEP = "rnn, one step"
FREE_RUNNING = "rnn, free-running"
_POSITIONS = 64
_HEALTH_MEMORIES = 4096
_HEALTH_PAIRS = 2**26  # K N^2 numbers, of which uniformity holds a few copies


class Predictors:
    """n-gram models, the RNN, and its teacher if it is given.

    `drift` and `health()` tell of the memories of all windows scored so far, at positions 1..T: by
    this rank or, after `share`, by all. There are `windows`, of `length` tokens.
    """

    def __init__(
        self,
        network: RecurrentNetwork,
        teacher: Teacher | None,
        ngrams: NgramModel,
        window: int,
        windows: int,
        length: int,
        device: torch.device,
    ) -> None:
        self.drift = Drift(window)
        self._network = network
        self._teacher = teacher
        self._ngrams = ngrams
        self._window = window
        self._device = device
        slots, slot_width = network.empty_memory.shape
        self._kept = min(_HEALTH_MEMORIES, math.isqrt(_HEALTH_PAIRS // slots))
        self._draws = min(math.ceil(self._kept / windows), window, length)
        self._samples = {
            name: torch.zeros(windows, self._draws, slots, slot_width)
            for name in ([FREE_RUNNING] if teacher is None else [TEACHER, FREE_RUNNING])
        }
        self._there = torch.zeros(windows, self._draws, dtype=torch.int64)  # 1: a sample was kept

    @property
    def names(self) -> list[str]:
        """Of all that predicts."""
        if self._teacher is None:
            return [*BASELINES, FREE_RUNNING]
        readout = [TEACHER_READOUT] if self._teacher.readout is not None else []
        return [*BASELINES, TEACHER_DECODER, *readout, ONE_STEP, FREE_RUNNING]

    @torch.inference_mode()
    def score(self, windows: Windows, first: int) -> dict[str, Scores]:
        """Scores of every target, by every predictor, of windows `first`, ... of all. Padding past
        the longest is not computed."""
        width = windows.targets.shape[1]
        windows = _without_padding(windows)
        asked = (windows.targets != IGNORE)[..., None]
        tokens = torch.from_numpy(windows.tokens).to(self._device)
        targets = torch.from_numpy(windows.targets).to(self._device)
        whole = torch.from_numpy(windows.length >= self._window).to(self._device)
        sampled = torch.from_numpy(self._sampled(windows, first)).to(self._device)
        scores = {name: self._ngram(windows, order) for order, name in enumerate(BASELINES, 1)}
        here = slice(first, first + len(tokens))
        self._there[here] = (sampled >= 0).long().cpu()
        labels = None
        if self._teacher is not None:
            labels = self._teacher.encoder(tokens)
            decode = DecoderReadout(self._teacher.decoder)
            scores[TEACHER_DECODER] = _scored(decode, labels, targets)
            if self._teacher.readout is not None:
                scores[TEACHER_READOUT] = _scored(self._teacher.readout, labels, targets)
            scores[ONE_STEP] = self._one_step(labels, tokens, targets)
            _keep(self._samples[TEACHER][here], labels, 0, sampled)
        kept = self._samples[FREE_RUNNING][here]
        scores[FREE_RUNNING] = self._free_running(tokens, targets, labels, whole, sampled, kept)
        padding = ((0, 0), (0, width - asked.shape[1]), (0, 0))
        return {
            name: np.pad(np.where(asked, values, np.nan), padding, constant_values=np.nan)
            for name, values in scores.items()
        }

    def share(self, ranks: Ranks) -> None:
        """Makes what this rank has seen, and what the others have, one."""
        drift = torch.from_numpy(self.drift.totals(self._network.empty_memory.numel()))
        self.drift.take(ranks.sum_together([drift])[0].numpy())
        # Of windows that are another rank's, all are zeros.
        (self._there,) = ranks.sum_together([self._there])
        for name, samples in self._samples.items():
            (self._samples[name],) = ranks.sum_together([samples])

    def health(self) -> dict[str, dict[str, float]]:
        """Signs of collapse in a sample of the memories at 1..T; empty for fewer than two."""
        healths = {}
        for name, samples in self._samples.items():
            memory = samples[self._there > 0]
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
        kept: Tensor,
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
            _keep(kept, rolled, first, sampled)
            inside = rolled[whole, : max(0, self._window + 1 - first)]
            if labels is not None and inside.numel():
                self.drift.add(inside, labels[whole, first : first + inside.shape[1]], first)
        return np.concatenate(pieces, axis=1)

    def _sampled(self, windows: Windows, first: int) -> IntArray:
        """(B, draws): positions in 1..T at which memories are kept for `health`, each once; -1
        where a window has fewer."""
        rows = np.arange(first, first + len(windows.tokens), dtype=np.int64)
        sizes = np.minimum(windows.length, self._window)
        drawn = 1 + stratified(random_key("memory health"), rows, self._draws, sizes)
        drawn[:, 1:][np.diff(drawn) == 0] = -1
        return drawn


def _keep(kept: Tensor, memory: Tensor, first: int, sampled: Tensor) -> None:
    """Into kept (B, draws, K, D), the sampled ones of the memories (B, n, K, D) at positions
    `first`, ..."""
    place = sampled - first
    rows, draws = ((place >= 0) & (place < memory.shape[1])).nonzero(as_tuple=True)
    kept[rows.cpu(), draws.cpu()] = memory[rows, place[rows, draws]].float().cpu()


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
