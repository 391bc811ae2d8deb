"""Reads label windows with other libraries; run by benchmarks/labels.py.

With the Python of an environment that has them,

    python label_rivals.py NAME DIRECTORY

writes `DIRECTORY/windows.npy`, (N, T + 1, Z) float16, in the library's own format; then, for every
input line "WORKERS BATCH ORDER", reads everything once and prints a line of JSON. WORKERS is the
number of reading processes; with 0 this process reads.
"""

import importlib.machinery
import json
import os
import resource
import sys
import time
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

SHARD_BYTES = 2**26


def windows(directory: Path) -> np.ndarray:
    return np.load(directory / "windows.npy", mmap_mode="r")


class Mosaic:
    """MosaicML Streaming. It imports torchvision, which is not used here: stubs stand in for it."""

    @staticmethod
    def streaming() -> Any:
        names = ("", ".datasets", ".transforms", ".transforms.functional")
        for name in (f"torchvision{end}" for end in names):
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(sys.modules["torchvision.datasets"])["VisionDataset"] = object
        vars(sys.modules["torchvision.transforms.functional"])["to_tensor"] = None
        import streaming

        return streaming

    def write(self, directory: Path) -> None:
        content = windows(directory)
        shape = ",".join(map(str, content.shape[1:]))
        with self.streaming().MDSWriter(
            out=str(directory / "mosaic"),
            columns={"memory": f"ndarray:float16:{shape}"},
            size_limit=SHARD_BYTES,
        ) as writer:
            for window in content:
                writer.write({"memory": np.asarray(window)})

    def read(self, directory: Path, workers: int, batch: int, shuffled: bool) -> Iterable[Any]:
        streaming = self.streaming()
        streaming.base.util.clean_stale_shared_memory()
        data = streaming.StreamingDataset(
            local=str(directory / "mosaic"), shuffle=shuffled, batch_size=batch
        )
        for found in DataLoader(data, batch_size=batch, num_workers=workers):
            yield found["memory"]


class LitData:
    def write(self, directory: Path) -> None:
        import litdata

        litdata.optimize(
            fn=_Window(directory),
            inputs=list(range(len(windows(directory)))),
            output_dir=str(directory / "litdata"),
            chunk_bytes=SHARD_BYTES,
            num_workers=1,
        )

    def read(self, directory: Path, workers: int, batch: int, shuffled: bool) -> Iterable[Any]:
        import litdata

        data = litdata.StreamingDataset(str(directory / "litdata"), shuffle=shuffled)
        yield from litdata.StreamingDataLoader(data, batch_size=batch, num_workers=workers)


class _Window:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __call__(self, number: int) -> torch.Tensor:
        return torch.from_numpy(np.array(windows(self._directory)[number]))


class HuggingFace:
    """Hugging Face datasets."""

    def write(self, directory: Path) -> None:
        import datasets

        content = windows(directory)
        features = datasets.Features(
            {
                "memory": datasets.Sequence(
                    datasets.Value("float16"), length=int(np.prod(content.shape[1:]))
                )
            }
        )
        with datasets.arrow_writer.ArrowWriter(
            path=str(directory / "datasets.arrow"), features=features
        ) as writer:
            for window in content:
                writer.write({"memory": window.reshape(-1)})
            writer.finalize()

    def read(self, directory: Path, workers: int, batch: int, shuffled: bool) -> Iterable[Any]:
        import datasets

        data = datasets.Dataset.from_file(str(directory / "datasets.arrow"))
        if shuffled:
            data = data.shuffle(seed=0)
        if workers:
            loader = DataLoader(data.with_format("torch"), batch_size=batch, num_workers=workers)
        else:
            loader = data.with_format("numpy").iter(batch)
        for found in loader:
            yield found["memory"]


RIVALS = {"mosaic": Mosaic(), "litdata": LitData(), "datasets": HuggingFace()}


def cpu_seconds() -> float:
    """CPU seconds of this process and of its ended children."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def timed(batches: Iterable[Any]) -> dict[str, float]:
    """Bytes read, wall seconds, CPU seconds."""
    started, cpu, size = time.perf_counter(), cpu_seconds(), 0
    for batch in batches:
        size += batch.nbytes
        del batch  # before the next one is read, so that its memory can be reused
    seconds = time.perf_counter() - started
    return {"bytes": size, "seconds": seconds, "cpu": cpu_seconds() - cpu}


def main() -> None:
    torch.set_num_threads(1)
    name, directory = sys.argv[1:]
    rival = RIVALS[name]
    rival.write(Path(directory))
    print("written", flush=True)
    for line in sys.stdin:
        workers, batch, order = line.split()
        found = rival.read(Path(directory), int(workers), int(batch), order == "shuffled")
        print(json.dumps(timed(found)), flush=True)
    os._exit(0)  # some libraries have threads that end slowly


if __name__ == "__main__":
    main()
