"""Weights in safetensors, with a JSON header. Nothing is pickled or unpickled."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from smtkit.errors import ArtifactError, InputOutputError
from smtkit.storage.files import atomic_file, named_errors, open_regular

MODEL = "model.safetensors"
_HEADER = "smtkit"
_DAMAGE = (SafetensorError, LookupError, TypeError, ValueError, RuntimeError, RecursionError)


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
        with open_regular(path) as file, named_errors(path):
            return decode_tensors(path, file.read(os.fstat(file.fileno()).st_size))
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{path}: the file is missing") from None


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises ArtifactError where a number in the weights of a file is not finite."""
    for name, tensor in tensors.items():
        # A finite sum, which is fast, shows that all are; large numbers can have an infinite one.
        if not (torch.isfinite(tensor.sum()) or torch.isfinite(tensor).all()):
            raise ArtifactError(f"{path}: tensor {name!r:.80}: infinite or not a number")


def decode_tensors(path: Path, content: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`load_tensors` of the `content` of a file, whose `path` messages name. Raises
    ArtifactError."""
    try:
        tensors = load(content)
        size = int.from_bytes(content[:8], "little")  # of the header, which `load` has checked
        metadata = json.loads(content[8 : 8 + size]).get("__metadata__", {})
        return tensors, json.loads(metadata[_HEADER])
    except _DAMAGE as error:
        reason = str(error).partition("\n")[0]
        raise ArtifactError(f"{path}: not weights of smtkit: {reason}") from None
