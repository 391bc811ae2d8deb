"""The ranks of a run: processes that torchrun started, and what they add up and tell each other.

Without torchrun there is one, and nothing is exchanged. Gradients travel over gloo on a CPU and
over nccl between GPUs, all else over gloo; what is no tensor travels as JSON, nothing is pickled.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
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
# A rank that died is found by its broken connection, not by this: one that is done waits as long
# for another that still has shards to write.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Ranks:
    """Rank `rank` of `size`, on `device`. What all ranks call, they call in the same order."""

    rank: int = 0
    size: int = 1
    device: torch.device = _CPU

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum_together(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Every tensor, summed over ranks, in one exchange: of one type and device, and of the same
        shapes on all ranks. The results are views of one tensor."""
        if self.size == 1:
            return tensors
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        with _company():
            dist.all_reduce(flat)
        pieces = flat.split([tensor.numel() for tensor in tensors])
        return [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]

    def sum_counts(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Integers under the same names on all ranks, each summed over ranks."""
        if self.size == 1:
            return dict(counts)
        names = sorted(counts)
        (totals,) = self.sum_together([torch.tensor([counts[name] for name in names])])
        return dict(zip(names, map(int, totals.tolist()), strict=True))

    def broadcast(self, value: Any, source: int = 0) -> Any:
        """What rank `source` calls it with; all that JSON can say."""
        if self.size == 1:
            return value
        content = json.dumps(value).encode() if self.rank == source else b""
        size = torch.tensor([len(content)])
        with _company():
            dist.broadcast(size, source)
            data = torch.zeros(int(size), dtype=torch.uint8)
            if self.rank == source:
                data.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
            dist.broadcast(data, source)
        return json.loads(data.numpy().tobytes())

    def gather(self, value: Any) -> list[Any]:
        """What every rank calls it with, in the order of ranks, on all of them."""
        return [self.broadcast(value, source) for source in range(self.size)]

    def barrier(self) -> None:
        """Returns when all ranks have come here."""
        self.sum_counts({"here": 1})


ALONE = Ranks()


def join(device: Device) -> Ranks:
    """This process among the ranks that torchrun, or `--nproc`, started; or the only one.

    Each takes the CUDA device of its number on the machine. Raises UsageError where there is none,
    and LostRankError where the others do not come.
    """
    if "RANK" not in os.environ:
        return Ranks(device=choose_device(device))
    try:
        rank, size, local_rank = (int(os.environ[name]) for name in _VARIABLES)
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"RANK is set, and of {', '.join(_VARIABLES)} not all are numbers: {error}",
            "torchrun sets them; without it, unset RANK",
        ) from None
    own = choose_device(device, local_rank)
    if size > 1 and not dist.is_initialized():
        if own.type == "cuda":
            torch.cuda.set_device(own)
        backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
        with _company():
            dist.init_process_group(backend, timeout=_PATIENCE)
    return Ranks(rank, size, own)


_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def leave() -> None:
    """Waits for the other ranks, so that none is missed by one that still reads from it, and parts
    from them."""
    if dist.is_initialized():
        Ranks(dist.get_rank(), dist.get_world_size()).barrier()
        dist.destroy_process_group()


def choose_device(name: Device, local_rank: int | None = None) -> torch.device:
    """`auto`: CUDA where there is one. Raises UsageError where `cuda` is asked for in vain, or
    where the machine has fewer devices than ranks."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: no CUDA device is available here, allowed: cpu, auto")
    if name == "cpu" or not torch.cuda.is_available():
        return _CPU
    if local_rank is None:
        return torch.device("cuda")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise UsageError(
            f"rank {local_rank} of this machine: a rank takes a CUDA device, found {count}",
            f"allowed: up to {count} ranks here, or --device cpu",
        )
    return torch.device("cuda", local_rank)


class SharedRun(Run):
    """A `Run` that the first rank alone holds; the others learn where it is and what became of it.

    Every rank may write files to `directory`, and `add` them. All must see it, unless the artifact
    is at a URI: then each machine has one of its own.
    """

    def __init__(self, ranks: Ranks, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ranks = ranks

    def __enter__(self) -> Self:
        found = None
        if self._ranks.is_first:
            super().__enter__()
            finished = self.finished.model_dump(mode="json") if self.finished else None
            found = {
                "finished": finished,
                "directory": None if finished else self.directory.name,
                "uploaded": {n: entry.model_dump() for n, entry in self._store.uploaded.items()},
            }
        found = self._ranks.broadcast(found)
        if found["finished"]:
            self.finished = Manifest.model_validate(found["finished"])
        elif not self._ranks.is_first:
            self._join(found["directory"], found["uploaded"])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._ranks.is_first:
            super().__exit__(kind, error, traceback)
        elif error is not None and self.finished is None and not self._kept:
            self._store.discard_uploads()

    def _join(self, directory: str, uploaded: Mapping[str, Any]) -> None:
        self.directory = self._store.directory / directory
        entries = {name: FileEntry.model_validate(entry) for name, entry in uploaded.items()}
        self._store.join(self.directory, entries)

    def commit(self, statistics: Mapping[str, Any], config: Config | None = None) -> Manifest:
        """As of `Run`, with the files that any rank added, when all have come here."""
        own = [entry.model_dump() for entry in self._entries.values()]
        everyone = self._ranks.gather(own)
        self._entries = {
            entry.logical_name: entry
            for some in everyone
            for entry in map(FileEntry.model_validate, some)
        }
        content = None
        if self._ranks.is_first:
            content = super().commit(statistics, config).model_dump(mode="json")
        self.finished = Manifest.model_validate(self._ranks.broadcast(content))
        if isinstance(self.location, Remote):
            self._store.collect(set())
        return self.finished


@contextlib.contextmanager
def _company() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of torch.distributed: it has no narrower one for all backends
        reason = str(error).strip().partition("\n")[0]
        raise LostRankError(f"another rank has ended, or is out of reach: {reason}") from None
