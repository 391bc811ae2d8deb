"""The networks of artifacts, for inference."""

from smtkit.errors import ArtifactError
from smtkit.networks.rnn import RecurrentNetwork
from smtkit.networks.teacher import LabelTeacher, Teacher
from smtkit.storage.artifact import Artifact


def load_teacher(encoder: Artifact) -> Teacher:
    """The teacher of an `encoder` artifact. Raises ArtifactError."""
    return Teacher.load_from(encoder).eval().requires_grad_(False)


def check_lineage(rnn: Artifact, encoder: Artifact, hint: str) -> None:
    """Raises ArtifactError, with `hint`, unless the RNN was trained on labels of this encoder."""
    parent = rnn.manifest.ancestor("encoder")
    if parent is None or parent.digest != encoder.manifest.digest:
        found = f"{parent.path} ({parent.digest[:8]})" if parent else "none"
        raise ArtifactError(
            f"{encoder.directory} ({encoder.manifest.digest[:8]}): not the encoder that "
            f"{rnn.directory} learned from: {found}",
            hint,
        )


def load_label_teacher(labels: Artifact) -> LabelTeacher:
    """The parts of the teacher in a `labels` artifact. Raises ArtifactError."""
    return LabelTeacher.load_from(labels).eval().requires_grad_(False)


def load_rnn(rnn: Artifact) -> RecurrentNetwork:
    """The network of an `rnn` artifact. Raises ArtifactError."""
    return RecurrentNetwork.load_from(rnn).eval().requires_grad_(False)
