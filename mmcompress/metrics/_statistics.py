"""Intervals: over examples for quality, over processes and blocks for time. numpy alone, seeded, vectorised.

Shapes, with n: examples, c: columns, r: resamples, p: processes, b: blocks of a process.

Sources: the bootstrap and its percentile interval, Efron and Tibshirani, An Introduction to the Bootstrap (1993),
chapter 13; two-stage resampling of clusters, Davison and Hinkley, Bootstrap Methods and their Application (1997),
section 3.8; the bound from no events, 1 - alpha^(1/n), Hanley and Lippman-Hand, JAMA 249 (1983).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 2000
TIME_RESAMPLES = 1000
_CHUNK_VALUES = 4_000_000
"""Values held at once while resampling: 32 MB."""
_TWO_SIDED, _ONE_SIDED = 0.025, 0.05
_Z = {_TWO_SIDED: 1.959963985, _ONE_SIDED: 1.644853627}


@dataclass(frozen=True)
class Estimate:
    """A point with its two-sided 95 % interval and its one-sided 95 % bounds below and above."""

    value: float
    n: int
    ci95: tuple[float, float]
    one_sided95: tuple[float, float]


# --- over examples -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hits:
    """A table of small counts [n, k] that are mostly zero, by where there are ones: whether a class was right, ..."""

    n: int
    k: int
    rows: NDArray[np.int64]
    """The example of each one; a place that stands here twice counts two."""
    columns: NDArray[np.int64]

    def __len__(self) -> int:
        return self.n

    def means(self, weights: Floats | None = None) -> Floats:
        """Means of the columns [k]; of examples that count ``weights`` times [n] each, where they are given."""
        counted = None if weights is None else weights[self.rows]
        return np.bincount(self.columns, counted, minlength=self.k) / self.n


def bootstrap_means(scores: Floats | Hits, seed: int, resamples: int = RESAMPLES) -> Floats:
    """Means of ``scores`` [n, c] over resampled examples: [r, c].

    Columns share their resamples, and so do other scores of as many examples at the same seed: they stay paired.
    """
    if isinstance(scores, Hits):
        counts = (row for rows in _resampled(scores.n, seed, resamples) for row in rows)
        return np.stack([scores.means(row) for row in counts])
    if scores.ndim != 2 or len(scores) == 0:
        raise ValueError(f"expected scores [n, c] of at least one example, got shape {scores.shape}")
    return np.concatenate([rows @ scores / len(scores) for rows in _resampled(len(scores), seed, resamples)])


def _resampled(n: int, seed: int, resamples: int) -> Iterator[Floats]:
    """How often each example is drawn: [some resamples, n], until there are ``resamples`` of them."""
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_VALUES // n)
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        counts = np.empty((rows, n))
        for row in range(rows):
            counts[row] = np.bincount(rng.integers(0, n, size=n, dtype=np.int32), minlength=n)
        yield counts


def quantity_estimate(
    value: float, n: int, replicates: Floats, span: float = 1.0, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> Estimate:
    """A quantity of ``n`` examples with the percentile interval of its ``replicates`` [r].

    A bootstrap of examples that all agree has no width, and one of few that differ has too little. So no interval is
    narrower than what ``n`` examples can show at all: a change of ``span`` whose rate is below 1 - alpha^(1/n) leaves no
    trace in them. ``bounds`` are the values that the quantity can take.
    """

    def interval(alpha: float) -> tuple[float, float]:
        least = span * (1.0 - alpha ** (1.0 / n))
        low, high = np.quantile(replicates, (alpha, 1.0 - alpha))
        return max(bounds[0], min(float(low), value - least)), min(bounds[1], max(float(high), value + least))

    return Estimate(value, n, interval(_TWO_SIDED), interval(_ONE_SIDED))


def drop_estimate(
    values: tuple[float, float],
    n: int,
    replicates: tuple[Floats, Floats],
    span: float = 1.0,
    bounds: tuple[float, float] = (-1.0, 1.0),
) -> Estimate:
    """The paired difference of two quantities, first - second; ``replicates`` are those of both, from one resampling."""
    return quantity_estimate(values[0] - values[1], n, replicates[0] - replicates[1], span, bounds)


def ratio_estimate(
    values: tuple[float, float], n: int, replicates: tuple[Floats, Floats], span: float = 1.0
) -> Estimate | None:
    """The paired ratio of two quantities, first / second; None where the second (or a resample of it) is not positive."""
    if values[1] <= 0 or not bool(np.all(replicates[1] > 0)):
        return None
    ratios = replicates[0] / replicates[1]
    return quantity_estimate(values[0] / values[1], n, ratios, span / values[1], (0.0, math.inf))


# --- percentiles ---------------------------------------------------------------------------------------------------


def samples_for_percentile(quantile: float, confidence: float = 0.99) -> int:
    """Samples needed so that the largest of them bounds the quantile from above: p90 44, p95 90, p99 459, p99.9 4603."""
    if not 0 < quantile < 1:
        raise ValueError(f"expected a quantile between 0 and 1, got {quantile}")
    return math.ceil(math.log(1.0 - confidence) / math.log(quantile))


# --- over processes and blocks -------------------------------------------------------------------------------------

Calls = Sequence[Sequence[Floats]]
"""Times of calls by process and block: [p][b][calls]."""


def block_weights(processes: int, blocks: int, seed: int, resamples: int = TIME_RESAMPLES) -> Floats:
    """How often each block is drawn when processes are resampled, then blocks within each drawn process: [r, p * b].

    Sides that are measured in turn use the same weights: what slowed a block down for both then cancels in their ratio.
    """
    rng = np.random.default_rng(seed)
    weights = np.zeros((resamples, processes * blocks))
    drawn = rng.integers(0, processes, size=(resamples, processes, 1))
    units = drawn * blocks + rng.integers(0, blocks, size=(resamples, processes, blocks))
    np.add.at(weights, (np.arange(resamples)[:, None], units.reshape(resamples, -1)), 1.0)
    return weights


def block_quantiles(calls: Calls, quantiles: Sequence[float], weights: Floats) -> tuple[Floats, Floats]:
    """Quantiles of all calls together [q] and of their resamples [r, q].

    A quantile is the smallest call at which that share of the calls is reached.
    """
    blocks = [np.asarray(block, dtype=np.float64) for process in calls for block in process]
    values = np.concatenate(blocks)
    owner = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
    order = np.argsort(values, kind="stable")
    values, owner = values[order], owner[order]
    point = np.array([values[max(0, math.ceil(quantile * len(values)) - 1)] for quantile in quantiles])
    replicates = np.empty((len(weights), len(quantiles)))
    for rows in _chunks(len(weights), len(values)):
        reached = np.cumsum(weights[rows][:, owner], axis=1)
        for column, quantile in enumerate(quantiles):
            target = quantile * reached[:, -1:] - 1e-9
            replicates[rows, column] = values[np.argmax(reached >= target, axis=1)]
    return point, replicates


def block_means(calls: Calls, weights: Floats) -> tuple[float, Floats]:
    """The mean over all calls and over their resamples [r]."""
    blocks = [np.asarray(block, dtype=np.float64) for process in calls for block in process]
    sums = np.array([block.sum() for block in blocks])
    counts = np.array([len(block) for block in blocks], dtype=np.float64)
    return float(sums.sum() / counts.sum()), (weights @ sums) / (weights @ counts)


def paired_ratio(above: Calls, below: Calls, weights: Floats) -> tuple[float, Floats]:
    """The geometric mean over blocks of the ratio of two sides' p50, and of its resamples [r].

    Block k of a process of one side was measured beside block k of the other, so what both saw cancels.
    """
    logs = [
        math.log(float(np.median(a)) / float(np.median(b)))
        for first, second in zip(above, below, strict=True)
        for a, b in zip(first, second, strict=True)
    ]
    ratios = np.array(logs)
    return math.exp(float(ratios.mean())), np.exp((weights @ ratios) / weights.sum(axis=1))


def time_estimate(value: float, replicates: Floats, processes: int, n: int) -> Estimate:
    """A time, a rate or a ratio of times, with an interval on the logarithmic scale.

    Few processes are few draws of what differs most: resampling p of them gives a variance too small by (p - 1) / p and
    tails of a normal distribution. So deviations are widened by sqrt(p / (p - 1)) t_{p-1} / z (Davison and Hinkley,
    section 2.3, for means of small samples).

    Raises:
        ValueError: fewer than two processes, which cannot show how much processes differ.
    """
    if processes < 2:
        raise ValueError("an interval of a time needs at least two processes")
    if value <= 0 or not bool(np.all(replicates > 0)):
        raise ValueError("times and their ratios are positive")
    deviations = np.log(replicates) - math.log(value)

    def interval(alpha: float) -> tuple[float, float]:
        wider = math.sqrt(processes / (processes - 1)) * student_t(alpha, processes - 1) / _Z[alpha]
        low, high = np.quantile(deviations, (alpha, 1.0 - alpha))
        return value * math.exp(min(0.0, wider * float(low))), value * math.exp(max(0.0, wider * float(high)))

    return Estimate(value, n, interval(_TWO_SIDED), interval(_ONE_SIDED))


def student_t_tail(t: float, degrees: int) -> float:
    """The mass of Student's distribution above ``t`` (Abramowitz and Stegun 26.7.3 and 26.7.4, finite sums)."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine, odd = math.cos(angle), degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for power in range(1 + odd, degrees, 2):
        total += term
        term *= cosine**2 * power / (power + 1)
    within = math.sin(angle) * total
    if odd:
        within = 2 / math.pi * (angle + within)
    return min(1.0, max(0.0, (1.0 - within) / 2))


def process_estimate(values: Floats) -> Estimate:
    """The geometric mean of positive values of fresh processes [p], with Student's interval on the logarithmic scale.

    Raises:
        ValueError: fewer than two processes.
    """
    if len(values) < 2:
        raise ValueError("an interval over processes needs at least two")
    logs = np.log(values)

    def interval(alpha: float) -> tuple[float, float]:
        low, high = student_interval(logs, alpha)
        return math.exp(low), math.exp(high)

    return Estimate(math.exp(float(logs.mean())), len(logs), interval(_TWO_SIDED), interval(_ONE_SIDED))


def student_interval(values: Floats, alpha: float) -> tuple[float, float]:
    """Student's interval of the mean of values [n], of which there are at least two, with ``alpha`` outside each end."""
    mean = float(values.mean())
    half = student_t(alpha, len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean - half, mean + half


@cache
def student_t(alpha: float, degrees: int) -> float:
    """Student's t above which ``alpha`` (below one half) of the mass lies."""
    high = 1.0
    while student_t_tail(high, degrees) > alpha:
        high *= 2
    low = 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_t_tail(middle, degrees) > alpha else (low, middle)
    return high


def _chunks(rows: int, values: int) -> Iterator[slice]:
    step = max(1, _CHUNK_VALUES // max(1, values))
    for start in range(0, rows, step):
        yield slice(start, min(rows, start + step))
