"""The description of a network, and the file that holds it together with the weights.

`Teacher(architecture)` and `RecurrentNetwork(architecture)` have random weights;
`network.save(path)` writes architecture and weights, `Teacher.load(path)` reads them.
V: vocabulary, T: window, K: slots, D: slot width.
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
from smtkit.storage.artifact import Artifact
from smtkit.storage.tensors import MODEL, check_finite, decode_tensors, load_tensors, save_tensors

_REPR = reprlib.Repr()
_REPR.maxstring = 80
_MISSING = 64
"""Parameters that a file may lack and still be compared tensor by tensor."""


class Architecture(Config):
    """All settings that determine the names and shapes of a network's parameters."""

    vocabulary_size: Positive
    window: Positive
    """Tokens per sequence in training; the default context length of a bidirectional encoder."""
    memory: MemoryConfig
    encoder: EncoderConfig | None
    """None for an RNN."""
    decoder: DecoderConfig
    """An RNN has a decoder only if that is its readout."""
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
    """Base of the networks that are built from an `Architecture`, saved and loaded with it."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture

    def save(self, path: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Writes architecture and weights. Raises InputOutputError.

        `weights` is the whole state dict of a network that is sharded over ranks.
        """
        header = self.architecture.model_dump(mode="json")
        save_tensors(path, self.state_dict() if weights is None else weights, header)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The network in a file of `save`, on the CPU.

        Raises ArtifactError where the header is no architecture, or the tensors are not those of
        its network; this is checked without allocating the network.
        """
        return cls._of(path, *load_tensors(path))

    @classmethod
    def load_from(cls, artifact: Artifact) -> Self:
        """The verified network of an artifact, on the CPU. Raises as `load`."""
        path, content = artifact.read(MODEL)
        return cls._of(path, *decode_tensors(path, content))

    @classmethod
    def _of(cls, path: Path, tensors: dict[str, Tensor], header: Any) -> Self:
        try:
            architecture = _parse(header)
            with torch.device("meta"), _at_most(len(tensors) + _MISSING, architecture):
                network = cls(architecture)
            _compare(network.state_dict(), tensors)
        except (ArtifactError, UsageError) as error:
            raise ArtifactError(f"{path}: {error}") from None
        except (RuntimeError, TypeError, OverflowError) as error:  # sizes of more than 64 bits
            raise ArtifactError(f"{path}: header: {str(error).splitlines()[0]}") from None
        check_finite(path, tensors)
        network.load_state_dict(tensors, assign=True)
        return network


def _parse(header: Any) -> Architecture:
    try:
        return Architecture.model_validate_json(json.dumps(header), strict=True)
    except ValidationError as error:
        detail = error.errors()[0]
        key = _REPR.repr(".".join(map(str, detail["loc"])))
        found = "nothing" if detail["type"] == "missing" else _REPR.repr(detail["input"])
        raise ArtifactError(f"header: {key}: {detail['msg']}, found {found}") from None


@contextlib.contextmanager
def _at_most(limit: int, architecture: Architecture) -> Iterator[None]:
    """Stops building a network of more than `limit` parameters, as a forged number of layers would
    be built without end."""
    count = itertools.count(1)

    def check(*_: object) -> None:
        if next(count) > limit:
            sizes = flatten(architecture.model_dump())
            layers = [f"{key} {_REPR.repr(n)}" for key, n in sizes if key.endswith("layers")]
            raise ArtifactError(f"header: {', '.join(layers)}: more than the tensors in the file")

    handle = register_module_parameter_registration_hook(check)
    try:
        yield
    finally:
        handle.remove()


def _compare(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raises ArtifactError at the first difference in names, shapes or dtypes."""

    def shown(tensor: Tensor | None) -> str:
        return "nothing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"

    for name in sorted(expected.keys() | found.keys()):
        here, wanted = shown(found.get(name)), shown(expected.get(name))
        if here != wanted:
            raise ArtifactError(f"tensor {_REPR.repr(name)}: found {here}, expected {wanted}")
