"""The warning that labels were read too often."""

import pytest

from conftest import Recorder, rnn_config, validation_records
from smtkit.config import ExtractLabelsConfig
from smtkit.methods.transitions import overfitting_warning
from smtkit.stages import extract_labels, train_rnn

WEIGHTS = {"dynamics": 10.0, "readout": 1.0, "divergence": 0.0}


def _warning(readouts: list[float], *, steps: int = 10, windows: int = 20) -> str | None:
    """Of validations every `steps` updates of 8 windows."""
    records = [
        {"step": steps * (number + 1), "dynamics": 0.1, "readout": readout}
        for number, readout in enumerate(readouts)
    ]
    return overfitting_warning(records, WEIGHTS, windows=windows, batch_size=8)


def test_a_rising_validation_loss_is_named_with_the_number_of_readings():
    assert _warning([3.0, 1.0, 1.5]) == (
        "labels of 20 windows were read 12.0 times, and the validation loss has risen from 2 to "
        "2.5; extract labels of more windows (`max_windows`)"
    )


@pytest.mark.parametrize(("windows", "warns"), [(20, True), (119, True), (120, False)])
def test_labels_may_be_read_twice(windows, warns):
    assert (_warning([3.0, 1.0, 1.5], windows=windows) is not None) == warns


@pytest.mark.parametrize(
    ("readouts", "warns"),
    [
        ([1.0], False),
        ([3.0, 2.0, 1.0], False),
        ([1.0, 1.03], False),
        ([1.0, 1.05], True),
        ([1.0, 2.0, 1.05], True),
        ([1.0, 2.0, 1.0], False),
    ],
)
def test_the_loss_has_risen_if_it_is_clearly_above_its_minimum(readouts, warns):
    """The sum of all terms: 2% of 2, a dynamics loss of 0.1 with weight 10 included."""
    assert (_warning(readouts) is not None) == warns


def test_small_losses_may_vary():
    records = [{"step": 100, "readout": 0.002}, {"step": 200, "readout": 0.009}]

    assert overfitting_warning(records, WEIGHTS, windows=8, batch_size=8) is None


def test_an_rnn_that_learns_few_labels_by_heart_causes_one_warning(pipeline, tmp_path):
    few = tmp_path / "labels"
    extract_labels.run(ExtractLabelsConfig(max_windows=4), pipeline.encoder, pipeline.tokens, few)
    training = {"max_steps": 80, "learning_rate": 3e-2, "schedule": "constant"}
    config = rnn_config(cell={"width": 64}, training={**training, "validate_every": 20})
    recorder = Recorder()
    train_rnn.run(config, few, tmp_path / "rnn", progress=recorder)
    found = [record["readout"] for record in validation_records(tmp_path / "rnn")]

    assert found[-1] > 1.1 * min(found)
    assert len(recorder.warnings) == 1
    assert "labels of 4 windows were read" in recorder.warnings[0]
    assert "`max_windows`" in recorder.warnings[0]


@pytest.mark.parametrize("method", ["smt", "dmt"])
def test_a_healthy_run_causes_no_warning(pipeline, tmp_path, method):
    recorder = Recorder()
    config = rnn_config(method=method, data={"positions": 32})
    train_rnn.run(config, pipeline.labels, tmp_path, progress=recorder)

    assert recorder.warnings == []
