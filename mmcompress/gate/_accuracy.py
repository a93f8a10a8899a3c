"""Did the candidate lose quality? Paired on the same examples, with the same three verdicts as everything else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mmcompress.errors import InputError
from mmcompress.metrics._statistics import RESAMPLES, Floats, bootstrap_means

ALPHA = 0.05
_FEW_VALUES = 16
"""Differences with as few values as this are resampled by how often each occurs, which is the same and fast."""


@dataclass(frozen=True)
class Drop:
    """What was lost per example on average, baseline less candidate, with its one-sided 95 % bounds."""

    value: float
    low: float
    high: float
    n: int
    p: float
    """Of the budget being kept."""
    flips: tuple[str, ...] = ()
    """Ids of examples that got worse, the most first."""
    gained: int = 0
    """Examples that got better."""


def paired_drop(
    baseline: Mapping[str, float],
    candidate: Mapping[str, float],
    budget: float,
    seed: int = 0,
    *,
    span: float = 1.0,
    what: str = "scores",
) -> Drop:
    """The drop between two sets of scores by example id, where more is better.

    The interval is the percentile bootstrap over examples, as in the reports, no narrower than what so many examples can show
    at all (:func:`mmcompress.metrics._statistics.quantity_estimate`): ``span`` is what one of them can change at most, 0 where
    scores vary by degrees and no single example stands out.

    Raises:
        InputError: there are no examples, the examples are not the same, or a score is no finite number.
    """
    if not baseline or not candidate:
        raise InputError(f"{what}: no examples to compare\n  Give test data that have some.")
    if baseline.keys() != candidate.keys():
        common = len(baseline.keys() & candidate.keys())
        raise InputError(
            f"{what}: the sides answered different examples ({len(baseline)} and {len(candidate)}, {common} in common)\n"
            "  Measure both on the same data set."
        )
    ids = list(baseline)
    lost = np.array([baseline[name] - candidate[name] for name in ids], dtype=np.float64)
    wrong = [name for name, value in zip(ids, lost, strict=True) if not math.isfinite(value)]
    if wrong:
        raise InputError(f"{what}: NaN or infinity for {len(wrong)} of {len(ids)} examples, the first is {wrong[0]!r}")
    drop = drop_of(lost, budget, seed, span)
    order = np.argsort(-lost, kind="stable")
    flips = tuple(ids[index] for index in order if lost[index] > 0)
    return Drop(drop.value, drop.low, drop.high, drop.n, drop.p, flips, int((lost < 0).sum()))


def drop_of(lost: Floats, budget: float, seed: int = 0, span: float = 1.0) -> Drop:
    """The mean of paired differences [n], with bounds and the p-value of the budget being kept."""
    n = len(lost)
    means = _resampled_means(lost, seed)
    value = float(lost.mean())
    least = span * (1.0 - ALPHA ** (1.0 / n))
    low, high = (float(end) for end in np.quantile(means, (ALPHA, 1.0 - ALPHA)))
    low, high = min(low, value - least), max(high, value + least)
    p = (1 + int((means <= budget).sum())) / (1 + len(means))
    # Where the least width decides, the bootstrap alone would be too sure.
    return Drop(value, low, high, n, p if low > budget else max(p, ALPHA + 1e-9))


def _resampled_means(lost: Floats, seed: int) -> Floats:
    values, counts = np.unique(lost, return_counts=True)
    if len(values) <= _FEW_VALUES:
        drawn = np.random.default_rng(seed).multinomial(len(lost), counts / len(lost), size=RESAMPLES)
        return np.asarray(drawn @ values / len(lost), dtype=np.float64)
    return bootstrap_means(lost[:, None], seed)[:, 0]


def judge_drop(drop: Drop, budget: float, adjusted_p: float | None = None) -> tuple[str, str, int | None]:
    """Verdict, reason and, where it is open, the number of examples that would decide.

    ``adjusted_p`` is the p-value corrected for other quantities; the drop's own where there are none.
    """
    status: Literal["passed", "failed", "inconclusive"]
    p = drop.p if adjusted_p is None else adjusted_p
    if drop.high <= budget:
        return "passed", "", None
    flips = f"{len(drop.flips)} examples got worse, {drop.gained} better"
    if drop.low > budget and p <= ALPHA:
        return "failed", f"{flips}; the first: {', '.join(drop.flips[:3])}", None
    status = "inconclusive"
    distance, half = abs(drop.value - budget), max(drop.high - drop.value, drop.value - drop.low)
    if distance == 0:
        return status, f"the drop is the budget; {flips}", None
    needed = max(drop.n + 1, math.ceil(drop.n * (half / distance) ** 2))
    return status, f"the interval contains the budget; about {needed:,} examples would decide (now {drop.n:,})", needed


def scores_of(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Scores by example id from the raw samples of a report; empty where these are no scores of examples."""
    if not all("id" in record and isinstance(record.get("score"), (int, float)) for record in records):
        return {}
    return {str(record["id"]): float(record["score"]) for record in records}
