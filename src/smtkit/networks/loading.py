"""The RNN that `train-rnn` begins with, and the RNN of an artifact."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from smtkit.config import (
    CellConfig,
    DecoderConfig,
    EncoderConfig,
    MemoryConfig,
    ReadoutConfig,
    TrainEncoderConfig,
    TrainRnnConfig,
)
from smtkit.errors import ArtifactError, UsageError
from smtkit.networks.decoder import FutureDecoder
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.networks.teacher import Teacher
from smtkit.storage.artifact import Artifact
from smtkit.storage.tensors import MODEL, load_tensors


def build_teacher(config: TrainEncoderConfig, vocabulary_size: int, window: int) -> Teacher:
    """The teacher with random weights."""
    return Teacher(
        vocabulary_size, window, config.encoder, config.decoder, config.cell, config.readout
    )


def load_teacher(encoder: Artifact) -> tuple[Teacher, int]:
    """The teacher of an `encoder` artifact, for evaluation, and its window."""
    tensors, header = load_tensors(encoder.verified(MODEL))
    teacher = Teacher(
        header["vocabulary_size"],
        header["window"],
        EncoderConfig(**header["encoder"]),
        DecoderConfig(**header["decoder"]),
        CellConfig(**header["cell"]),
        ReadoutConfig(**header["readout"]),
    )
    teacher.load_state_dict(tensors)
    return teacher.eval().requires_grad_(False), header["window"]


_PREFIX = "decoder."


def load_rnn(rnn: Artifact) -> tuple[RecurrentNetwork, int]:
    """The network of an `rnn` artifact, for inference, and the window it was trained on."""
    tensors, header = load_tensors(rnn.verified(MODEL))
    window = header.pop("window")
    network = RecurrentNetwork.from_architecture(header)
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False), window


class TeacherWeights(NamedTuple):
    """What lies with the labels of the teacher, and what it is."""

    tensors: dict[str, Tensor]
    header: dict[str, Any]


def teacher_weights(labels: Artifact) -> TeacherWeights:
    return TeacherWeights(*load_tensors(labels.verified(MODEL)))


def network_for_labels(config: TrainRnnConfig, teacher: TeacherWeights) -> RecurrentNetwork:
    """The RNN with random weights; or, with `init_from_labels`, with the co-trained cell's.

    It starts from the teacher's empty memory, which stays as it is.
    """
    tensors, header = teacher
    memory = {key: header["encoder"][key] for key in ("slots", "slot_width")}
    told = {"memory": memory, "decoder": header["decoder"]}
    check_given(config, told, "the labels are of a")
    cell, readout = config.cell, config.readout
    if config.init_from_labels:
        check_given(config, header, "--init-from-labels starts from the co-trained")
        cell, readout = CellConfig(**header["cell"]), ReadoutConfig(**header["readout"])
    network = RecurrentNetwork(
        header["vocabulary_size"],
        memory["slots"],
        memory["slot_width"],
        cell,
        readout,
        DecoderConfig(**header["decoder"]),
    )
    if config.init_from_labels:
        network.cell.load_state_dict(_below("cell.", tensors))
    if readout.kind == "decoder":
        network.readout.load_state_dict(_below(_PREFIX, tensors, keep=_PREFIX))
    elif config.init_from_labels:
        network.readout.load_state_dict(_below("readout.", tensors))
    return with_empty_memory(network, tensors["empty_memory"])


def network_of_its_own(config: TrainRnnConfig, vocabulary_size: int) -> RecurrentNetwork:
    """The RNN with random weights, for training without a teacher."""
    return RecurrentNetwork(
        vocabulary_size,
        config.memory.slots,
        config.memory.slot_width,
        config.cell,
        config.readout,
        config.decoder,
    )


def network_of(config: TrainRnnConfig, rnn: Artifact) -> RecurrentNetwork:
    """The RNN of an artifact, to be trained on. Raises UsageError where another was described."""
    network, _ = load_rnn(rnn)
    found = {**network.architecture, "memory": network.architecture}
    check_given(config, found, f"--init {rnn.directory} has a")
    return network.train().requires_grad_(True)


def describing(config: TrainRnnConfig, network: RecurrentNetwork) -> TrainRnnConfig:
    """The settings, with those of the network as it is: labels or an RNN may have told them."""
    found = network.architecture
    memory = MemoryConfig(slots=found["slots"], slot_width=found["slot_width"])
    parts = {
        "memory": memory,
        "cell": CellConfig(**found["cell"]),
        "readout": ReadoutConfig(**found["readout"]),
        "decoder": DecoderConfig(**found["decoder"]),
    }
    return config.model_copy(update=parts)


def with_empty_memory(network: RecurrentNetwork, memory: Tensor) -> RecurrentNetwork:
    """The network, which from now on starts from `memory` (K, D) and does not learn it."""
    with torch.no_grad():
        network.empty_memory.copy_(memory)
    network.empty_memory.requires_grad_(False)
    return network


def decoder_of(teacher: TeacherWeights) -> FutureDecoder:
    """The teacher's decoder."""
    tensors, header = teacher
    shape = header["encoder"]["slots"], header["encoder"]["slot_width"]
    decoder = FutureDecoder(DecoderConfig(**header["decoder"]), header["vocabulary_size"], *shape)
    decoder.load_state_dict(_below(_PREFIX, tensors))
    return decoder


def check_given(config: TrainRnnConfig, found: dict[str, Any], why: str) -> None:
    """Raises UsageError where a part was asked for that is not the one `found`, by sections."""
    for section in ("memory", "cell", "readout", "decoder"):
        if section not in found:
            continue
        for key, wanted in getattr(config, section).model_dump(exclude_unset=True).items():
            if wanted != found[section][key]:
                raise UsageError(
                    f"{section}.{key} = {wanted!r}: {why} {section} whose {key} is "
                    f"{found[section][key]!r}",
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
