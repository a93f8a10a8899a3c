"""What rows and raw samples of two measurements have in common: paired scores, and times of one machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmcompress._report_rows import choose
from mmcompress.errors import InputError
from mmcompress.gate import Verdict
from mmcompress.gate._accuracy import scores_of
from mmcompress.metrics import Row
from mmcompress.metrics._statistics import student_t

Records = Callable[[str], Sequence[Mapping[str, Any]]]
"""Raw samples by name."""
MACHINE = ("cpu", "architecture", "cores_usable", "memory_bytes")
_DERIVED = ("retention.", "drop.", "speedup.", "speedup_torch.", "latency_ms_", "throughput_", "real_time_factor")


@dataclass(frozen=True)
class Scores:
    """One quality of both sides by example id, turned so that more is better."""

    metric: str
    target: str
    baseline: Mapping[str, float]
    candidate: Mapping[str, float]
    span: float = 1.0
    """What one example can change at most; 0 where scores vary by degrees."""


def paired_scores(
    baseline: Sequence[Row], old: Records, candidate: Sequence[Row], new: Records, target: str
) -> tuple[list[Scores], list[str]]:
    """Qualities that both sides measured on every example, and what could not be paired, by name.

    Raises:
        InputError: a quality of the baseline is not in the candidate: it is of another task, or measured otherwise.
    """
    found: list[Scores] = []
    notes: list[str] = []
    for metric in dict.fromkeys(row.metric for row in baseline):
        if metric.startswith(_DERIVED):
            continue
        rows = [choose([row for row in side if row.metric == metric], {}, None) for side in (baseline, candidate)]
        if not rows[0] or rows[0][0].interval_of != "example":
            continue
        if not rows[1]:
            raise InputError(
                f"{metric}: the baseline measured it and the candidate did not: another task, or other metrics\n"
                "  Name a baseline of the same task."
            )
        scores = [_scores(side[0], read) for side, read in zip(rows, (old, new), strict=True)]
        if not all(scores):
            notes.append(f"{metric} ({target}): not compared: it is no mean of scores of single examples")
            continue
        sign = 1.0 if rows[0][0].higher_is_better else -1.0
        pairs = [{name: sign * score for name, score in side.items()} for side in scores]
        found.append(Scores(metric, target, pairs[0], pairs[1]))
    return found, notes


def _scores(row: Row, read: Records) -> dict[str, float]:
    """Scores by id whose mean is the row's value; empty where the value is something else."""
    if not row.samples or row.value is None:
        return {}
    scores = scores_of(read(row.samples))
    if not scores:
        return {}
    mean = float(np.mean(list(scores.values())))
    return scores if math.isnan(mean) or abs(mean - row.value) < 1e-6 else {}


def other_machine(baseline: Mapping[str, Any], candidate: Mapping[str, Any]) -> str:
    """What tells two machines apart, as ``cpu: A and B``; empty for one machine."""
    differ = [name for name in MACHINE if baseline.get(name) != candidate.get(name)]
    return "; ".join(f"{name}: {baseline.get(name)} and {candidate.get(name)}" for name in differ)


def reported_times(
    baseline: Sequence[Row], old: Records, candidate: Sequence[Row], new: Records, budget: float
) -> list[Verdict]:
    """The p50 of two reports of one machine, compared over processes.

    They were measured at different times, so they are not paired (Welch, Biometrika 34 (1947)), and a slowdown cannot be
    measured again: a pass is a pass, and what looks slower is inconclusive.
    """
    verdicts = []
    for row in candidate:
        if row.metric != "latency_ms_p50" or not row.samples:
            continue
        twin = next(
            (other for other in baseline if other.metric == row.metric and other.conditions == row.conditions), None
        )
        if twin is None or not twin.samples:
            continue
        logs = [_process_logs(read(item.samples), row.conditions) for item, read in ((twin, old), (row, new))]
        verdicts.append(_welch(row, logs, budget))
    return verdicts


def _process_logs(records: Sequence[Mapping[str, Any]], conditions: Mapping[str, Any]) -> list[float]:
    keys = ("request", "batch", "scope")
    by_process: dict[int, list[float]] = {}
    for record in records:
        if all(record.get(key) == conditions.get(key) for key in keys):
            by_process.setdefault(int(record["process"]), []).append(math.log(float(np.median(record["ms"]))))
    return [float(np.median(values)) for values in by_process.values()]


def _welch(row: Row, logs: Sequence[Sequence[float]], budget: float) -> Verdict:
    base = Verdict(
        f"latency_ms_p50[{row.conditions.get('request')}, {row.conditions.get('scope')}]",
        "slowdown.latency_ms_p50",
        row.target,
        budget,
        "inconclusive",
        subject=row.name,
        conditions=dict(row.conditions),
        unit="ratio",
        higher_is_better=False,
        n=min(map(len, logs)),
    )
    if base.n < 2:
        return replace(base, reason="an interval needs two processes of each side")
    parts = [float(np.var(side, ddof=1)) / len(side) for side in logs]
    error = math.sqrt(sum(parts))
    weights = sum(part**2 / (len(side) - 1) for part, side in zip(parts, logs, strict=True))
    degrees = max(1, int(sum(parts) ** 2 / weights)) if weights else base.n - 1
    change, half = float(np.mean(logs[1]) - np.mean(logs[0])), student_t(0.05, degrees) * error
    ends = (math.expm1(change - half), math.expm1(change + half))
    found = replace(base, value=math.expm1(change), one_sided95=ends)
    if ends[1] <= budget:
        return replace(found, status="passed")
    slower = "slower in these reports" if ends[0] > budget else "the interval contains the budget"
    return replace(found, reason=f"{slower}, and reports cannot be measured again: gate the packages")
