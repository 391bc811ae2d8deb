"""What an update costs, by counting: dependent calls one after the other, and operations.

*Sequential steps* are the longest chain of calls of a layer or a cell that wait for each other, in
the forward pass of an update (the backward pass doubles everybody's). *Operations* are an estimate:
two for each weight that a token meets, three times over in training (forward, and backward for
inputs and weights); attention's products of queries and keys, which no weight stands for, and
element-wise work are left out.
"""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from smtkit.artifacts.manifest import Artifact
from smtkit.config import TrainEncoderConfig, TrainRnnConfig, WindowConfig
from smtkit.data.rows import RowStore
from smtkit.data.tokens import is_stream
from smtkit.data.windows import DEFAULT_WINDOW

_TRAINING = 6
_INFERENCE = 2


def mean_length(tokens: Artifact, data: WindowConfig) -> float:
    """Tokens a window of train, in the mean."""
    if is_stream(tokens):
        return float(data.window or DEFAULT_WINDOW)
    return float(np.mean(RowStore(tokens.files("train-")).lengths()))


def chain_of_encoder(config: TrainEncoderConfig) -> int:
    """Sequential steps of an update: the encoder, then the decoder, or the cell and the readout."""
    return config.encoder.layers + max(config.decoder.layers, config.cell.layers + 1)


def chain_of_rnn(config: TrainRnnConfig, length: float) -> float:
    """Sequential steps of an update, the readout among them."""
    rollout = config.rollout
    depth = {
        "segments": min(rollout.depth, length),
        "sequential": length,
        "jacobi": rollout.sweeps,
    }[rollout.kind]
    calls = {"smt": 1.0, "dmt": depth, "bptt": length}[config.method]
    return calls * config.cell.layers + 1


def of_encoder(config: TrainEncoderConfig, weights: Mapping[str, Tensor], length: float) -> float:
    """Operations of an update of the teacher."""
    objective = config.objective
    future = length if objective.future_length == "rest" else objective.future_length
    anchored = objective.anchors * (config.encoder.slots + future)
    dense = length if objective.dense_weight else 0.0
    a_window = (
        length * _met(weights, "encoder.")
        + anchored * _met(weights, "decoder.")
        + objective.dynamics_positions * _met(weights, "cell.")
        + (dense + objective.dynamics_positions) * _met(weights, "readout.")
    )
    return _TRAINING * config.training.batch_size * a_window


def of_extraction(weights: Mapping[str, Tensor], tokens: int) -> float:
    """Operations of the encoder's one pass over `tokens`."""
    return _INFERENCE * tokens * float(_met(weights, "encoder."))


def of_rnn(config: TrainRnnConfig, weights: Mapping[str, Tensor], length: float) -> float:
    """Operations of an update of the RNN by any method."""
    positions = config.data.positions if config.method == "smt" else length
    cell, readout = _met(weights, "cell."), _met(weights, "readout.")
    passes = float(_TRAINING)
    if config.method == "dmt" and config.rollout.kind == "jacobi":
        passes += _INFERENCE * (config.rollout.sweeps - 1)
    a_window = positions * (passes * cell + _TRAINING * readout)
    return config.training.batch_size * a_window


def _met(weights: Mapping[str, Tensor], prefix: str) -> int:
    """Weights of a network's matrices; of an embedding only a row is read."""
    return sum(
        tensor.numel()
        for name, tensor in weights.items()
        if name.startswith(prefix) and tensor.ndim >= 2 and "embedding" not in name
    )
