"""The process that is timed: ``python -m mmcompress.metrics._timing_worker``. One subject, alone in a fresh process.

It reads one JSON object per line on standard input and answers each with one line. The first names the subject and its
inputs; then ``{"do": "warm"|"time", "request", "batch", ...}``. While it waits it sleeps on standard input, and it ends
with it. Whatever libraries print goes to standard error.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import math
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

from mmcompress import component
from mmcompress._answers import Opened, open_subject
from mmcompress._ask import TimedRun, find_request
from mmcompress._values import restore_value
from mmcompress.errors import MmcompressError
from mmcompress.families import Feeds, Run
from mmcompress.metrics import Subject

SETTLE_CALLS = 2
"""Calls before each block that are not counted: the other sides had the caches."""
WARM_BLOCK_SECONDS = 0.05
WARM_SECONDS = 1.5
STABLE_WITHIN = 0.03
GRAPH_INPUTS = 8
OVERLOADED = 3.0
COMMANDS = {"warm": "warm", "time": "time", "first": "first", "memory": "memory", "load": "serve_load"}


class WaitClock:
    """Milliseconds that this thread was ready to run and another program had the core, as Linux counts them."""

    def __init__(self, path: str = "/proc/thread-self/schedstat") -> None:
        self._file: int | None = None
        with contextlib.suppress(OSError):
            self._file = os.open(path, os.O_RDONLY)

    def __call__(self) -> float:
        """Since the thread began; 0 where the system does not tell."""
        return int(os.pread(self._file, 96, 0).split()[1]) / 1e6 if self._file is not None else 0.0


class EngineClock(TimedRun):
    """Adds up the time in graphs, and how much of it was waiting for a core."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.waited_ms = 0.0
        self._clock = WaitClock()

    def __call__(self, graph: str, feeds: Feeds) -> Feeds:
        """Run a graph by name."""
        before = self._clock()
        outputs = super().__call__(graph, feeds)
        self.waited_ms += self._clock() - before
        return outputs


class Worker:
    """An opened subject with inputs ready for every request and batch size."""

    def __init__(
        self, opened: Opened, values: Mapping[str, Sequence[Any]], inputs: Mapping[str, Sequence[str]]
    ) -> None:
        self.opened = opened
        self.values = values
        self.inputs = inputs
        self.timed = EngineClock(opened.run)
        self.clock = WaitClock()
        self.waited: list[float] = []
        self.cursors: dict[tuple[str, int], int] = {}
        self.feeds: dict[tuple[str, int], list[Feeds]] = {}

    def warm(self, request: str, batch: int) -> dict[str, Any]:
        """Run until the fastest blocks stop getting faster, or time is up."""
        medians: list[float] = []
        calls, ends = 1, time.perf_counter() + WARM_SECONDS
        self.block(request, batch, 1, scope="end_to_end")
        while time.perf_counter() < ends or len(medians) < 3:
            block = sorted(self.block(request, batch, calls, scope="engine"))
            medians.append(block[len(block) // 2])
            calls = max(1, min(500, int(WARM_BLOCK_SECONDS * 1000 / medians[-1])))
            if len(medians) >= 4 and min(medians[-2:]) >= min(medians[:-2]) * (1 - STABLE_WITHIN):
                break
        gc.collect()
        gc.freeze()
        return {"ms_per_call": min(medians), "blocks": len(medians), "stable": time.perf_counter() < ends}

    def time(self, request: str, batch: int, calls: int, end_to_end_calls: int) -> dict[str, Any]:
        """A block of calls of the engine alone, then one with preprocessing; milliseconds per call.

        With them, as ``waited`` and ``end_to_end_waited``, how much of each call was waiting for a core.
        """
        self.block(request, batch, SETTLE_CALLS, scope="engine")
        gc.disable()
        try:
            engine, waited = self.block(request, batch, calls, scope="engine"), self.waited
            end_to_end = self.block(request, batch, end_to_end_calls, scope="end_to_end")
        finally:
            gc.enable()
        return {"engine": engine, "waited": waited, "end_to_end": end_to_end, "end_to_end_waited": self.waited}

    def first(self, request: str, batch: int) -> dict[str, Any]:
        """One call from end to end, as the first of a process."""
        return {"ms": self.block(request, batch, 1, scope="end_to_end")[0]}

    def memory(self) -> dict[str, Any]:
        """The most memory that the process has held so far."""
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}

    def serve_load(self, request: str, concurrency: int, rate: float, seconds: float) -> dict[str, Any]:
        """Requests that arrive ``rate`` times per second, whatever the answers do, served by ``concurrency`` threads.

        A response time counts from when its request was due: waiting for a free thread is part of it, so a slow answer does
        not hide the requests behind it. A rate of 0 sends the next request when an answer is there. What is still waiting
        after three times ``seconds`` stays unanswered: ``due`` is how many there were.
        """
        family, processor = self.opened.family, self.opened.processor
        length = find_request(family.requests, request).length
        count = len(next(iter(self.values.values())))
        raw = [self._raw(request, 1, index) for index in range(count)]
        began, numbers, total = time.perf_counter(), itertools.count(), math.ceil(rate * seconds)
        responses: list[tuple[float, float]] = []

        def answer() -> None:
            while True:
                number = next(numbers)
                due = began + number / rate if rate else time.perf_counter()
                over = number >= total if rate else due - began >= seconds
                if over or time.perf_counter() - began > OVERLOADED * seconds:
                    return
                time.sleep(max(0.0, due - time.perf_counter()))
                family.answer(self.opened.run, request, processor.encode(raw[number % count]), length)
                responses.append((due - began, time.perf_counter() - due))

        threads = [threading.Thread(target=answer) for _ in range(concurrency)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        spent = time.perf_counter() - began
        ms = [round(response * 1000, 4) for _, response in sorted(responses)]
        return {"ms": ms, "per_s": len(ms) / spent, "due": total or len(ms)}

    def block(self, request: str, batch: int, calls: int, scope: str) -> list[float]:
        """Milliseconds per call: inside the engine for ``engine``, preprocessing and answer for ``end_to_end``."""
        family, processor = self.opened.family, self.opened.processor
        length = find_request(family.requests, request).length
        feeds = self._feeds(request, batch)
        start = self.cursors.get((request, batch), 0)
        self.cursors[request, batch] = start + calls
        times = []
        self.waited = []
        for call in range(start, start + calls):
            if scope == "engine":
                self.timed.seconds = self.timed.waited_ms = 0.0
                family.answer(self.timed, request, feeds[call % len(feeds)], length)
                times.append(self.timed.seconds)
                self.waited.append(round(self.timed.waited_ms, 5))
                continue
            raw = self._raw(request, batch, call % len(feeds))
            before, started = self.clock(), time.perf_counter()
            family.answer(self.opened.run, request, processor.encode(raw), length)
            times.append(time.perf_counter() - started)
            self.waited.append(round(self.clock() - before, 5))
        return [round(seconds * 1000, 5) for seconds in times]

    def _feeds(self, request: str, batch: int) -> list[Feeds]:
        """All inputs in batches, encoded; the last batch goes on from the first input."""
        if (request, batch) not in self.feeds:
            count = len(next(iter(self.values.values())))
            self.feeds[request, batch] = [
                self.opened.processor.encode(self._raw(request, batch, index)) for index in range(-(-count // batch))
            ]
        return self.feeds[request, batch]

    def _raw(self, request: str, batch: int, index: int) -> dict[str, list[Any]]:
        return {
            name: [column[position % len(column)] for position in range(index * batch, (index + 1) * batch)]
            for name in self.inputs[request]
            for column in (self.values[name],)
        }


class GraphWorker(Worker):
    """A bare ONNX graph. It has neither preprocessing nor requests: every call is one run of the graph."""

    def __init__(self, graph: Path, threads: int) -> None:
        from mmcompress.runtimes._graph_inputs import drawn_feeds
        from mmcompress.runtimes.onnxruntime import OnnxSession

        session = OnnxSession(graph.parent, [graph.stem], "CPUExecutionProvider", threads)
        self.name = graph.stem
        self.drawn = partial(drawn_feeds, session.inputs(graph.stem), graph)
        self.timed = EngineClock(session.run)
        self.waited = []
        self.feeds = {}

    def block(self, request: str, batch: int, calls: int, scope: str) -> list[float]:
        """Milliseconds per run of the graph; nothing for ``end_to_end``."""
        self.waited = []
        if scope != "engine":
            return []
        if (request, batch) not in self.feeds:
            self.feeds[request, batch] = [self.drawn(batch, seed) for seed in range(GRAPH_INPUTS)]
        times = []
        for call in range(calls):
            self.timed.seconds = self.timed.waited_ms = 0.0
            self.timed(self.name, self.feeds[request, batch][call % GRAPH_INPUTS])
            times.append(round(self.timed.seconds * 1000, 5))
            self.waited.append(round(self.timed.waited_ms, 5))
        return times


def read_inputs(folder: Path) -> dict[str, list[Any]]:
    """Raw values as :func:`mmcompress.metrics._timing.write_inputs` wrote them; pictures decoded."""
    values: dict[str, list[Any]] = json.loads((folder / "values.json").read_text(encoding="utf-8"))
    return {name: [restore_value(value, folder, pictures=True) for value in column] for name, column in values.items()}


def _open(spec: Mapping[str, Any]) -> Worker:
    if "graph" in spec:
        return GraphWorker(Path(spec["graph"]), spec["threads"])
    component.SEARCH.folders.extend(Path(folder) for folder in spec["components"])
    family: Any = component.parse("families", spec["family"])
    subject = Subject("", spec["name"], "package", "", spec["target"], family, Path(spec["folder"]))
    return Worker(
        open_subject(subject, spec["threads"], verify=False), read_inputs(Path(spec["inputs"])), spec["requests"]
    )


def serve(commands: IO[str], replies: IO[str]) -> None:
    """Answer commands until they end."""

    def reply(value: Mapping[str, Any]) -> None:
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    started = time.perf_counter()
    spec = json.loads(commands.readline())
    try:
        worker = _open(spec)
    except MmcompressError as error:
        reply({"cannot_run": str(error)})
        return
    reply({"ready_seconds": time.perf_counter() - started})
    for line in commands:
        command = json.loads(line)
        reply(getattr(worker, COMMANDS[command.pop("do")])(**command))


def main() -> None:
    """Keep standard output for replies alone."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, replies)


if __name__ == "__main__":
    main()
