"""The networks under evaluation: an RNN and, if it is given, its teacher."""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import ValidationError

from smtkit.config import TrainEncoderConfig
from smtkit.corpus.stored_tokenizer import check_vocabulary
from smtkit.errors import ArtifactError
from smtkit.networks.loading import load_rnn, load_teacher
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.networks.teacher import Teacher
from smtkit.storage.artifact import Artifact

_MEMORY_BYTES = 2**27  # of memories that are held at once


@dataclass(frozen=True)
class Subject:
    """An RNN, its teacher, and the number of future tokens that the teacher's decoder was trained
    to read."""

    network: RecurrentNetwork
    teacher: Teacher | None
    future_length: int | Literal["rest"] = 0

    @property
    def window(self) -> int:
        """T: tokens per sequence in the training of the RNN."""
        return self.network.architecture.window

    @property
    def device(self) -> torch.device:
        return self.network.empty_memory.device

    def windows_at_once(self, length: int) -> int:
        """How many windows of `length` tokens are encoded at once, to bound the memory they take.

        All their memories are held, which the encoder makes from at most K streams of its width.
        """
        slots, width = self.network.empty_memory.shape
        if self.teacher is not None and self.teacher.architecture.encoder is not None:
            width = max(width, self.teacher.architecture.encoder.width)
        return max(1, _MEMORY_BYTES // (4 * slots * width * (length + 1)))


def load_subject(rnn: Artifact, encoder: Artifact | None, device: torch.device) -> Subject:
    """The networks of an `rnn` and an `encoder` artifact, on `device`, for inference."""
    network = load_rnn(rnn).to(device)
    check_vocabulary(rnn, network.architecture.vocabulary_size)
    if encoder is None:
        return Subject(network, None)
    teacher = load_teacher(encoder).to(device)
    check_vocabulary(encoder, teacher.architecture.vocabulary_size)
    try:
        config = TrainEncoderConfig(**encoder.manifest.config)
    except ValidationError as error:
        detail = error.errors()[0]
        key = ".".join(map(str, detail["loc"]))
        raise ArtifactError(f"{encoder.directory}: config: {key}: {detail['msg']}") from None
    return Subject(network, teacher, config.objective.future_length)
