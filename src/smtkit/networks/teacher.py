"""The teacher: an encoder that makes memories, a decoder that predicts the future from them.

N: memories, K: slots, D: slot width, V: vocabulary.
"""

import torch
from torch import Tensor, nn

from smtkit.errors import UsageError
from smtkit.networks.architecture import Architecture, Network
from smtkit.networks.decoder import FutureDecoder
from smtkit.networks.encoders import GatedEncoder, build_encoder
from smtkit.networks.heads import MlpReadout
from smtkit.networks.transition import Transition


class Teacher(Network):
    """Encoder, future decoder, co-trained transition and dense readout."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        encoder, shape = architecture.encoder, architecture.shape
        if encoder is None:
            raise UsageError("`encoder`: none in the architecture, a teacher has one")
        self.encoder = build_encoder(encoder, architecture.vocabulary_size, architecture.window)
        self.decoder = _decoder(architecture)
        self.transition = Transition(architecture.cell, *shape)
        self.readout = _dense_readout(architecture)
        _check_parts(architecture)

    def step(self, memory: Tensor, tokens: Tensor) -> Tensor:
        """One step of the co-trained transition: (N, K, D), (N,) -> (N, K, D)."""
        return self.transition(memory, tokens)

    def read(self, memory: Tensor) -> Tensor:
        """Logits of the dense readout or, without one, of the decoder: (N, K, D) -> (N, V)."""
        if self.readout is not None:
            return self.readout(memory)
        assert self.decoder is not None
        return self.decoder.read(memory)

    def decode(self, memory: Tensor, future: Tensor) -> Tensor:
        """Logits of the target at a memory and after each token of its future, predicted from the
        memory alone: (N, K, D), (N, F) -> (N, F + 1, V)."""
        if self.decoder is not None:
            return self.decoder(memory, future)
        memories = self.hand_off(memory, future)
        return self.read(memories.flatten(0, 1)).unflatten(0, memories.shape[:2])

    def hand_off(self, memory: Tensor, future: Tensor) -> Tensor:
        """Memories after each token, encoded from a memory in place of the tokens before it:
        (N, K, D), (N, F) -> (N, F + 1, K, D)."""
        assert isinstance(self.encoder, GatedEncoder)
        return self.encoder.encode(future, memory)


class LabelTeacher(Network):
    """The parts of a teacher that are stored with its labels: the empty memory (K, D), and all
    networks but the encoder."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        shape = architecture.shape
        self.empty_memory = nn.Parameter(torch.zeros(shape[1:]))
        self.decoder = _decoder(architecture)
        self.transition = Transition(architecture.cell, *shape)
        self.readout = _dense_readout(architecture)

    @classmethod
    def of(cls, teacher: Teacher) -> "LabelTeacher":
        """Copies the parts of `teacher`."""
        parts = cls(teacher.architecture)
        copied = {
            name: tensor
            for name, tensor in teacher.state_dict().items()
            if not name.startswith("encoder.")
        }
        parts.load_state_dict({**copied, "empty_memory": teacher.encoder.empty_memory()})
        return parts


def _check_parts(architecture: Architecture) -> None:
    """Raises UsageError where parts of a teacher do not fit together."""
    encoder, decoder = architecture.encoder, architecture.decoder
    gated = encoder is not None and encoder.memory == "gated"
    if gated and architecture.cell.normalize != "none":
        raise UsageError(
            "`encoder.memory` = gated: its memories are not normalised",
            "set `cell.normalize` = none",
        )
    if decoder.kind == "handoff" and not (gated and architecture.readout.kind == "mlp"):
        raise UsageError(
            "`decoder.kind` = handoff: needs `encoder.memory` = gated and `readout.kind` = mlp"
        )


def _decoder(architecture: Architecture) -> FutureDecoder | None:
    """None where the encoder takes its place."""
    if architecture.decoder.kind == "handoff":
        return None
    return FutureDecoder(architecture.decoder, *architecture.shape)


def _dense_readout(architecture: Architecture) -> MlpReadout | None:
    """None where the decoder with an empty future is the readout."""
    if architecture.readout.kind == "decoder":
        return None
    return MlpReadout(*architecture.shape, architecture.readout.hidden)
