"""The networks of artifacts, for inference."""

from collections.abc import Sequence

from smtkit.config import Config
from smtkit.errors import ArtifactError, UsageError
from smtkit.networks.architecture import Architecture
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


def check_parts(config: Config, found: Architecture, parts: Sequence[str], why: str) -> None:
    """Raises UsageError where the config sets a key of `parts` to another value than `found`."""
    for part in parts:
        for key, wanted in getattr(config, part).model_dump(exclude_unset=True).items():
            value = getattr(getattr(found, part), key)
            if wanted != value:
                raise UsageError(
                    f"`{part}.{key}` = {wanted!r}: {why} {part} whose {key} is {value!r}",
                    f"leave `{part}.{key}` out",
                )
