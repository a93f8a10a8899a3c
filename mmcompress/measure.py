"""Measure subjects on the same test examples: quality first, then exact quantities and times with nothing else loaded.

A measurement observes a machine, so it is never cached, and a lock that the whole machine shares keeps two of them from
disturbing each other.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mmcompress._answers import Answers, Listen, silent
from mmcompress._environment import environment_facts, machine_state
from mmcompress.component import digest_json
from mmcompress.data import Examples
from mmcompress.errors import InputError
from mmcompress.metrics import Bench, Measured, Metric, Row, Subject
from mmcompress.metrics._absent import absent_subjects
from mmcompress.metrics._quality import Quality

Samples = dict[str, Sequence[Mapping[str, Any]]]


def measure(
    subjects: Sequence[Subject],
    metrics: Sequence[Metric],
    test: Examples | None,
    *,
    threads: int,
    seed: int,
    progress: Listen = silent,
) -> tuple[list[Row], Samples, dict[str, Any]]:
    """Measure every subject by every metric; gives rows, raw samples by name, and the facts of this machine.

    Raises:
        InputError: test data are missing, or do not have what a metric reads.
        StageError: a subject gave NaN, or its process died.
    """
    names = [subject.name for subject in subjects]
    if len(set(names)) != len(names):
        raise ValueError(f"subjects need names of their own: {names}")
    offered = [frozenset(request.name for request in subject.family.requests) for subject in subjects]
    metrics = [metric.fitted(frozenset.intersection(*offered)) if offered else metric for metric in metrics]
    quality = [metric for metric in metrics if metric.needs()]
    if quality and test is None:
        raise InputError(
            f"{quality[0].component_name()} is measured on test data, and there are none\n  Give data.test."
        )
    if test is not None and quality and len(test) == 0:
        raise InputError("the test split has no examples")
    found: dict[int, list[Row]] = {}
    samples: Samples = {}
    started = time.time()
    with alone(progress):
        environment = environment_facts(threads)
        damages = [(metric.needs(), metric.damages(subjects)) for metric in quality if isinstance(metric, Quality)]
        with Answers(subjects, test, _requests(quality), threads, progress, damages) as answers:
            bench = Bench(test, threads, seed, answers, progress)
            absent = answers.leave_out() if quality else {}
            for metric in sorted(metrics, key=lambda metric: not metric.needs()):
                progress(metric.component_name(), 0, 0)
                if metric.needs():
                    rows = _collect(metric.measure(answers.subjects, bench), samples)
                    found[id(metric)] = [*rows, *absent_subjects(rows, subjects, absent)]
                else:
                    answers.close()
                    found[id(metric)] = _collect(metric.measure(subjects, bench), samples)
        progress(f"{len(metrics)} metrics of {len(subjects)} subjects", 1, 1)
    rows = [row for metric in metrics for row in found[id(metric)]]
    environment["seconds"] = round(time.time() - started, 1)
    environment["state_after"] = machine_state()
    environment["load_after"] = environment["state_after"]["load"]
    _check_unique(rows)
    return rows, samples, environment


def _requests(metrics: Sequence[Metric]) -> list[str]:
    return sorted({request for metric in metrics for request in metric.needs()})


def _collect(measured: Measured, samples: Samples) -> list[Row]:
    """Add samples under names that are free (one metric may stand twice in a recipe); gives the rows with those names."""
    names: dict[str, str] = {}
    for name, records in measured.samples.items():
        free, number = name, 1
        while free in samples:
            number += 1
            free = f"{name} ({number})"
        names[name] = free
        samples[free] = records
    return [replace(row, samples=names[row.samples]) if row.samples else row for row in measured.rows]


def _check_unique(rows: Sequence[Row]) -> None:
    seen: set[str] = set()
    for row in rows:
        key = digest_json([row.artifact, row.name, row.target, row.metric, row.reference, dict(row.conditions)])
        if key in seen:
            raise RuntimeError(f"two rows for {row.name} {row.metric} {dict(row.conditions)}")
        seen.add(key)


def lock_path() -> Path:
    """Where the machine's measurement lock lies: one place for all users, whatever their ``TMPDIR``.

    In a folder of its own, because Linux keeps users from opening each other's files in a sticky one.
    """
    system = Path("/tmp")
    folder = (system if system.is_dir() else Path(tempfile.gettempdir())) / "mmcompress-locks"
    folder.mkdir(exist_ok=True)
    with suppress(PermissionError):  # made by another user, who opened it to all
        folder.chmod(0o777)
    return folder / "measure.lock"


@contextmanager
def alone(progress: Listen = silent, path: Path | None = None) -> Iterator[None]:
    """Hold the machine's measurement lock; waits, and says so, while another process measures."""
    lock = FileLock(path or lock_path(), mode=0o666)
    try:
        lock.acquire(timeout=0.1)
    except Timeout:
        progress("waiting for another measurement on this machine", 0, 0)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
