"""Weights and training state in safetensors and JSON. Nothing is pickled or unpickled."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from smtkit.errors import ArtifactError
from smtkit.storage.files import hash_file, write_atomically
from smtkit.storage.tensors import load_tensors, save_tensors

_STATE = "checkpoint.json"


class TrainingState:
    """What a run needs to go on as if it had not stopped: one object, saved and loaded whole.

    `step` updates were made. The order of samples and all random numbers are functions of the seed
    and the step; `more` holds, in its buffers, what else of the past is needed.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        more: torch.nn.Module | None = None,
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.more = more or torch.nn.Module()
        self.step = 0
        self.tokens = 0
        self.seconds = 0.0

    def save(self, directory: Path) -> None:
        """Writes the state to `directory`; the state that was there stays valid until this is."""
        path = directory / f"checkpoint-{self.step:09d}.safetensors"
        save_tensors(path, self._tensors(), {})
        content = {
            "file": path.name,
            "xxh3": hash_file(path),
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }
        write_atomically(directory / _STATE, json.dumps(content, indent=2) + "\n")
        for stale in directory.glob("checkpoint-*.safetensors"):
            if stale != path:
                stale.unlink()

    def load(self, directory: Path) -> bool:
        """Takes over the state saved in `directory`, if there is one. Raises ArtifactError."""
        if not (directory / _STATE).exists():
            return False
        try:
            content = json.loads((directory / _STATE).read_text(encoding="utf-8"))
            path = directory / content["file"]
            whole = path.exists() and hash_file(path) == content["xxh3"]
            progress = content["step"], content["tokens"], content["seconds"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{directory / _STATE}: damaged: {error}", "--overwrite starts anew"
            ) from None
        if not whole:
            raise ArtifactError(f"{path}: damaged or missing", "--overwrite starts anew")
        tensors, _ = load_tensors(path)
        self.network.load_state_dict(_with_prefix(tensors, "network."))
        self.more.load_state_dict(_with_prefix(tensors, "more."))
        self._load_optimizer(_with_prefix(tensors, "optimizer."))
        self.step, self.tokens, self.seconds = progress
        return True

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"network.{name}": t for name, t in self.network.state_dict().items()}
        tensors |= {f"more.{name}": t for name, t in self.more.state_dict().items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": t for name, t in values.items()}
        return tensors

    def _load_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
