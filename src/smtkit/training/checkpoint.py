"""Checkpoints: the state of a training run in safetensors and JSON."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from smtkit.errors import ArtifactError
from smtkit.storage.files import hash_file, write_atomically
from smtkit.storage.tensors import load_tensors, save_tensors
from smtkit.training.distributed import ALONE, Ranks
from smtkit.training.parallel import full_tensors, like_parameter

_RECORD = "checkpoint.json"
_HINT = "`overwrite` starts again from the first step"


class TrainingState:
    """Everything that changes while a run trains: saved in one call, loaded in one call.

    `step` updates have been made, on `tokens` tokens, in `seconds`. The order of samples and all
    random numbers are functions of the seed and the step, so that a run that loads the state
    continues bit for bit. `method_state` is a module whose buffers are saved too: what the
    method remembers between updates.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        method_state: nn.Module | None = None,
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.method_state = method_state or nn.Module()
        self.step = 0
        self.tokens = 0
        self.seconds = 0.0

    def save(self, directory: Path, ranks: Ranks = ALONE) -> None:
        """Writes the state to `directory`; a state saved there before stays valid until the end.

        All ranks must call it, since each may hold a shard of the tensors; rank 0 writes.
        """
        tensors = full_tensors(self._tensors(), ranks)
        if not ranks.is_first:
            return
        path = directory / f"checkpoint-{self.step:09d}.safetensors"
        save_tensors(path, tensors, {})
        record = {
            "file": path.name,
            "xxh3": hash_file(path),
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }
        write_atomically(directory / _RECORD, json.dumps(record, indent=2) + "\n")
        for stale in directory.glob("checkpoint-*.safetensors"):
            if stale != path:
                stale.unlink()

    def load(self, directory: Path) -> bool:
        """Restores the state saved in `directory`; returns False where there is none.

        Raises ArtifactError where it is damaged.
        """
        path = directory / _RECORD
        if not path.exists():
            return False
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            file = directory / record["file"]
            is_whole = file.exists() and hash_file(file) == record["xxh3"]
            progress = record["step"], record["tokens"], record["seconds"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path}: damaged: {error}", _HINT) from None
        if not is_whole:
            raise ArtifactError(f"{file}: damaged or missing", _HINT)
        tensors, _ = load_tensors(file)
        parts: dict[str, dict[str, Tensor]] = {"network": {}, "optimizer": {}, "more": {}}
        for key, tensor in tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = tensor
        own = self.network.state_dict()
        self.network.load_state_dict(
            {name: like_parameter(t, own.get(name)) for name, t in parts["network"].items()}
        )
        self._load_optimizer(parts["optimizer"])
        self.method_state.load_state_dict(parts["more"])
        self.step, self.tokens, self.seconds = progress
        return True

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"network.{name}": t for name, t in self.network.state_dict().items()}
        tensors |= {f"more.{name}": t for name, t in self.method_state.state_dict().items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": t for name, t in values.items()}
        return tensors

    def _load_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = like_parameter(tensor, parameters[int(index)])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
