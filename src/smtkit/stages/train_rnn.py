"""`smtkit train-rnn --method smt`: a `labels` artifact to an `rnn` artifact."""

import os
from typing import Any

import torch
from torch import Tensor

from smtkit.artifacts.checkpoint import MODEL, load_tensors, save_tensors
from smtkit.artifacts.manifest import METRICS, Artifact, Manifest
from smtkit.artifacts.run import Run
from smtkit.config import CellConfig, DecoderConfig, ReadoutConfig, TrainRnnConfig
from smtkit.data.labels import LabelShape, LabelShards, TransitionSource
from smtkit.data.tokenizers import load_tokenizer
from smtkit.errors import ArtifactError, UsageError
from smtkit.methods.smt import SupervisedMemoryTraining
from smtkit.models.rnn import RecurrentNetwork
from smtkit.progress import Progress, Silent
from smtkit.training import Trainer, Validation, choose_device


def run(
    config: TrainRnnConfig,
    labels: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Trains an RNN on the memories stored in the artifact `labels`, one step at a time.

    Raises ArtifactError (not labels, damaged row), NonFiniteLossError, InterruptedRunError.
    """
    device = choose_device(config.device)
    stored = Artifact.open(labels, "labels")
    with Run(
        out,
        "rnn",
        config,
        [stored],
        seed=config.seed,
        overwrite=overwrite,
        resume=resume,
    ) as artifact:
        if artifact.finished:
            return artifact.finished
        train, validation = (
            LabelShards(stored.files(f"{split}-")) for split in ("train", "validation")
        )
        torch.manual_seed(config.seed)
        network = _build(config, stored, train.shape)
        trainer = Trainer(
            SupervisedMemoryTraining(network, config.objective),
            _source(config, train),
            Validation(_source(config, validation), _validation_batches(config, validation)),
            config.training,
            artifact.directory,
            device,
            progress or Silent(),
            artifact.keep,
        )
        validated = trainer.run()
        load_tokenizer(stored).save(artifact)
        header = {**network.architecture, "window": train.shape.window}
        save_tensors(artifact.directory / MODEL, network.state_dict(), header)
        for name in (MODEL, METRICS):
            artifact.add(name)
        return artifact.commit({**trainer.statistics(), "validation": validated})


def load_rnn(rnn: Artifact) -> tuple[RecurrentNetwork, int]:
    """The network of an `rnn` artifact, for inference, and the window it was trained on."""
    tensors, header = load_tensors(rnn.verified(MODEL))
    window = header.pop("window")
    network = RecurrentNetwork.from_architecture(header)
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False), window


def _build(config: TrainRnnConfig, labels: Artifact, shape: LabelShape) -> RecurrentNetwork:
    """The RNN with random weights; or, with `init_from_labels`, with the co-trained cell's."""
    tensors, header = load_tensors(labels.verified(MODEL))
    cell, readout = config.cell, config.readout
    if config.init_from_labels:
        _check_given(config, header)
        cell, readout = CellConfig(**header["cell"]), ReadoutConfig(**header["readout"])
    network = RecurrentNetwork(
        shape.vocabulary_size,
        shape.slots,
        shape.slot_width,
        cell,
        readout,
        DecoderConfig(**header["decoder"]),
    )
    network.empty_memory.copy_(tensors["empty_memory"])
    if config.init_from_labels:
        network.cell.load_state_dict(_below("cell.", tensors))
    if readout.kind == "decoder":
        network.readout.load_state_dict(_below("decoder.", tensors, keep="decoder."))
    elif config.init_from_labels:
        network.readout.load_state_dict(_below("readout.", tensors))
    return network


def _check_given(config: TrainRnnConfig, header: dict[str, Any]) -> None:
    """Raises UsageError where a cell or readout was asked for that is not the co-trained one."""
    for section in ("cell", "readout"):
        for key, wanted in getattr(config, section).model_dump(exclude_unset=True).items():
            if wanted != header[section][key]:
                raise UsageError(
                    f"{section}.{key} = {wanted!r}: --init-from-labels starts from the co-trained "
                    f"{section}, whose {key} is {header[section][key]!r}",
                    f"leave {section}.{key} out",
                )


def _below(prefix: str, tensors: dict[str, Tensor], keep: str = "") -> dict[str, Tensor]:
    found = {
        keep + name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    if not found:
        raise ArtifactError(f"the labels hold no weights {prefix}*")
    return found


def _source(config: TrainRnnConfig, labels: LabelShards) -> TransitionSource:
    return TransitionSource(
        labels,
        batch_size=config.training.batch_size,
        seed=config.seed,
        positions=config.data.positions,
    )


def _validation_batches(config: TrainRnnConfig, labels: LabelShards) -> int:
    wanted = min(config.training.validation_windows, len(labels))
    return max(1, wanted // config.training.batch_size)
