"""Reads the batches of the next steps in threads while the current step computes."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self

from smtkit.training.protocols import BatchT, Sampler


class Prefetch(Generic[BatchT]):
    """A sampler that reads `readers` steps ahead, with one thread per step; 0: no threads.

    A step is read ahead for the same (part, parts) that `batch` is called with. An exception in a
    thread is raised by `batch` for the step that the thread was reading. Use it as a context
    manager: on exit, each thread finishes its current batch and ends.
    """

    def __init__(self, sampler: Sampler[BatchT], readers: int) -> None:
        self._sampler = sampler
        self._readers = readers
        # Starts no thread before the first `submit`.
        self._threads = ThreadPoolExecutor(max(readers, 1), thread_name_prefix="reader")
        self._pending: dict[tuple[int, int, int], Future[BatchT]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._pending.clear()

    def windows_of(self, step: int) -> list[int]:
        return self._sampler.windows_of(step)

    def batch(self, step: int, part: int = 0, parts: int = 1) -> BatchT:
        if not self._readers:
            return self._sampler.batch(step, part, parts)
        steps = range(step, step + self._readers + 1)
        for key in [key for key in self._pending if key[0] not in steps]:  # the caller jumped
            self._pending.pop(key).cancel()
        for ahead in steps:
            key = (ahead, part, parts)
            if key not in self._pending:
                self._pending[key] = self._threads.submit(self._sampler.batch, *key)
        return self._pending.pop((step, part, parts)).result()
