"""Options of the stages that train: where else their metrics are shown."""

from typing import Any

from smtkit import config as schemas
from smtkit.cli.command import Given, run
from smtkit.cli.options import option

LOGGED = (
    option("--tensorboard DIR", "Also log metrics, samples and weights to TensorBoard."),
    option("--wandb", "Also log them to Weights & Biases; WANDB_MODE=offline stays local."),
)


def run_logged(stage: Any, config: schemas.Config, given: Given) -> None:
    """Runs a stage that trains, with the listeners that were asked for."""
    from smtkit.training.listeners import Listener, TensorBoard, WeightsAndBiases

    directory, wanted = given.pop("tensorboard"), given.pop("wandb")
    listeners: list[Listener] = []
    if directory is not None:
        listeners.append(TensorBoard(directory))
    if wanted:
        listeners.append(WeightsAndBiases(given["out"], config.model_dump(mode="json")))
    try:
        run(stage, config, {**given, "listeners": listeners})
    finally:
        for listener in listeners:
            listener.close()
