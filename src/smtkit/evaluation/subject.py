"""The networks under evaluation: an RNN and, where it is given, its teacher."""

from dataclasses import dataclass

import torch

from smtkit.config import TrainEncoderConfig
from smtkit.networks.loading import load_rnn, load_teacher
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.networks.teacher import Teacher
from smtkit.storage.artifact import Artifact

_MEMORY_BYTES = 2**27  # of the teacher's memories that are held at once


@dataclass(frozen=True)
class TrainedTeacher:
    """A teacher, the config of its training, and the window it was trained on."""

    network: Teacher
    config: TrainEncoderConfig
    window: int


@dataclass(frozen=True)
class Subject:
    """An RNN, the window T that it was trained on, and its teacher."""

    network: RecurrentNetwork
    window: int
    teacher: TrainedTeacher | None

    @property
    def device(self) -> torch.device:
        return self.network.empty_memory.device

    def windows_at_once(self, length: int) -> int:
        """How many windows of `length` tokens can be encoded at once within a fixed memory.

        All their memories are held; the encoder makes them from at most K streams of its width.
        """
        slots, width = self.network.empty_memory.shape
        if self.teacher is not None:
            width = max(width, self.teacher.config.encoder.width)
        return max(1, _MEMORY_BYTES // (4 * slots * width * (length + 1)))


def load_subject(rnn: Artifact, encoder: Artifact | None, device: torch.device) -> Subject:
    """The networks of an `rnn` and an `encoder` artifact, on `device`, for inference."""
    network, window = load_rnn(rnn)
    teacher = None
    if encoder is not None:
        found, trained_on = load_teacher(encoder)
        config = TrainEncoderConfig(**encoder.manifest.config)
        teacher = TrainedTeacher(found.to(device), config, trained_on)
    return Subject(network.to(device), window, teacher)
