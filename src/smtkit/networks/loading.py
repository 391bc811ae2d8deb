"""The networks of artifacts, for inference."""

from smtkit.networks.rnn import RecurrentNetwork
from smtkit.networks.teacher import LabelTeacher, Teacher
from smtkit.storage.artifact import Artifact


def load_teacher(encoder: Artifact) -> Teacher:
    """The teacher of an `encoder` artifact. Raises ArtifactError."""
    return Teacher.load_from(encoder).eval().requires_grad_(False)


def load_label_teacher(labels: Artifact) -> LabelTeacher:
    """The parts of the teacher in a `labels` artifact. Raises ArtifactError."""
    return LabelTeacher.load_from(labels).eval().requires_grad_(False)


def load_rnn(rnn: Artifact) -> RecurrentNetwork:
    """The network of an `rnn` artifact. Raises ArtifactError."""
    return RecurrentNetwork.load_from(rnn).eval().requires_grad_(False)
