"""Weights in safetensors, with a JSON header. Nothing is pickled or unpickled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from smtkit.errors import ArtifactError, InputOutputError
from smtkit.storage.files import atomic_file

MODEL = "model.safetensors"
_HEADER = "smtkit"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Writes `tensors` and, as JSON in the file's metadata, `header`. Raises InputOutputError.

    The file appears under the name `path` when it is complete.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with atomic_file(path) as temporary:
            # One key: safetensors writes its metadata in no fixed order.
            save_file(on_cpu, temporary, {_HEADER: json.dumps(header, sort_keys=True)})
    except SafetensorError as error:
        raise InputOutputError(f"{path}: {error}") from None


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the header of a file of `save_tensors`. Raises ArtifactError."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_HEADER])
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not weights of smtkit: {error}") from None
