"""How far an exported step is from the RNN, and what that costs in bits.

B: sequences, T: tokens, K: slots, D: slot width, V: vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from smtkit import IGNORE
from smtkit.inference.trained import TrainedRNN

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
StepFunction = Callable[[FloatArray, IntArray], tuple[FloatArray, FloatArray]]
"""memory (B, K, D), token (B,) -> the next memory (B, K, D), logits (B, V)."""


@dataclass(frozen=True)
class Parity:
    """Largest differences from the RNN, over `steps` steps: `one_step`, in memory and logits, from
    the RNN's own memories; `memory` and `logits`, where both run alone on the same tokens.

    Differences of values above 1 are relative to the largest of them.
    """

    steps: int
    one_step: float
    memory: float
    logits: float


def compare(rnn: TrainedRNN, step: StepFunction, tokens: IntArray) -> Parity:
    """The differences while reading `tokens` (B, T)."""
    memories = rnn.rollout(tokens)
    logits = rnn.logits(memories).cpu().numpy()
    expected = memories.cpu().numpy()
    scales = [max(1.0, float(np.abs(values).max())) for values in (expected, logits)]
    one_step, apart, memory = 0.0, [0.0, 0.0], np.ascontiguousarray(expected[:, 0])
    for i in range(tokens.shape[1]):
        token, wanted = np.ascontiguousarray(tokens[:, i]), (expected[:, i + 1], logits[:, i + 1])
        once = step(np.ascontiguousarray(expected[:, i]), token)
        alone = step(memory, token)
        memory = alone[0]
        one_step = max(one_step, *_differences(once, wanted, scales))
        apart = [max(pair) for pair in zip(apart, _differences(alone, wanted, scales), strict=True)]
    return Parity(tokens.shape[1], one_step, *apart)


def _differences(found: Any, wanted: Any, scales: list[float]) -> list[float]:
    """Largest differences in memory and in logits; infinite where a number is NaN."""
    largest = [
        float(np.abs(one - other).max()) / scale
        for one, other, scale in zip(found, wanted, scales, strict=True)
    ]
    return [math.inf if math.isnan(value) else value for value in largest]


def bits(rnn: TrainedRNN, step: StepFunction, tokens: IntArray, targets: IntArray) -> float:
    """Mean bits per target of a step that runs alone from the empty memory.

    tokens (B, T); targets (B, T + 1), IGNORE where there is none.
    """
    empty = rnn.start(len(tokens))
    memory, logits = empty.cpu().numpy(), rnn.logits(empty).cpu().numpy()
    total = 0.0
    for i in range(targets.shape[1]):
        if i:
            memory, logits = step(memory, np.ascontiguousarray(tokens[:, i - 1]))
        has_target = targets[:, i] != IGNORE
        scores = torch.from_numpy(logits[has_target]).double().log_softmax(-1)
        wanted = torch.from_numpy(targets[has_target, i])
        total -= float(scores.gather(1, wanted[:, None]).sum())
    return total / math.log(2) / max(1, int((targets != IGNORE).sum()))
