"""Times of several sides in turn: fresh processes, warmed up, blocks interleaved so that drift hits all sides alike."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from mmcompress import component
from mmcompress._values import store_value
from mmcompress.errors import StageError
from mmcompress.metrics import Subject

PAUSE_SECONDS = 0.02
"""Between sides: threads of runtimes spin for a while after a call."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
FEWEST_PROCESSES = 3
FEWEST_CALLS, MOST_CALLS = 3, 500


@dataclass(frozen=True)
class Job:
    """What is timed: a request with a number of examples at a time."""

    request: str
    batch: int


@dataclass(frozen=True)
class Block:
    """Consecutive calls of one side: milliseconds per call, of the engine alone and with preprocessing."""

    process: int
    block: int
    side: str
    job: Job
    engine: tuple[float, ...]
    end_to_end: tuple[float, ...]
    waited: tuple[float, ...] = ()
    """How much of each call in the engine the process was ready and another program had the core: not the engine's time."""
    end_to_end_waited: tuple[float, ...] = ()


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    processes: int
    rounds: int
    """Each round visits all sides there and back (A B B A), in a new order."""
    block_seconds: float
    seed: int
    limit_seconds: float = math.inf
    """No further processes start after this time, once three have run."""


Opens = Mapping[str, Any]
"""What a timed process opens: see :func:`opens_subject` and :func:`opens_graph`."""


def opens_subject(subject: Subject, inputs: Path, requests: Mapping[str, Sequence[str]]) -> Opens:
    """A package, or a model folder in torch, with the raw inputs of requests (see :func:`write_inputs`)."""
    return {
        "folder": str(subject.folder.absolute()),
        "target": subject.target,
        "family": component.dump(subject.family),
        "components": [str(path.absolute()) for path in component.SEARCH.folders],
        "inputs": str(inputs),
        "requests": {name: list(names) for name, names in requests.items()},
    }


def opens_graph(graph: Path) -> Opens:
    """A bare ONNX graph, fed with drawn numbers of the shapes that it declares."""
    return {"graph": str(graph.absolute())}


class CannotRun(Exception):
    """A subject does not load on this machine."""


class Child:
    """A process that holds one subject."""

    def __init__(self, name: str, opens: Opens, threads: int) -> None:
        self.name = name
        self.log = tempfile.TemporaryFile()
        environment = {**os.environ, **{name: str(threads) for name in THREAD_VARIABLES}}
        folder = str(Path(__file__).parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mmcompress.metrics._timing_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment,
            text=True,
            encoding="utf-8",
        )
        self._send({**opens, "name": name, "threads": threads})

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process at once: it holds nothing that is worth an orderly end."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.log.close()

    def wait_ready(self) -> float:
        """Seconds that opening took.

        Raises:
            CannotRun: the subject does not load here.
        """
        reply = self._reply()
        if "cannot_run" in reply:
            raise CannotRun(reply["cannot_run"])
        return float(reply["ready_seconds"])

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command and wait for its answer.

        Raises:
            StageError: the process ended; its last words are in the message.
        """
        self._send(command)
        return self._reply()

    def _send(self, value: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(value) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self._died()

    def _reply(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self._died()
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _died(self) -> None:
        self.process.wait()
        self.log.seek(0)
        words = self.log.read().decode(errors="replace").strip().splitlines()[-12:]
        raise StageError(
            f"the process that timed {self.name} ended with code {self.process.returncode}\n  " + "\n  ".join(words)
        )


def time_sides(
    subjects: Sequence[Subject],
    jobs: Sequence[Job],
    inputs: Path,
    requests: Mapping[str, Sequence[str]],
    threads: int,
    plan: Plan,
    progress: Callable[[str, int, int], None],
) -> tuple[list[Block], dict[str, str]]:
    """Blocks of all sides, and the reasons of those that do not load here, by name.

    All sides have as many blocks, in the same processes and rounds, so that their ratios are paired.
    """
    chance = random.Random(plan.seed)
    blocks: list[Block] = []
    absent: dict[str, str] = {}
    calls: dict[tuple[str, Job], int] = {}
    started = time.monotonic()
    for process in range(plan.processes):
        if process >= FEWEST_PROCESSES and time.monotonic() - started > plan.limit_seconds:
            break
        progress("timing in fresh processes", process, plan.processes)
        sides = {item.name: opens_subject(item, inputs, requests) for item in subjects if item.name not in absent}
        blocks += time_processes(sides, jobs, threads, plan, process, chance, calls, absent)
    return blocks, absent


def time_processes(
    sides: Mapping[str, Opens],
    jobs: Sequence[Job],
    threads: int,
    plan: Plan,
    process: int,
    chance: random.Random,
    calls: dict[tuple[str, Job], int],
    absent: dict[str, str],
) -> list[Block]:
    """The blocks of one fresh process per side, all at once: opened, warmed up, then visited in turn.

    ``calls`` keeps how many calls fill a block, once that is known; ``absent`` gets the reasons of sides that do not load.
    """
    blocks: list[Block] = []
    with ExitStack() as stack:
        children = {name: stack.enter_context(Child(name, opens, threads)) for name, opens in sides.items()}
        for name in list(children):
            try:
                children[name].wait_ready()
            except CannotRun as error:
                absent[name] = str(error)
                del children[name]
        for name, child in children.items():
            for job in jobs:
                warm = child.ask(do="warm", request=job.request, batch=job.batch)
                fitting = int(plan.block_seconds * 1000 / warm["ms_per_call"])
                calls.setdefault((name, job), max(FEWEST_CALLS, min(MOST_CALLS, fitting)))
            time.sleep(PAUSE_SECONDS)
        for number, name, job in _visits(list(children), jobs, plan.rounds, chance):
            count = calls[name, job]
            found = children[name].ask(
                do="time", request=job.request, batch=job.batch, calls=count, end_to_end_calls=max(1, count // 4)
            )
            parts = (tuple(found[part]) for part in ("engine", "end_to_end", "waited", "end_to_end_waited"))
            blocks.append(Block(process, number, name, job, *parts))
            time.sleep(PAUSE_SECONDS)
    return blocks


def _visits(
    sides: Sequence[str], jobs: Sequence[Job], rounds: int, chance: random.Random
) -> Iterator[tuple[int, str, Job]]:
    """Block number, side and job, in the order of measuring: per round and job there and back over all sides."""
    for number in range(rounds):
        for job in jobs:
            order = list(sides)
            chance.shuffle(order)
            for name in order:
                yield 2 * number, name, job
            for name in reversed(order):
                yield 2 * number + 1, name, job


def write_inputs(values: Mapping[str, Sequence[Any]], folder: Path) -> None:
    """Write raw values for the timed processes: see :func:`mmcompress._values.store_value`.

    Raises:
        InputError: values of a kind that cannot be handed over.
    """
    written = {
        name: [store_value(value, folder, f"{name}-{index}") for index, value in enumerate(column)]
        for name, column in values.items()
    }
    (folder / "values.json").write_text(json.dumps(written), encoding="utf-8")
