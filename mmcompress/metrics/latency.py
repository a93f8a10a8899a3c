"""Time per call of each request, and speed-ups over the teacher in the same runtime and in torch."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from mmcompress._probe import raw_values, read_probe
from mmcompress._sound import read_sound
from mmcompress.errors import InputError
from mmcompress.metrics import Bench, Measured, Metric, Row, Subject
from mmcompress.metrics._exact import float_package_of
from mmcompress.metrics._quality import teacher_of
from mmcompress.metrics._statistics import (
    Calls,
    Estimate,
    Floats,
    block_means,
    block_quantiles,
    block_weights,
    paired_ratio,
    samples_for_percentile,
    time_estimate,
)
from mmcompress.metrics._timing import Block, Job, Plan, time_sides, write_inputs

INPUTS = 64
QUANTILES = {"latency_ms_p50": 0.5, "latency_ms_p90": 0.9, "latency_ms_p99": 0.99}
P50 = "latency_ms_p50"
REAL_TIME = "real_time_factor"
SCOPES = ("engine", "end_to_end")


class Latency(Metric):
    """Milliseconds per call of packages, and of the teacher in torch, in fresh processes that take turns.

    ``engine`` is the time inside the runtime, ``end_to_end`` is preprocessing and answer. All sides run the same 64
    inputs. Processes, and the blocks of calls in them, are the sampling units of the intervals. Of requests that take
    sounds ``real_time_factor`` is the seconds of computing per second of sound, in the mean; a sequence has the request's
    fixed number of tokens there too.
    """

    batch: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field((1,), min_length=1)
    requests: tuple[str, ...] | None = None
    """Requests to time; None for all that the family has."""
    processes: int = Field(5, ge=1)
    """Fresh processes per side. Five, because the interval widens as few of them are drawn."""
    seconds: float = Field(8.0, gt=0)
    """Timed seconds per side, over all processes, requests and batch sizes; slow models take longer."""
    block_seconds: float = Field(0.05, gt=0)
    """Length of a block of consecutive calls. Short, so that a side's neighbours see the same clock."""
    limit_seconds: float = Field(120.0, ge=0)
    """After this time no further processes start, once three have run; the rows say so, and their intervals are wider."""

    def gives(self) -> frozenset[str]:
        """Percentiles, speed-ups, throughput for batches, and the real-time factor where there are sounds."""
        names = {*QUANTILES, f"speedup.{P50}", f"speedup_torch.{P50}", REAL_TIME}
        return frozenset(names | {"throughput_per_s"} if max(self.batch) > 1 else names)

    def measure(self, subjects: Sequence[Subject], bench: Bench) -> Measured:
        """Time the packages and the torch teacher in turn."""
        torch_teacher = teacher_of(subjects)
        sides = [item for item in subjects if item.target != "torch" or item is torch_teacher]
        if not sides:
            return Measured([], {})
        inputs_of = {item.name: item.inputs for item in sides[0].family.requests}
        asked = self.requests if self.requests is not None else tuple(inputs_of)
        unknown = [name for name in asked if name not in inputs_of]
        if unknown:
            raise InputError(f"latency: unknown request {unknown[0]!r}; there are {', '.join(inputs_of)}")
        jobs = [Job(request, batch) for request in asked for batch in self.batch]
        needed = sorted({name for request in asked for name in inputs_of[request]})
        per_process = self.seconds / (self.processes * len(jobs) * self.block_seconds * 1.25)
        plan = Plan(self.processes, max(1, round(per_process / 2)), self.block_seconds, bench.seed, self.limit_seconds)
        with tempfile.TemporaryDirectory(prefix="mmcompress-timing-") as folder:
            inputs = raw_inputs(sides, bench, needed)
            write_inputs(inputs, Path(folder))
            requests = {name: inputs_of[name] for name in asked}
            blocks, absent = time_sides(sides, jobs, Path(folder), requests, bench.threads, plan, bench.progress)
        sounds = {name: _seconds(inputs, inputs_of[name]) for name in asked}
        rows = [
            row
            for job in jobs
            for scope in SCOPES
            for row in _rows(sides, [b for b in blocks if b.job == job], absent, job, scope, bench, sounds[job.request])
        ]
        done = len({block.process for block in blocks})
        if blocks and done < self.processes:
            note = f"{done} of {self.processes} processes: the limit of {self.limit_seconds:g} s was reached"
            rows = [replace(row, reason=row.reason or note) for row in rows]
        return Measured(rows, {f"latency/{side.name}": _samples(blocks, side.name) for side in sides})


def raw_inputs(sides: Sequence[Subject], bench: Bench, names: Sequence[str]) -> Mapping[str, Sequence[Any]]:
    """Sixty-four test examples, evenly spaced; without test data, the probe examples of a package."""
    if bench.test is None or len(bench.test) == 0:
        package = next((item for item in sides if item.target != "torch"), None)
        if package is None:
            raise InputError("latency needs inputs: test data, or a package with its probe examples")
        probes = read_probe(package.folder / "probe")
        return {name: probes[name] for name in names}
    positions = np.unique(np.linspace(0, len(bench.test) - 1, INPUTS).round().astype(int))
    offered = bench.test.columns | ({"text"} if "texts" in bench.test.columns else set())
    lacking = [name for name in names if name not in offered]
    if lacking:
        raise InputError(f"latency needs {', '.join(lacking)}, which the test data lack")
    return raw_values([bench.test[int(position)] for position in positions], names)


def _seconds(inputs: Mapping[str, Sequence[Any]], names: Sequence[str]) -> float | None:
    """The mean length of the sounds among a request's inputs; None where it takes none."""
    if "audio" not in names:
        return None
    sounds = [value for value in inputs["audio"] if value is not None]
    return float(np.mean([read_sound(value).seconds for value in sounds])) if sounds else None


def _rows(
    sides: Sequence[Subject],
    blocks: Sequence[Block],
    absent: Mapping[str, str],
    job: Job,
    scope: str,
    bench: Bench,
    sound: float | None,
) -> list[Row]:
    """Rows of one request, batch size and scope. All sides share the drawn processes and blocks.

    ``sound`` is how many seconds of sound there are per example, None where the request takes none.
    """
    conditions = {"batch": job.batch, "threads": bench.threads, "request": job.request, "scope": scope}
    runs = [side for side in sides if side.name not in absent]
    calls = {side.name: _calls([b for b in blocks if b.side == side.name], scope) for side in runs}
    rows = [
        _row(side, metric, conditions, None, status="not_runnable_here", reason=absent[side.name])
        for side in sides
        if side.name in absent
        for metric in (P50, f"speedup.{P50}")
    ]
    if not runs:
        return rows
    processes, per_process = len(calls[runs[0].name]), len(calls[runs[0].name][0])
    weights = block_weights(processes, per_process, bench.seed)
    counts = {name: sum(len(block) for process in side for block in process) for name, side in calls.items()}
    for side in runs:
        point, replicates = block_quantiles(calls[side.name], tuple(QUANTILES.values()), weights)
        for column, (metric, quantile) in enumerate(QUANTILES.items()):
            if counts[side.name] < (least := samples_for_percentile(quantile)):
                reason = f"{counts[side.name]} calls; {least} bound this percentile"
                rows.append(_row(side, metric, conditions, None, status="too_few_samples", reason=reason))
                continue
            found = _estimate(float(point[column]), replicates[:, column], processes, counts[side.name])
            rows.append(_row(side, metric, conditions, found, processes=processes))
        if job.batch > 1:
            mean, means = block_means(calls[side.name], weights)
            rate = _estimate(job.batch * 1000 / mean, job.batch * 1000 / means, processes, counts[side.name])
            rows.append(_row(side, "throughput_per_s", conditions, rate, processes=processes))
        if sound is not None:
            mean, means = block_means(calls[side.name], weights)
            per_sound = 1000 * job.batch * sound
            factor = _estimate(mean / per_sound, means / per_sound, processes, counts[side.name])
            rows.append(_row(side, REAL_TIME, conditions, factor, processes=processes))
    return rows + _speedups(sides, calls, weights, conditions, processes)


def _speedups(
    sides: Sequence[Subject],
    calls: Mapping[str, Calls],
    weights: Floats,
    conditions: Mapping[str, Any],
    processes: int,
) -> list[Row]:
    """How many times the p50 of the teacher's FP32 package in the same runtime, and of torch, is each package's.

    Ratios of neighbouring blocks (see :func:`paired_ratio`): a machine that runs at another clock every second moves
    medians over a whole measurement, and leaves these alone.
    """
    torch_teacher = teacher_of(sides)
    rows = []
    for side in sides:
        if side.target == "torch" or side.name not in calls:
            continue
        own = float_package_of(side, sides)
        for metric, reference, base in (
            (f"speedup.{P50}", "fp32", own),
            (f"speedup_torch.{P50}", torch_teacher.name if torch_teacher else "torch", torch_teacher),
        ):
            if base is side or (base is None and metric.startswith("speedup_torch")):
                continue
            if base is None or base.name not in calls:
                reason = f"the teacher's FP32 package in {side.target} was not measured here"
                rows.append(
                    _row(side, metric, conditions, None, status="not_runnable_here", reason=reason, reference=reference)
                )
                continue
            n = min(sum(len(block) for process in calls[name] for block in process) for name in (base.name, side.name))
            ratio = _estimate(*paired_ratio(calls[base.name], calls[side.name], weights), processes, n)
            rows.append(_row(side, metric, conditions, ratio, processes=processes, reference=reference))
    return rows


def _estimate(value: float, replicates: Floats, processes: int, n: int) -> Estimate:
    if processes < 2:
        return Estimate(value, n, (value, value), (value, value))
    return time_estimate(value, replicates, processes, n)


def _row(
    side: Subject,
    metric: str,
    conditions: Mapping[str, Any],
    found: Estimate | None,
    *,
    status: Any = "measured",
    reason: str = "",
    processes: int = 0,
    reference: str = "",
) -> Row:
    """A row; one process alone gives a value without an interval, which proves nothing."""
    alone = found is not None and processes < 2
    unit = {"throughput_per_s": "1/s", REAL_TIME: "s/s"}.get(metric, "ratio" if "speedup" in metric else "ms")
    return Row(
        artifact=side.artifact,
        name=side.name,
        role=side.role,
        stage=side.stage,
        target=side.target,
        metric=metric,
        conditions=conditions,
        value=found.value if found else None,
        unit=unit,
        higher_is_better=unit not in ("ms", "s/s"),
        status="too_few_samples" if alone else status,
        reason="an interval needs at least two processes" if alone else reason,
        n=found.n if found else 0,
        ci95=found.ci95 if found and not alone else None,
        one_sided95=found.one_sided95 if found and not alone else None,
        interval_of="block" if found and not alone else None,
        reference=reference,
        samples=f"latency/{side.name}" if found else "",
    )


def _calls(blocks: Sequence[Block], scope: str) -> Calls:
    """Times by process and block; the order of measuring is that of the blocks' numbers."""
    processes = sorted({block.process for block in blocks})
    return [
        [
            np.array(block.engine if scope == "engine" else block.end_to_end)
            for block in sorted((b for b in blocks if b.process == process), key=lambda b: b.block)
        ]
        for process in processes
    ]


def _samples(blocks: Sequence[Block], name: str) -> list[dict[str, Any]]:
    """One record per block and scope, with the milliseconds of its calls in order."""
    return [
        {
            "process": block.process,
            "block": block.block,
            "side": name,
            "request": block.job.request,
            "batch": block.job.batch,
            "scope": scope,
            "ms": [round(ms, 4) for ms in (block.engine if scope == "engine" else block.end_to_end)],
        }
        for block in blocks
        if block.side == name
        for scope in SCOPES
    ]
