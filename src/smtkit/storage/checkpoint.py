"""The record of a checkpoint."""

from pathlib import Path

from pydantic import Field, ValidationError

from smtkit.errors import ArtifactError
from smtkit.storage.files import read_record
from smtkit.storage.manifest import CHECKPOINT, SealedRecord

CHECKPOINT_RECORD = f"{CHECKPOINT}.json"
_HINT = "`overwrite` starts again from the first step"


class CheckpointRecord(SealedRecord):
    """`checkpoint.json`: which file holds the tensors, and how far the run has come."""

    file: str = Field(pattern=r"^checkpoint-[0-9]{9,}\.safetensors$")
    bytes: int = Field(ge=0)
    xxh3: str
    step: int = Field(ge=0)
    tokens: int = Field(ge=0)
    seconds: float = Field(ge=0, allow_inf_nan=False)
    metrics: str | None
    """Checksum of the metrics until here; None: there are none."""

    @classmethod
    def read(cls, run: Path) -> "CheckpointRecord | None":
        """The record in the folder of a run; None if there is none. Raises ArtifactError."""
        path = run / CHECKPOINT_RECORD
        try:
            record = cls.model_validate_json(read_record(path), strict=True)
        except FileNotFoundError:
            return None
        except ValidationError as error:
            detail = error.errors()[0]
            key = ".".join(map(str, detail["loc"]))
            message = f"{path}: damaged: {key or 'content'}: {detail['msg']}"
            raise ArtifactError(message.partition("\n")[0], _HINT) from None
        record = record.checked(path, _HINT)
        if record.file != f"checkpoint-{record.step:09d}.safetensors":
            raise ArtifactError(f"{path}: step {record.step} with file {record.file}", _HINT)
        return record
