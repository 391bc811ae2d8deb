"""All predictors, scored on the same windows: n-gram models, the teacher, and the RNN.

B: windows in a batch, L: tokens per window, T: the window the RNN was trained on, n: positions,
K: slots, D: slot width, V: vocabulary.
"""

import numpy as np
import torch
from torch import Tensor

from smtkit.corpus.seeded import IntArray
from smtkit.corpus.windows import WindowReader, Windows
from smtkit.evaluation import free_running
from smtkit.evaluation.drift import Drift
from smtkit.evaluation.free_running import Readout, rollout_in_pieces, score_targets
from smtkit.evaluation.memory_sample import MemorySample
from smtkit.evaluation.metrics import FloatArray
from smtkit.evaluation.ngrams import NgramModel
from smtkit.evaluation.subject import Subject
from smtkit.evaluation.sufficiency import Sufficiency
from smtkit.methods.bptt import SequenceBatch
from smtkit.networks.teacher import Teacher
from smtkit.training.distributed import Ranks
from smtkit.training.progress import Progress

BASELINES = ("unigram", "bigram", "trigram")
TEACHER = "teacher"
TEACHER_DECODER = "teacher, decoder"
TEACHER_READOUT = "teacher, readout"
ONE_STEP = "rnn, one step"
FREE_RUNNING = "rnn, free-running"


class Predictors:
    """Scores of every predictor on `count` windows of up to `length` tokens; at positions 1..T also
    drift, sufficiency and a sample of the memories.

    They cover the windows scored by this rank until `share` adds those of the other ranks.
    """

    def __init__(self, subject: Subject, ngrams: NgramModel, count: int, length: int) -> None:
        self._subject = subject
        self._ngrams = ngrams
        names, sampled = [*BASELINES, FREE_RUNNING], [FREE_RUNNING]
        self.sufficiency: Sufficiency | None = None
        if subject.teacher is not None:
            self.sufficiency = Sufficiency(
                subject.teacher, subject.future_length, subject.window, count
            )
            decoder = [TEACHER_DECODER] if subject.teacher.decoder is not None else []
            readout = [TEACHER_READOUT] if subject.teacher.readout is not None else []
            names[-1:] = *decoder, *readout, ONE_STEP, FREE_RUNNING
            sampled = [TEACHER, FREE_RUNNING]
        # Zeros, so that a sum over ranks joins the windows of all.
        self.scores = {name: np.zeros((2, count, length + 1)) for name in names}
        slots, slot_width = subject.network.empty_memory.shape
        self.drift = Drift(subject.window, slots * slot_width)
        longest = min(subject.window, length)
        self.samples = {name: MemorySample(count, longest, slots, slot_width) for name in sampled}

    @torch.inference_mode()
    def score(self, windows: Windows, first: int) -> None:
        """Scores the windows number `first`, `first` + 1, ... by every predictor."""
        batch = SequenceBatch.of(windows)
        index = np.arange(first, first + len(windows.tokens))
        scores = {name: values[:, index[0] : index[-1] + 1] for name, values in self.scores.items()}
        for values in scores.values():
            values[:] = np.nan
        inputs, targets = batch.tokens.numpy(), batch.targets.numpy()
        for order, name in enumerate(BASELINES, start=1):
            nll = self._ngrams.negative_log_likelihood(inputs, targets, order)
            scores[name][0, :, : nll.shape[1]] = nll
        device = self._subject.device
        batch = SequenceBatch(batch.tokens.to(device), batch.targets.to(device), batch.length)
        teacher, labels = self._subject.teacher, None
        if teacher is not None:
            labels = self._score_teacher(teacher, scores, batch, index)
            assert self.sufficiency is not None
            self.sufficiency.add(labels, windows, index)
        self._score_free_running(scores[FREE_RUNNING], batch, labels, index)

    def share(self, ranks: Ranks) -> None:
        """Joins what all ranks have scored."""
        for name, values in self.scores.items():
            (summed,) = ranks.sum_tensors([torch.from_numpy(values)])
            self.scores[name] = summed.numpy()
        self.drift.share(ranks)
        if self.sufficiency is not None:
            self.sufficiency.share(ranks)
        for sample in self.samples.values():
            sample.share(ranks)

    def health(self) -> dict[str, dict[str, float]]:
        """`memory_health` of each sample of two or more memories."""
        found = {name: sample.health() for name, sample in self.samples.items()}
        return {name: health for name, health in found.items() if health is not None}

    def _score_teacher(
        self, teacher: Teacher, scores: dict[str, FloatArray], batch: SequenceBatch, index: IntArray
    ) -> Tensor:
        """Scores the teacher, and one step of the RNN from each of the teacher's memories 0..T-1;
        returns these memories (B, L + 1, K, D)."""
        network = self._subject.network
        labels = teacher.encoder(batch.tokens)
        if teacher.decoder is not None:
            score_memories(scores[TEACHER_DECODER], teacher.decoder.read, labels, batch)
        if teacher.readout is not None:
            score_memories(scores[TEACHER_READOUT], teacher.readout, labels, batch)
        self.samples[TEACHER].add(labels, 0, index, batch.length.numpy())
        inputs = batch.tokens[:, : self._subject.window]
        for first in range(0, inputs.shape[1], free_running.POSITIONS):
            tokens = inputs[:, first : first + free_running.POSITIONS]
            memory = labels[:, first : first + tokens.shape[1]]
            predicted = network.step(memory.flatten(0, 1), tokens.flatten()).view_as(memory)
            score_memories(scores[ONE_STEP], network.readout, predicted, batch, first + 1)
        return labels

    def _score_free_running(
        self, scores: FloatArray, batch: SequenceBatch, labels: Tensor | None, index: IntArray
    ) -> None:
        """Scores the rollout from the empty memory; drift is measured on windows of T tokens or
        more."""
        network = self._subject.network
        whole = (batch.length >= self._subject.window).to(batch.tokens.device)
        empty = network.start(len(batch.tokens))
        for first, memories in rollout_in_pieces(network.transition, empty, batch.tokens):
            score_memories(scores, network.readout, memories, batch, first)
            self.samples[FREE_RUNNING].add(memories, first, index, batch.length.numpy())
            if labels is not None:
                here = labels[whole, first : first + memories.shape[1]]
                self.drift.add(memories[whole], here, first)


def score_windows(
    subject: Subject,
    ngrams: NgramModel,
    windows: WindowReader,
    starts: IntArray,
    batch_size: int,
    ranks: Ranks,
    progress: Progress,
) -> Predictors:
    """Scores the windows at `starts`, in batches that the ranks share."""
    predictors = Predictors(subject, ngrams, len(starts), windows.window)
    size = min(batch_size, subject.windows_at_once(windows.window))
    for first in range(0, len(starts), size)[ranks.rank :: ranks.size]:
        last = min(first + size, len(starts))
        predictors.score(windows.read(starts[first:last]), first)
        progress.update("evaluating", last, len(starts))
    predictors.share(ranks)
    return predictors


def score_memories(
    scores: FloatArray, readout: Readout, memories: Tensor, batch: SequenceBatch, first: int = 0
) -> None:
    """Writes scores of the targets at positions `first`, ..., each predicted from its memory.

    memories (B, n, K, D); a few positions at a time, to bound the logits.
    """
    for piece in memories.split(free_running.POSITIONS, dim=1):
        here = slice(first, first + piece.shape[1])
        found = score_targets(readout, piece, batch.targets[:, here])
        scores[:, :, here] = found.cpu().numpy()
        first = here.stop


def evenly_spaced(windows: WindowReader, count: int) -> IntArray:
    """Starts of at most `count` windows that do not overlap, spread over the split."""
    tiles = windows.tiles()[: windows.per_epoch]
    chosen = np.linspace(0, len(tiles) - 1, min(count, len(tiles))).round().astype(np.int64)
    return tiles[chosen]
