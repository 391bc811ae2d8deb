"""Operations of an update, computed; its sequential steps are in `smtkit.methods.sequential`.

*Operations* are an estimate: two per weight and token that passes through it, and two per product
in attention (queries by keys, weights by values); three times as many in training (forward, and
backward for inputs and weights). Element-wise operations are left out, and so is the attention in a
transformer cell, whose weights see every slot and the token.

`lengths` are the tokens of each window of the train split; costs are means over them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from smtkit.config import CellConfig, TrainEncoderConfig, TrainRnnConfig
from smtkit.corpus.shards import is_stream, open_split
from smtkit.corpus.windows import DEFAULT_WINDOW
from smtkit.methods.sequential import last_anchor
from smtkit.storage.artifact import Artifact

Lengths = NDArray[np.int64]
_TRAINING = 3
_OPERATIONS = 2


def lengths(tokens: Artifact, stages: Mapping[str, Any]) -> Lengths:
    """Tokens of each window of the train split."""
    if is_stream(tokens):
        first = next(iter(stages.values()))
        return np.array([first.get("data", {}).get("window") or DEFAULT_WINDOW])
    return open_split(tokens, "train").lengths()


def of_encoder(
    config: TrainEncoderConfig, weights: Mapping[str, Tensor], lengths: Lengths
) -> float:
    """Operations of an update of the teacher."""
    objective, decoder = config.objective, config.decoder
    cell = _transition(config.cell, weights, config.encoder.slots)
    steps: Any = objective.dynamics_positions
    read = steps + (lengths if objective.dense_weight else 0)
    if decoder.kind == "handoff":
        # The rest of a batch is decoded from its first anchor on, shorter ones with padding.
        rest = objective.future_length == "rest"
        future = last_anchor(config, lengths) if rest else objective.future_length
        decoded = _encoded(config, weights, config.encoder.slots + future)
        read = read + steps + objective.anchors * future
        rolled = 1 - (1 - objective.own_memory) ** objective.anchors  # share of the windows
        # The rollout has no backward pass.
        steps = 2 * steps + rolled * last_anchor(config, lengths) / _TRAINING
    else:
        future = lengths if objective.future_length == "rest" else objective.future_length
        decoded = _attended(decoder.width, decoder.layers, config.encoder.slots + future)
        decoded += (config.encoder.slots + future) * _weights(weights, "decoder.")
    per_window = (
        _encoded(config, weights, lengths)
        + objective.anchors * decoded
        + steps * cell
        + read * _weights(weights, "readout.")
    )
    return _TRAINING * _OPERATIONS * config.training.batch_size * float(np.mean(per_window))


def of_extraction(
    config: TrainEncoderConfig, weights: Mapping[str, Tensor], windows: int, lengths: Lengths
) -> float:
    """Operations of one encoder pass over each of `windows` windows."""
    return _OPERATIONS * windows * float(np.mean(_encoded(config, weights, lengths)))


def of_rnn(config: TrainRnnConfig, weights: Mapping[str, Tensor], lengths: Lengths) -> float:
    """Operations of an update of the RNN by any method."""
    positions = config.data.positions if config.method == "smt" else float(lengths.mean())
    passes = float(_TRAINING)
    if config.method == "dmt" and config.rollout.kind == "jacobi":
        passes += config.rollout.sweeps - 1
    per_token = passes * _transition(config.cell, weights, config.memory.slots)
    per_token += _TRAINING * _weights(weights, "readout.")
    return _OPERATIONS * config.training.batch_size * positions * per_token


def _encoded(config: TrainEncoderConfig, weights: Mapping[str, Tensor], lengths: Lengths) -> Any:
    """Products of the causal encoder over each window."""
    attended = _attended(config.encoder.width, config.encoder.layers, lengths)
    return lengths * _weights(weights, "encoder.") + attended


def _attended(width: int, layers: int, symbols: Any) -> Any:
    """Products of causal attention over `symbols` positions."""
    return layers * width * symbols * symbols


def _transition(cell: CellConfig, weights: Mapping[str, Tensor], slots: int) -> int:
    """Products of the cell for one token."""
    symbols = slots + 1 if cell.kind == "transformer" else 1
    return symbols * _weights(weights, "transition.")


def _weights(weights: Mapping[str, Tensor], prefix: str) -> int:
    """Weights of the matrices of a network; embeddings are look-ups and do not count."""
    return sum(
        tensor.numel()
        for name, tensor in weights.items()
        if name.startswith(prefix) and tensor.ndim >= 2 and not name.endswith("input.weight")
    )
