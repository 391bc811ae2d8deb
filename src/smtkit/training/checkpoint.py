"""Checkpoints: the state of a training run in safetensors and JSON."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from smtkit.errors import ArtifactError
from smtkit.storage.checkpoint import CHECKPOINT_RECORD, CheckpointRecord
from smtkit.storage.files import hash_file, read_verified, write_atomically
from smtkit.storage.manifest import METRICS
from smtkit.storage.tensors import check_finite, decode_tensors, save_tensors
from smtkit.training.distributed import ALONE, Ranks
from smtkit.training.metrics import MetricsFile, Tally
from smtkit.training.parallel import full_tensors, like_parameter

_NETWORK, _OPTIMIZER, _SUM, _COUNT = "network.", "optimizer.", "sum.", "count."
_HINT = "`overwrite` starts again from the first step"


def _check_shapes(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raises ArtifactError where tensors of network and method are not `expected`."""
    for name in sorted(expected.keys() | found.keys()):
        own, tensor = expected.get(name), found.get(name)
        if name.startswith((_OPTIMIZER, _SUM, _COUNT)):
            continue
        if own is None or tensor is None or own.shape != tensor.shape or own.dtype != tensor.dtype:
            raise ArtifactError(f"{path}: tensor {name!r:.80} is not that of this run", _HINT)


class TrainingState:
    """Everything that changes while a run trains: saved in one call, loaded in one call.

    `step` updates have been made, on `tokens` tokens, in `seconds`. The order of samples and all
    random numbers are functions of the seed and the step, so that a run that loads the state
    continues bit for bit. `method_state` is a module whose buffers are saved too: what the
    method remembers between updates. `tally` has the sums since the last record of metrics, of some
    of `terms`.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        method_state: nn.Module | None = None,
        terms: Collection[str] = (),
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.method_state = method_state or nn.Module()
        self.terms = terms
        self.tally = Tally()
        self.step = 0
        self.tokens = 0
        self.seconds = 0.0
        self.metrics: str | None = None

    def save(self, directory: Path, ranks: Ranks = ALONE) -> None:
        """Writes the state to `directory`; a state saved there before stays valid until the end.

        All ranks must call it, since each may hold a shard of the tensors; rank 0 writes.
        """
        tensors = full_tensors(self._tensors(), ranks)
        if not ranks.is_first:
            return
        path = directory / f"checkpoint-{self.step:09d}.safetensors"
        save_tensors(path, tensors, {})
        record = CheckpointRecord(
            file=path.name,
            bytes=path.stat().st_size,
            xxh3=hash_file(path),
            step=self.step,
            tokens=self.tokens,
            seconds=self.seconds,
            metrics=MetricsFile(directory / METRICS).checksum(),
        )
        write_atomically(directory / CHECKPOINT_RECORD, record.text())
        for stale in directory.glob("checkpoint-*.safetensors"):
            if stale != path:
                stale.unlink()

    def load(self, directory: Path) -> bool:
        """Restores the state saved in `directory`; returns False where there is none.

        Raises ArtifactError where it is damaged, not of this network, or not finite; the state is
        then unchanged.
        """
        record = CheckpointRecord.read(directory)
        if record is None:
            return False
        path = directory / record.file
        content = read_verified(path, record.bytes, record.xxh3, record=CHECKPOINT_RECORD)
        tensors, _ = decode_tensors(path, content)
        own = self._tensors()
        network = {name: t for name, t in tensors.items() if name.startswith(_NETWORK)}
        _check_shapes(path, own, tensors)
        check_finite(path, network)
        parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, tensor in tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = tensor
        self._check_optimizer(path, parts["optimizer"])
        self._check_tally(path, parts["sum"], parts["count"])
        state = self.network.state_dict()
        self.network.load_state_dict(
            {name: like_parameter(t, state[name]) for name, t in parts["network"].items()}
        )
        self._load_optimizer(parts["optimizer"])
        self.method_state.load_state_dict(parts["more"])
        device = self._parameters()[0].device
        self.tally = Tally(
            {name: total.to(device) for name, total in parts["sum"].items()},
            Counter({name: int(count) for name, count in parts["count"].items()}),
        )
        self.step, self.tokens, self.seconds = record.step, record.tokens, record.seconds
        self.metrics = record.metrics
        return True

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"network.{name}": t for name, t in self.network.state_dict().items()}
        tensors |= {f"more.{name}": t for name, t in self.method_state.state_dict().items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": t for name, t in values.items()}
        tensors |= {f"{_SUM}{name}": total for name, total in self.tally.sums.items()}
        counts = self.tally.counts.items()
        tensors |= {f"{_COUNT}{name}": torch.tensor(count) for name, count in counts}
        return tensors

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _check_optimizer(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Raises ArtifactError where a tensor is no state of a parameter."""
        shapes = {str(index): p.shape for index, p in enumerate(self._parameters())}
        for key, tensor in tensors.items():
            index, _, name = key.partition(".")
            expected = {"step": torch.Size(()), "exp_avg": shapes.get(index)}
            expected["exp_avg_sq"] = expected["exp_avg"]
            if index not in shapes or tensor.shape != expected.get(name):
                raise ArtifactError(f"{path}: tensor 'optimizer.{key:.80}': of no parameter", _HINT)

    def _check_tally(
        self, path: Path, sums: Mapping[str, Tensor], counts: Mapping[str, Tensor]
    ) -> None:
        """Raises ArtifactError where a tensor is no sum or count of a term."""
        for part, values in ((_SUM, sums), (_COUNT, counts)):
            for name, value in values.items():
                fits = value.is_floating_point() if part == _SUM else value.dtype == torch.int64
                if name not in self.terms or value.shape or not fits:
                    raise ArtifactError(f"{path}: tensor '{part}{name:.80}': of no term", _HINT)

    def _load_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            index, _, name = key.partition(".")
            parameter = self._parameters()[int(index)]
            state.setdefault(int(index), {})[name] = like_parameter(tensor, parameter)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
