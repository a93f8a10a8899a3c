"""What is asked of fresh processes, one subject at a time in turn: starts, memory, load. Shared by the metrics of these."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmcompress.errors import InputError
from mmcompress.families import Request
from mmcompress.metrics import Bench, Row, Subject
from mmcompress.metrics._quality import teacher_of
from mmcompress.metrics._statistics import process_estimate
from mmcompress.metrics._timing import CannotRun, Child, opens_subject, write_inputs
from mmcompress.metrics.latency import raw_inputs

Ask = Callable[[Child, float], Mapping[str, Any]]
"""Asks a process that is ready, opened in so many seconds."""


def ask_processes(
    subjects: Sequence[Subject], bench: Bench, requests: Sequence[Request], processes: int, ask: Ask
) -> tuple[dict[str, list[Mapping[str, Any]]], dict[str, str]]:
    """Answers by subject, one per process, and the reasons of those that do not load here. One process runs at a time.

    Packages and the teacher in torch are asked; other models in torch are not what ships.
    """
    torch_teacher = teacher_of(subjects)
    sides = [item for item in subjects if item.target != "torch" or item is torch_teacher]
    answers: dict[str, list[Mapping[str, Any]]] = {item.name: [] for item in sides}
    absent: dict[str, str] = {}
    inputs_of = {request.name: request.inputs for request in requests}
    names = sorted({name for inputs in inputs_of.values() for name in inputs})
    if not sides:
        return answers, absent
    with tempfile.TemporaryDirectory(prefix="mmcompress-fresh-") as folder:
        write_inputs(raw_inputs(sides, bench, names), Path(folder))
        for process in range(processes):
            bench.progress("fresh processes", process, processes)
            for side in sides if process % 2 == 0 else sides[::-1]:
                if side.name in absent:
                    continue
                with Child(side.name, opens_subject(side, Path(folder), inputs_of), bench.threads) as child:
                    try:
                        answers[side.name].append(ask(child, child.wait_ready()))
                    except CannotRun as error:
                        absent[side.name] = str(error)
    return answers, absent


def main_request(subjects: Sequence[Subject], name: str | None) -> Request:
    """The request of a name, or the family's main one.

    Raises:
        InputError: there is none of that name.
    """
    known = subjects[0].family.requests
    found = [item for item in known if name in (None, item.name)]
    if not found:
        raise InputError(f"unknown request {name!r}; there are {', '.join(item.name for item in known)}")
    return found[0]


def process_row(
    side: Subject,
    metric: str,
    conditions: Mapping[str, Any],
    values: Sequence[float],
    unit: str,
    *,
    higher_is_better: bool = False,
    reason: str = "",
    samples: str = "",
) -> Row:
    """A row over processes; without an interval where there is one process alone, and without a value where none ran."""
    found = process_estimate(np.array(values)) if len(values) > 1 else None
    status: Any = "measured" if found else "too_few_samples" if values else "not_runnable_here"
    return Row(
        artifact=side.artifact,
        name=side.name,
        role=side.role,
        stage=side.stage,
        target=side.target,
        metric=metric,
        conditions=conditions,
        value=found.value if found else values[0] if values else None,
        unit=unit,
        higher_is_better=higher_is_better,
        status=status,
        reason=reason or ("" if found else "an interval needs at least two processes"),
        n=len(values),
        ci95=found.ci95 if found else None,
        one_sided95=found.one_sided95 if found else None,
        interval_of="block" if found else None,
        samples=samples if values else "",
    )
