"""Concurrent callers of a package: their inputs are preprocessed in their own threads and answered in common batches."""

from __future__ import annotations

import threading
import time
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

WAIT_SECONDS = 0.001
"""How long a batch waits for a caller that was there a moment ago; one caller alone never waits."""
BATCH = 16
"""Examples at most that are answered together: beyond it processors gain nothing, and the first waits longer."""
Answer = Callable[[str, Feeds], NDArray[Any]]
"""Answers a request for expanded arrays: one row per example."""


@dataclass
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
    """Worker threads that answer what callers hand in, several callers at a time.

    Preprocessing happens in the callers' threads, beside the engine. Arrays of callers of the same request are joined,
    so that an answer may differ from that of a call alone as far as the runtime's differ between batch sizes (about
    1e-6 of embeddings; tokens and classes are the same).
    """

    def __init__(self, processor: Processor, answer: Answer, workers: int) -> None:
        self._processor = processor
        self._answer = answer
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._crowd = 0
        """Callers in the batch before: more than one means that others are about to come."""
        self._threads = [
            threading.Thread(target=self._work, name=f"mmcompress-worker-{index}", daemon=True)
            for index in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, request: str, columns: Mapping[str, Sequence[Any]], batch: int) -> Callable[[], NDArray[Any]]:
        """Preprocess columns a batch at a time and hand them in; gives a function that waits for the rows.

        Raises:
            InputError: a value cannot be read.
            UsageError: the package is closed.
        """
        count = len(next(iter(columns.values())))
        size = min(batch, BATCH)
        parts = []
        for start in range(0, count, size):
            chunk = {name: column[start : start + size] for name, column in columns.items()}
            compact = self._processor.compact(chunk)
            waiting = _Waiting(request, compact, min(size, count - start), Future())
            with self._changed:
                if self._closed:
                    raise UsageError("the package is closed")
                self._queue.append(waiting)
                self._changed.notify()
            parts.append(waiting.answer)
        return lambda: join_rows([part.result() for part in parts])

    def close(self) -> None:
        """Answer what was handed in, then end the workers."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while batch := self._next():
            self._finish(batch)

    def _next(self) -> list[_Waiting]:
        """What is answered next: the first that waits, and what goes with it; nothing once closed and empty."""
        with self._changed:
            while not self._queue:
                if self._closed:
                    return []
                self._changed.wait()
            batch = self._take([])
            deadline = time.monotonic() + WAIT_SECONDS
            while len(batch) < self._crowd and sum(item.count for item in batch) < BATCH and not self._closed:
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
                batch = self._take(batch)
            self._crowd = len(batch)
            return batch

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
        """Answer a batch; where it fails, each of it alone, so that only those get an error whose inputs are wrong."""
        rows: NDArray[Any] | None = None
        with _Kept() as failed:
            rows = self._answer_all(batch)
        if rows is None:
            assert failed.error is not None
            if isinstance(failed.error, MmcompressError) and len(batch) > 1:
                for item in batch:
                    self._finish([item])
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
