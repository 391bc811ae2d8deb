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
    """A teacher and the config of its training."""

    network: Teacher
    config: TrainEncoderConfig


@dataclass(frozen=True)
class Subject:
    """An RNN and its teacher."""

    network: RecurrentNetwork
    teacher: TrainedTeacher | None

    @property
    def window(self) -> int:
        """T: tokens per sequence in the training of the RNN."""
        return self.network.architecture.window

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
    teacher = None
    if encoder is not None:
        config = TrainEncoderConfig(**encoder.manifest.config)
        teacher = TrainedTeacher(load_teacher(encoder).to(device), config)
    return Subject(load_rnn(rnn).to(device), teacher)
