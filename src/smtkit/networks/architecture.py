"""The description from which a network is built, and the file that holds it with the weights.

`Teacher(architecture)` and `RecurrentNetwork(architecture)` have random weights;
`network.save(path)` writes architecture and weights, `Teacher.load(path)` reads them.
"""

import contextlib
import itertools
import json
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import ValidationError, model_validator
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from smtkit.config import (
    CellConfig,
    Config,
    DecoderConfig,
    EncoderConfig,
    MemoryConfig,
    ReadoutConfig,
    TrainEncoderConfig,
    TrainRnnConfig,
    flatten,
)
from smtkit.config.base import Positive
from smtkit.errors import ArtifactError, UsageError
from smtkit.storage.tensors import load_tensors, save_tensors


class Architecture(Config):
    """Everything that determines the parameters of a network: their names, shapes and meaning."""

    vocabulary_size: Positive
    """V."""
    window: Positive
    """T: tokens per sequence in training."""
    memory: MemoryConfig
    """K and D."""
    encoder: EncoderConfig | None
    """None for an RNN."""
    decoder: DecoderConfig
    """Of an RNN, used where the readout is the decoder."""
    cell: CellConfig
    readout: ReadoutConfig

    @model_validator(mode="after")
    def _encoder_fits_memory(self) -> Self:
        found, encoder = self.memory, self.encoder
        if encoder and (encoder.slots, encoder.slot_width) != (found.slots, found.slot_width):
            raise ValueError(
                f"the encoder has {encoder.slots} slots of {encoder.slot_width}, "
                f"the memory {found.slots} of {found.slot_width}"
            )
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """V, K, D."""
        return self.vocabulary_size, self.memory.slots, self.memory.slot_width

    @classmethod
    def of_teacher(cls, config: TrainEncoderConfig, vocabulary_size: int, window: int) -> Self:
        """The teacher that `train-encoder` trains."""
        return cls(
            vocabulary_size=vocabulary_size,
            window=window,
            memory=MemoryConfig(slots=config.encoder.slots, slot_width=config.encoder.slot_width),
            encoder=config.encoder,
            decoder=config.decoder,
            cell=config.cell,
            readout=config.readout,
        )

    @classmethod
    def of_rnn(cls, config: TrainRnnConfig, vocabulary_size: int, window: int) -> Self:
        """The RNN that `train-rnn` trains from tokens alone."""
        return cls(
            vocabulary_size=vocabulary_size,
            window=window,
            memory=config.memory,
            encoder=None,
            decoder=config.decoder,
            cell=config.cell,
            readout=config.readout,
        )


class Network(nn.Module):
    """A module that is built from an `Architecture`, and saved and loaded with it."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture

    def save(self, path: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Writes weights and architecture. Raises InputOutputError.

        `weights` is the state dict of a network that is sharded over ranks; default: its own.
        """
        header = self.architecture.model_dump(mode="json")
        save_tensors(path, self.state_dict() if weights is None else weights, header)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The network that `save` wrote, on the CPU.

        Raises ArtifactError if it is not a file of this network: architecture and tensors are
        compared before any parameter is allocated.
        """
        tensors, header = load_tensors(path)
        try:
            architecture = _parse(header)
            with torch.device("meta"), _at_most(len(tensors), architecture):  # no storage
                network = cls(architecture)
            _compare(network.state_dict(), tensors)
        except _MismatchError as error:
            raise ArtifactError(f"{path}: {error}") from None
        except (UsageError, RuntimeError, TypeError) as error:  # torch: sizes that overflow
            raise ArtifactError(f"{path}: header: {str(error).splitlines()[0]}") from None
        network.load_state_dict(tensors, assign=True)
        return network


class _MismatchError(Exception):
    """Architecture and tensors do not fit."""


def _parse(header: Any) -> Architecture:
    try:
        return Architecture.model_validate_json(json.dumps(header), strict=True)
    except ValidationError as error:
        detail = error.errors()[0]
        key = reprlib.repr(".".join(map(str, detail["loc"])))
        found = "" if detail["type"] == "missing" else f", found {reprlib.repr(detail['input'])}"
        raise _MismatchError(f"header: {key}: {detail['msg']}{found}") from None


@contextlib.contextmanager
def _at_most(limit: int, architecture: Architecture) -> Iterator[None]:
    """Stops the construction of a network with more than `limit` parameters.

    A forged number of layers would otherwise build modules without end.
    """
    count = itertools.count(1)

    def check(*_: object) -> None:
        if next(count) > limit:
            sizes = flatten(architecture.model_dump())
            layers = ", ".join(f"{key} = {size}" for key, size in sizes if key.endswith("layers"))
            raise _MismatchError(f"header: {layers}: expected at most {limit} tensors, as found")

    handle = register_module_parameter_registration_hook(check)
    try:
        yield
    finally:
        handle.remove()


def _compare(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raises _MismatchError at the first difference in names, shapes or dtypes."""

    def shown(tensor: Tensor | None) -> str:
        return "none" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"

    for name in sorted(expected.keys() | found.keys()):
        here, wanted = shown(found.get(name)), shown(expected.get(name))
        if here != wanted:
            raise _MismatchError(f"tensor {reprlib.repr(name)}: found {here}, expected {wanted}")
