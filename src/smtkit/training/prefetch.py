"""Batches of the next steps, read by threads while this one computes: a cache, nothing more."""

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

BatchT = TypeVar("BatchT")
BatchT_co = TypeVar("BatchT_co", covariant=True)


class PureSampler(Protocol[BatchT_co]):
    """`batch` is a pure function, which threads may call side by side."""

    def batch(self, step: int, part: int = 0, parts: int = 1) -> BatchT_co: ...


class Prefetch(Generic[BatchT]):
    """A source that reads the slices it was asked for of the next `readers` steps ahead, in so many
    threads; with none, it is the source itself.

    What a thread raises, `batch` raises for the step that it was reading. Use as a context manager:
    when it ends, for whatever reason, so do the threads, each after the batch that it is at.
    """

    def __init__(self, source: PureSampler[BatchT], readers: int) -> None:
        self._source = source
        self._readers = readers
        self._pending: dict[tuple[int, int, int], Future[BatchT]] = {}

    def __enter__(self) -> Self:
        if self._readers:
            self._threads = ThreadPoolExecutor(self._readers, thread_name_prefix="reader")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._readers:
            self._threads.shutdown(cancel_futures=True)
            self._pending.clear()

    def batch(self, step: int, part: int = 0, parts: int = 1) -> BatchT:
        if not self._readers:
            return self._source.batch(step, part, parts)
        self._forget_all_but(range(step, step + self._readers + 1))
        for ahead in range(step, step + self._readers + 1):
            key = (ahead, part, parts)
            if key not in self._pending:
                self._pending[key] = self._threads.submit(self._source.batch, *key)
        return self._pending.pop((step, part, parts)).result()

    def _forget_all_but(self, steps: range) -> None:
        """What was read ahead in vain: the caller has gone elsewhere."""
        for key in [key for key in self._pending if key[0] not in steps]:
            self._pending.pop(key).cancel()
