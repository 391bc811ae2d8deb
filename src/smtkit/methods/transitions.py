"""What `smt` and `dmt` share: reading windows of labels, and the loss of predicted memories.

The loss is the paper's equation 6, the squared error of the memory that the cell predicts; plus the
cross-entropy of the readout on it; plus, if `kl_weight` is set, the KL divergence between the
predictions that the teacher's decoder makes from the label and from the predicted memory.

B: windows, T: window, N: transitions with a loss, C: of these, the ones compared through the
decoder, F: future tokens, K: slots, D: slot width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from smtkit import IGNORE
from smtkit.config import TransitionObjectiveConfig
from smtkit.corpus.seeded import IntArray, random_key, stratified
from smtkit.corpus.windows import Windows
from smtkit.labels.codec import EncodedMemory
from smtkit.labels.reader import LabelShards
from smtkit.methods import losses
from smtkit.methods.base import QuietMethod, WindowSampler
from smtkit.networks.decoder import FutureDecoder
from smtkit.networks.rnn import RecurrentNetwork

_READ_OFTEN = 2  # times
_RISE, _LEAST_RISE = 0.02, 0.01  # above the smallest validation loss: as a share of it; absolute


@dataclass(frozen=True, kw_only=True)
class LabelBatch:
    """The labels of a batch, and what the loss of its N transitions needs.

    memory: labels, as stored. index (N,): the label before each transition; the label after it is
    the next one. target (N,): predicted from the memory after each transition. initial_target (B,):
    predicted from the empty memory. compared (C,): which transitions are compared through the
    decoder, which reads future (C, F), of which future_length (C,) tokens lie inside the window.
    noise (M, K, D): standard normal, for the M labels it is added to; M is 0 without noise.
    """

    memory: EncodedMemory
    index: Tensor
    target: Tensor
    initial_target: Tensor
    compared: Tensor
    future: Tensor
    future_length: Tensor
    noise: Tensor

    @property
    def after(self) -> Tensor:
        """(N, K, D): the label of the memory after each transition."""
        return self.memory.decode(self.index + 1)

    @property
    def tokens_read(self) -> int:
        return len(self.target)


@dataclass
class LabelSampler(WindowSampler):
    """Base of the samplers of labels: draws what the loss needs."""

    windows: LabelShards
    objective: TransitionObjectiveConfig

    def _loss_fields(
        self, samples: IntArray, windows: Windows, window: IntArray, position: IntArray
    ) -> dict[str, Tensor]:
        """Targets and compared futures of a batch whose transitions read `position` (N,) of
        `window` (N,), ascending."""
        ahead = min(self.objective.kl_future, self.windows.window)  # F
        compared = np.empty(0, dtype=np.int64)
        if self.objective.kl_weight:
            counts = np.bincount(window, minlength=len(samples))
            first = np.cumsum(counts) - counts  # first transition of each window
            key, draws = random_key(self.seed, "compared"), self.objective.kl_positions
            compared = (first[:, None] + stratified(key, samples, draws, counts)).reshape(-1)
        after = position[compared] + 1
        # Indices past the window are clamped; `future_length` leaves these tokens out of the loss.
        future = np.minimum(after[:, None] + np.arange(ahead), self.windows.window - 1)
        fields = {
            "target": windows.targets[window, position + 1],
            "initial_target": windows.targets[:, 0].copy(),
            "compared": compared,
            "future": windows.tokens[window[compared, None], future],
            "future_length": np.clip(windows.length[window[compared]] - after, 0, ahead),
        }
        return {name: torch.from_numpy(values) for name, values in fields.items()}

    def _noise(self, samples: IntArray, counts: IntArray) -> Tensor:
        """Standard normal numbers for `counts` (B,) labels of each window; none without noise."""
        size = (self.windows.shape.slots, self.windows.shape.slot_width)
        if not self.objective.noise:
            return torch.empty(0, *size)
        drawn = []
        for sample, count in zip(samples.tolist(), counts.tolist(), strict=True):
            generator = torch.Generator().manual_seed(random_key(self.seed, "noise", sample))
            drawn.append(torch.randn(count, *size, generator=generator))
        return torch.cat(drawn)


class TransitionMethod(QuietMethod):
    """Base of `smt` and `dmt`: weights, counts and sums of the terms.

    `decoder`: the teacher's, which is frozen; needed where `kl_weight` is not zero.
    """

    def __init__(
        self,
        network: RecurrentNetwork,
        config: TransitionObjectiveConfig,
        decoder: FutureDecoder | None = None,
    ) -> None:
        self.network = network
        self.state = nn.Module()
        self.state.register_buffer("squared", torch.zeros(()))  # `dynamics` of the last update
        self._config = config
        self._decoder = decoder.eval().requires_grad_(False) if decoder is not None else None

    def weights(self, step: int, done: float = 0.0) -> dict[str, float]:
        return {
            "dynamics": self._config.dynamics_weight,
            "readout": self._config.readout_weight,
            "divergence": self._config.kl_weight,
        }

    def observe(self, step: int, means: Mapping[str, Tensor], done: float = 0.0) -> None:
        """Keeps the squared error of predicted memories, which scales the noise."""
        if self._config.noise:
            self.state.get_buffer("squared").copy_(means["dynamics"])

    def counts(self, batch: LabelBatch) -> dict[str, int]:
        """Number of terms in each sum of `losses`."""
        targets = (batch.target != IGNORE).sum() + (batch.initial_target != IGNORE).sum()
        counts = {"dynamics": len(batch.target), "readout": int(targets)}
        if len(batch.compared):
            counts["divergence"] = int((batch.future_length + 1).sum())
        return counts

    def _sums(self, predicted: Tensor, batch: LabelBatch) -> dict[str, Tensor]:
        """Sum of each term, where the transitions of the batch lead to `predicted` (N, K, D)."""
        label, readout = batch.after, self.network.readout
        read = predicted.detach() if self._config.detach_readout else predicted
        empty = self.network.start(len(batch.initial_target))
        sums = {
            "dynamics": losses.dynamics(predicted, label),
            "readout": losses.cross_entropy(readout(read), batch.target)
            + losses.cross_entropy(readout(empty), batch.initial_target),
        }
        if len(batch.compared):
            sums["divergence"] = self._divergence(predicted, label, batch)
        return sums

    def _divergence(self, predicted: Tensor, label: Tensor, batch: LabelBatch) -> Tensor:
        assert self._decoder is not None
        with torch.no_grad():
            expected = self._decoder(label[batch.compared].to(predicted.dtype), batch.future)
        logits = self._decoder(predicted[batch.compared], batch.future)  # (C, F + 1, V)
        offsets = torch.arange(logits.shape[1], device=predicted.device)
        inside = offsets <= batch.future_length[:, None]
        return losses.divergence(expected[inside], logits[inside])

    def _with_noise(self, label: Tensor, noise: Tensor) -> Tensor:
        """In training, labels plus noise whose standard deviation is a multiple of the root mean
        squared error of the last update."""
        if not self._config.noise or not self.network.training:
            return label
        error = self.state.get_buffer("squared").sqrt()
        return label + self._config.noise * error * noise.view_as(label)


def overfitting_warning(
    validations: Sequence[Mapping[str, float]],
    weights: Mapping[str, float],
    windows: int,
    batch_size: int,
) -> str | None:
    """A warning where the labels were read more than twice and the validation loss has risen.

    validations: the means of each term of `weights`, with `step`, so far. The loss has risen if it
    is more than 2%, and 0.01, above its minimum.
    """
    totals = [sum(weights[name] * each.get(name, 0.0) for name in weights) for each in validations]
    times = validations[-1]["step"] * batch_size / windows
    last, best = totals[-1], min(totals)
    if times <= _READ_OFTEN or last <= best + max(_RISE * best, _LEAST_RISE):
        return None
    return (
        f"labels of {windows:,} windows were read {times:.1f} times, and the validation loss has "
        f"risen from {best:.4g} to {last:.4g}; extract labels of more windows (`max_windows`)"
    )
