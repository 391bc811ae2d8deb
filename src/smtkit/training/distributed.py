"""The ranks of a run: processes that torchrun or `nproc` started, and their communication.

A single process is one rank and communicates with nobody. Tensors on a CPU travel over gloo,
tensors on GPUs over nccl; other values travel as JSON over gloo. Nothing is pickled.
"""

import contextlib
import gc
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from smtkit.config import Config, Device
from smtkit.errors import LostRankError, UsageError
from smtkit.storage.manifest import FileEntry, Manifest
from smtkit.storage.remote import Remote
from smtkit.storage.run import Run

_CPU = torch.device("cpu")
# Long, because a rank that has finished waits for one that still writes shards. A rank that died
# is noticed by its broken connection.
_TIMEOUT = timedelta(days=7)
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@contextlib.contextmanager
def lost_rank_errors() -> Iterator[None]:
    """Turns errors of torch.distributed into LostRankError, in a block or a decorated function.

    gloo raises plain RuntimeError and puts its name in the message; nccl and the store raise
    DistError. Other errors, such as those of a backward pass, are not changed.
    """
    try:
        yield
    except RuntimeError as error:
        message = str(error).strip().partition("\n")[0]
        if not isinstance(error, dist.DistError) and "gloo" not in message.lower():
            raise
        raise LostRankError(f"another rank has ended or cannot be reached: {message}") from None


@dataclass(frozen=True)
class Ranks:
    """This process as rank `rank` of `size`, computing on `device`.

    All ranks must call the methods below, in the same order. They raise LostRankError where
    another rank has ended.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = _CPU

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @lost_rank_errors()
    def sum_tensors(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """All-reduces tensors of one dtype and device in one operation.

        Their shapes must be equal on all ranks. The results are views of one tensor.
        """
        if self.size == 1:
            return tensors
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        dist.all_reduce(flat)
        pieces = flat.split([tensor.numel() for tensor in tensors])
        return [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]

    def sum_counts(self, counts: Mapping[str, int]) -> dict[str, int]:
        """All-reduces integers, whose names must be the same on all ranks."""
        if self.size == 1:
            return dict(counts)
        names = sorted(counts)
        (totals,) = self.sum_tensors([torch.tensor([counts[name] for name in names])])
        return dict(zip(names, map(int, totals.tolist()), strict=True))

    @lost_rank_errors()
    def broadcast(self, value: Any, sender: int = 0) -> Any:
        """The `value` that rank `sender` passes; it must be JSON-serializable."""
        if self.size == 1:
            return value
        content = json.dumps(value).encode() if self.rank == sender else b""
        size = torch.tensor([len(content)])
        dist.broadcast(size, sender)
        data = torch.frombuffer(bytearray(content or int(size)), dtype=torch.uint8)
        dist.broadcast(data, sender)
        return json.loads(data.numpy().tobytes())

    def gather(self, value: Any) -> list[Any]:
        """The JSON-serializable values that all ranks pass, by rank, on every rank."""
        return [self.broadcast(value, sender) for sender in range(self.size)]

    def barrier(self) -> None:
        """Returns once every rank has called it."""
        self.sum_counts({"arrived": 1})


ALONE = Ranks()


def join(device: Device) -> Ranks:
    """Connects this process to the ranks that torchrun or `nproc` started; alone, it is rank 0.

    Each rank takes the CUDA device of its number on the machine. Raises UsageError where there is
    no such device, and LostRankError where other ranks do not connect.
    """
    if "RANK" not in os.environ:
        return Ranks(device=choose_device(device))
    try:
        rank, size, local_rank = (int(os.environ[name]) for name in _VARIABLES)
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"RANK is set, but not all of {', '.join(_VARIABLES)} are numbers: {error}",
            "torchrun sets them; without torchrun, unset RANK",
        ) from None
    own = choose_device(device, local_rank)
    if size > 1 and not dist.is_initialized():
        if own.type == "cuda":
            torch.cuda.set_device(own)
        backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
        with lost_rank_errors():
            dist.init_process_group(backend, timeout=_TIMEOUT)
    return Ranks(rank, size, own)


def leave() -> None:
    """Disconnects from the other ranks, once all of them have finished communicating."""
    if dist.is_initialized():
        Ranks(dist.get_rank(), dist.get_world_size()).barrier()
        dist.destroy_process_group()
        # Reference cycles hold the group. Its threads must end before the interpreter does: at exit
        # they would be ended while they run C++ code, and abort the process.
        gc.collect()


def choose_device(name: Device, local_rank: int | None = None) -> torch.device:
    """The torch device of a config's `device`; `auto` is CUDA where it is available.

    Raises UsageError where `cuda` was requested but is not available, and where the machine has
    fewer CUDA devices than ranks.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("`device` cuda: no CUDA device is available here, allowed: cpu, auto")
    if name == "cpu" or not torch.cuda.is_available():
        return _CPU
    if local_rank is None:
        return torch.device("cuda")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise UsageError(
            f"rank {local_rank} of this machine: each rank needs a CUDA device, found {count}",
            f"allowed: up to {count} ranks on this machine, or `device` = cpu",
        )
    return torch.device("cuda", local_rank)


class SharedRun(Run):
    """A `Run` that only rank 0 opens and commits; the other ranks receive its folder and result.

    Every rank may write files to `directory` and `add` them. All ranks must see the directory,
    except for an artifact at a URI: then each machine has a local one.
    """

    def __init__(self, ranks: Ranks, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ranks = ranks

    def __enter__(self) -> Self:
        opened = None
        if self._ranks.is_first:
            super().__enter__()
            finished = self.finished.model_dump(mode="json") if self.finished else None
            directory = None if finished else self.directory.name
            opened = {"finished": finished, "directory": directory}
        opened = self._ranks.broadcast(opened)
        if opened["finished"]:
            self.finished = Manifest.model_validate(opened["finished"])
        elif not self._ranks.is_first:
            self.join(opened["directory"])
        return self

    def _discard(self) -> None:
        if self._ranks.is_first:
            super()._discard()
        else:
            self._store.discard_uploads()

    def commit(self, statistics: Mapping[str, Any], config: Config | None = None) -> Manifest:
        """Commits the files that any rank added. All ranks must call it; rank 0 commits."""
        own = [entry.model_dump() for entry in self._entries.values()]
        entries = [FileEntry.model_validate(e) for some in self._ranks.gather(own) for e in some]
        self._entries = {entry.logical_name: entry for entry in entries}
        content = None
        if self._ranks.is_first:
            content = super().commit(statistics, config).model_dump(mode="json")
        self.finished = Manifest.model_validate(self._ranks.broadcast(content))
        if isinstance(self.location, Remote):
            self._store.collect(set())
        return self.finished
