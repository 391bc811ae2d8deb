"""The whole method on a task that needs a memory: what a teacher saw 16 tokens ago, an RNN that was
never unrolled in training tells at the end."""

from pathlib import Path
from typing import Any

import pytest

from conftest import evaluate_config
from smtkit.config import ExtractLabelsConfig, SynthesizeConfig, TrainEncoderConfig, TrainRnnConfig
from smtkit.stages import evaluate, extract_labels, synthesize, train_encoder, train_rnn
from smtkit.storage.manifest import Manifest

WIDTHS = {"width": 64, "heads": 4}


def _trained(directory: Path, cell: str) -> Manifest:
    """Evaluation of an RNN of SMT, then dmt."""
    synthesize.run(
        SynthesizeConfig(task="retrieval", lengths=[8, 16], sequences=20_000, vocabulary=20),
        directory / "tokens",
    )
    train_encoder.run(
        TrainEncoderConfig(
            encoder={"slots": 2, "slot_width": 16, "layers": 2, **WIDTHS},
            decoder={"layers": 1, **WIDTHS},
            cell={"kind": cell, **WIDTHS},
            objective={"future_length": "rest", "dynamics_start": "auto", "dynamics_ramp": 200},
            training={"max_steps": 1000, "learning_rate": 2e-3},
        ),
        directory / "tokens",
        directory / "encoder",
    )
    extract_labels.run(
        ExtractLabelsConfig(max_windows=4000),
        directory / "encoder",
        directory / "tokens",
        directory / "labels",
    )
    first = TrainRnnConfig(
        init_from_labels=True, training={"max_steps": 500, "learning_rate": 2e-3}
    )
    train_rnn.run(first, directory / "labels", directory / "smt")
    second = TrainRnnConfig(method="dmt", training={"max_steps": 200, "learning_rate": 1e-3})
    train_rnn.run(second, directory / "labels", directory / "dmt", init=directory / "smt")
    return evaluate.run(
        evaluate_config(),
        directory / "dmt",
        directory / "tokens",
        directory / "evaluation",
        encoder=directory / "encoder",
    )


def _accuracy(results: list[dict[str, Any]], predictor: str) -> list[float]:
    return [record["accuracy"] for record in results if record["predictor"] == predictor]


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["mlp", "gru", "transformer", "lstm"])
def test_an_rnn_recalls_what_it_was_never_unrolled_to_keep(tmp_path: Path, cell: str) -> None:
    measured = _trained(tmp_path, cell).statistics
    assert min(_accuracy(measured["results"], "teacher, readout")) > 0.99
    assert min(_accuracy(measured["results"], "rnn, free-running")) > 0.95
