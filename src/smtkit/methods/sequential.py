"""Sequential steps of an update: its longest chain of dependent calls of a layer or a cell.

They are counted in the forward pass; the backward pass doubles them for every method. `lengths`
are the tokens of each window; results are means over them.
"""

from typing import Any

import numpy as np

from smtkit.config import TrainEncoderConfig, TrainRnnConfig
from smtkit.corpus.seeded import IntArray


def steps_of_encoder(config: TrainEncoderConfig, lengths: IntArray) -> float:
    """Sequential steps of an update: the encoder, then the decoder, or the cell and the readout.

    With a hand-off the encoder itself decodes. Where it starts from the cell's own memory, the
    rollout of the cell up to the anchor, without gradient, comes first.
    """
    first, after = config.encoder.layers, config.cell.layers + 1
    if config.decoder.kind != "handoff":
        return first + max(config.decoder.layers, after)
    rolled = last_anchor(config, lengths).mean() * config.cell.layers
    return float(max(first, rolled if config.objective.own_memory else 0)) + first + after


def steps_of_rnn(config: TrainRnnConfig, lengths: IntArray) -> float:
    """Sequential steps of an update, with the readout."""
    rollout = config.rollout
    depth = {
        "segments": np.minimum(rollout.depth, lengths),
        "sequential": lengths,
        "jacobi": np.full_like(lengths, rollout.sweeps),
    }[rollout.kind]
    calls = {"smt": np.ones_like(lengths), "dmt": depth, "bptt": lengths}[config.method]
    return float(calls.mean()) * config.cell.layers + 1


def last_anchor(config: TrainEncoderConfig, lengths: IntArray) -> Any:
    """Expected position of the last anchor of each window: one lies in each of equal parts."""
    return lengths * (1 - 0.5 / config.objective.anchors)
