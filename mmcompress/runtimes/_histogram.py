"""Histograms of activations that grow without losing a count, and the ranges that calibrators read from them.

A histogram has at most :data:`BINS` bins (16 KiB) however many values it has seen. The width of its bins is a power of two
and their edges are multiples of it, so bins merge in pairs without a remainder, and batches may come in any order.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Calibrator = Literal["minmax", "percentile", "entropy", "mse"]
Floats = NDArray[np.float64]
Range = tuple[float, float]

BINS = 2048
PERCENTILE = 0.9999
"""Of the magnitudes, that the percentile calibrator keeps."""
LEVELS = 128
"""Of a magnitude in eight bits: what the entropy calibrator compares with."""
MASKED = 1e30
"""Magnitudes from here on stand for "not there" (masks hold -3.4e38 or infinity) and have no part in a range."""
_SMALLEST_EXPONENT = -100
_SHRINKS = np.linspace(0.05, 1.0, 96)
"""Shares of the full range among which the MSE calibrator looks."""
_THRESHOLDS = 100


class Histogram:
    """Counts of values, with their exact minimum and maximum. Zero is always inside the range: padding is zero."""

    def __init__(self) -> None:
        self.exponent = _SMALLEST_EXPONENT
        self.first = 0
        """Number of the first bin: it begins at ``first * width``."""
        self.counts: NDArray[np.int64] = np.zeros(1, np.int64)
        self.low = 0.0
        self.high = 0.0

    @property
    def width(self) -> float:
        """Of a bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def centers(self) -> Floats:
        """Middles of the bins."""
        return np.asarray((np.arange(self.first, self.first + len(self.counts)) + 0.5) * self.width, np.float64)

    def add(self, values: NDArray[np.float32]) -> None:
        """Count values; what is masked is left out.

        Raises:
            ValueError: a value is not a number.
        """
        flat = values.reshape(-1)
        if flat.size == 0:
            return
        low, high = float(flat.min()), float(flat.max())
        if math.isnan(low) or math.isnan(high):
            raise ValueError("not a number")
        if low <= -MASKED or high >= MASKED:
            flat = flat[np.abs(flat) < MASKED]
            if flat.size == 0:
                return
            low, high = float(flat.min()), float(flat.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._grow()
        bins = np.floor(flat * np.float32(1.0 / self.width)).astype(np.int32)
        bins -= self.first
        np.clip(bins, 0, len(self.counts) - 1, out=bins)
        self.counts += np.bincount(bins, minlength=len(self.counts))

    def _grow(self) -> None:
        """Widen the bins until the range fits, and take in the bins that it needs."""
        spread = max(self.high - self.low, max(abs(self.low), abs(self.high)) / BINS)
        exponent = max(self.exponent, math.ceil(math.log2(spread / BINS)) if spread > 0 else self.exponent)
        while math.floor(self.high / 2.0**exponent) - math.floor(self.low / 2.0**exponent) + 1 > BINS:
            exponent += 1
        merged = exponent - self.exponent
        old = np.arange(self.first, self.first + len(self.counts)) >> min(merged, 62)
        first = math.floor(self.low / 2.0**exponent)
        counts = np.zeros(math.floor(self.high / 2.0**exponent) - first + 1, np.int64)
        np.add.at(counts, np.clip(old - first, 0, len(counts) - 1), self.counts)
        self.exponent, self.first, self.counts = exponent, first, counts


def range_of(histogram: Histogram, calibrator: Calibrator, levels: int = 255) -> Range:
    """Lowest and highest value that eight bits shall reach; zero is inside. Of a constant zero it is (0, 0)."""
    low, high = histogram.low, histogram.high
    if calibrator == "minmax" or low == high or not histogram.counts.any():
        return low, high
    if calibrator == "mse":
        return _least_error(histogram, levels)
    threshold = _percentile(histogram) if calibrator == "percentile" else _least_divergence(histogram)
    return max(low, -threshold), min(high, threshold)


def magnitudes(histogram: Histogram) -> tuple[Floats, NDArray[np.int64]]:
    """Upper edges of bins of the magnitude, ascending from one width, and their counts."""
    number = np.arange(histogram.first, histogram.first + len(histogram.counts))
    folded = np.where(number >= 0, number, -number - 1)
    counts = np.bincount(folded, histogram.counts.astype(np.float64)).astype(np.int64)
    return np.asarray((np.arange(len(counts)) + 1.0) * histogram.width, np.float64), counts


def _percentile(histogram: Histogram) -> float:
    edges, counts = magnitudes(histogram)
    reached = np.cumsum(counts) / counts.sum()
    return float(edges[int(np.argmax(reached >= PERCENTILE))])


def _least_error(histogram: Histogram, levels: int) -> Range:
    """The share of the full range with the least squared error of rounding and clipping."""
    centers, counts = histogram.centers, histogram.counts
    best, found = math.inf, (histogram.low, histogram.high)
    for shrink in _SHRINKS[::-1]:
        low, high = histogram.low * shrink, histogram.high * shrink
        scale = (high - low) / levels
        clipped = np.clip(centers, low, high)
        rounded = np.where(clipped == centers, scale**2 / 12.0, (centers - clipped) ** 2)
        error = float(rounded @ counts)
        if error < best:
            best, found = error, (low, high)
    return found


def _least_divergence(histogram: Histogram) -> float:
    """The threshold of the magnitude with the least KL divergence (Migacz, 8-bit inference with TensorRT, GTC 2017)."""
    edges, counts = magnitudes(histogram)
    if len(counts) <= LEVELS:
        return float(edges[-1])
    best, found = math.inf, float(edges[-1])
    for size in np.unique(np.linspace(LEVELS, len(counts), _THRESHOLDS).astype(int)):
        clipped = counts[:size].astype(np.float64)
        reference = clipped.copy()
        reference[-1] += counts[size:].sum()
        group = np.arange(size) * LEVELS // size
        present = clipped > 0
        sums, members = np.bincount(group, clipped), np.bincount(group, present)
        spread = np.where(present, (sums / np.maximum(members, 1))[group], 0.0)
        divergence = _divergence(reference, spread)
        if divergence < best:
            best, found = divergence, float(edges[size - 1])
    return found


def _divergence(reference: Floats, found: Floats) -> float:
    """KL(reference || found) of counts; what ``found`` lacks counts as a ten-thousandth of an event."""
    if not found.any():
        return math.inf
    p, q = reference / reference.sum(), np.maximum(found, 1e-4) / found.sum()
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / q[seen])).sum())
