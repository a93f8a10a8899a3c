"""Concurrent callers of a package: their inputs are preprocessed in their own threads and answered in common batches."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.errors import MmcompressError, UsageError
from mmcompress.families import Feeds, Processor, join_rows

BATCH = 16
"""Examples at most that are answered together: beyond it processors gain nothing, and the first waits longer."""
Answer = Callable[[str, Feeds], NDArray[Any]]
"""Answers a request for expanded arrays: one row per example."""


@dataclass(eq=False)
class _Waiting:
    """Inputs of one caller, preprocessed."""

    request: str
    compact: Feeds
    count: int
    answer: Future[NDArray[Any]]


class _Kept:
    """Keeps what is raised inside for those who wait for an answer: nobody else could tell them."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __enter__(self) -> _Kept:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.error = error
        return True


class Batcher:
    """Answers what callers ask, several callers at a time, with so many calls of the engine at once.

    Preprocessing happens in the callers' threads, beside the engine. While the engine is free a caller runs it in its own
    thread; what comes while it is busy waits, and goes into a common batch, which a worker thread runs. Arrays of callers of
    the same request are joined, so that an answer may differ from that of a call alone as far as the runtime's differ
    between batch sizes (about 1e-6 of embeddings; tokens and classes are the same).
    """

    def __init__(self, processor: Processor, answer: Answer, workers: int) -> None:
        self._processor = processor
        self._answer = answer
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._free = workers
        """Calls of the engine that may begin."""
        self._threads = [
            threading.Thread(target=self._work, name=f"mmcompress-worker-{index}", daemon=True)
            for index in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def ask(self, request: str, columns: Mapping[str, Sequence[Any]], size: int) -> NDArray[Any]:
        """Rows for columns: by the caller's own thread where the engine is free and they fit into one batch.

        Raises:
            InputError: a value cannot be read.
            UsageError: the package is closed.
        """
        if len(next(iter(columns.values()))) > min(size, BATCH):
            return self.submit(request, columns, size)()
        item = self._prepared(request, columns)
        with self._changed:
            self._refuse_closed()
            mine: list[_Waiting] = []
            if self._free:
                self._free -= 1
                mine = self._take([item])
            else:
                self._queue.append(item)
        if mine:
            self._finish(mine)
        return item.answer.result()

    def submit(self, request: str, columns: Mapping[str, Sequence[Any]], batch: int) -> Callable[[], NDArray[Any]]:
        """Preprocess columns a batch at a time for the workers to answer; gives a function that waits for the rows.

        Raises:
            InputError: a value cannot be read.
            UsageError: the package is closed.
        """
        count = len(next(iter(columns.values())))
        size = min(batch, BATCH)
        parts = []
        for start in range(0, count, size):
            item = self._prepared(request, {name: column[start : start + size] for name, column in columns.items()})
            with self._changed:
                self._refuse_closed()
                self._queue.append(item)
                self._changed.notify()
            parts.append(item.answer)
        return lambda: join_rows([part.result() for part in parts])

    def close(self) -> None:
        """Answer what was handed in, then end the workers."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _prepared(self, request: str, columns: Mapping[str, Sequence[Any]]) -> _Waiting:
        return _Waiting(request, self._processor.compact(columns), len(next(iter(columns.values()))), Future())

    def _refuse_closed(self) -> None:
        if self._closed:
            raise UsageError("the package is closed")

    def _work(self) -> None:
        while batch := self._next():
            self._finish(batch)

    def _next(self) -> list[_Waiting]:
        """What is answered next: the first that waits, and what goes with it; nothing once closed and empty."""
        with self._changed:
            while not (self._queue and self._free):
                if self._closed and not self._queue:
                    return []
                self._changed.wait()
            self._free -= 1
            return self._take([])

    def _take(self, batch: list[_Waiting]) -> list[_Waiting]:
        """Move what fits from the queue to a batch: the same request with the same arrays, as far as there is room."""
        rest: deque[_Waiting] = deque()
        room = BATCH - sum(item.count for item in batch)
        while self._queue:
            item = self._queue.popleft()
            if not batch or (item.count <= room and _goes_with(item, batch[0])):
                batch.append(item)
                room -= item.count
            else:
                rest.append(item)
        self._queue.extend(rest)
        return batch

    def _finish(self, batch: list[_Waiting]) -> None:
        """Answer a batch, then let the next call of the engine begin."""
        try:
            self._answered(batch)
        finally:
            with self._changed:
                self._free += 1
                if self._closed:
                    self._changed.notify_all()
                elif self._queue:
                    self._changed.notify()

    def _answered(self, batch: list[_Waiting]) -> None:
        """Answer a batch; where it fails, each of it alone, so that only those get an error whose inputs are wrong."""
        rows: NDArray[Any] | None = None
        with _Kept() as failed:
            rows = self._answer_all(batch)
        if rows is None:
            assert failed.error is not None
            if isinstance(failed.error, MmcompressError) and len(batch) > 1:
                for item in batch:
                    self._answered([item])
            else:
                for item in batch:
                    item.answer.set_exception(failed.error)
            return
        start = 0
        for item in batch:
            item.answer.set_result(rows[start : start + item.count])
            start += item.count

    def _answer_all(self, batch: list[_Waiting]) -> NDArray[Any]:
        compact = batch[0].compact
        if len(batch) > 1:
            compact = {name: np.concatenate([item.compact[name] for item in batch]) for name in compact}
        return self._answer(batch[0].request, self._processor.expand(compact))


def _goes_with(item: _Waiting, first: _Waiting) -> bool:
    """Whether arrays can be joined: the same request, names, types and sizes but for the number of examples."""
    if item.request != first.request or item.compact.keys() != first.compact.keys():
        return False
    pairs = ((item.compact[name], first.compact[name]) for name in first.compact)
    return all(a.dtype == b.dtype and a.shape[1:] == b.shape[1:] for a, b in pairs)
