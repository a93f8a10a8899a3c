"""Several callers of one package against one caller: throughput on two cores, and whether the answers are the same.

    python benchmarks/serving.py runs/quickstart/latest/packages/onnxruntime --out benchmarks/results/serving.json   (about two minutes)

One caller asks for one example at a time, with two threads in the engine: what ``load_package(path, threads=2)`` does by
itself. Against it four callers ask the same of ``load_package(path, threads=1, workers=2)``. Both decode, preprocess and
run the package's probe examples, in rounds that take turns (A B B A).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from _claims import THREADS, Claim, main, verdict

from mmcompress.measure import alone
from mmcompress.package import Package, load_package

CALLERS = 4
GOAL = 1.2
TOLERANCE = 1e-4
"""Of a component of a normalised embedding: what joining inputs in a batch may change."""
PAUSE_SECONDS = 0.05


def measure(quick: bool, folder: Path) -> tuple[Sequence[Claim], Mapping[str, Any]]:
    """Rates in rounds, their ratio, and the largest difference of the answers, for each request."""
    rounds, seconds = (4, 0.3) if quick else (20, 1.0)
    claims: list[Claim] = []
    samples: dict[str, Any] = {}
    with (
        alone(),
        load_package(folder, threads=THREADS) as one,
        load_package(folder, threads=1, workers=THREADS, verify=False) as shared,
        ThreadPoolExecutor(CALLERS) as pool,
    ):
        columns, _ = one.probe()
        for request in one.requests:
            inputs = [{name: [columns[name][i]] for name in request.inputs} for i in range(len(columns["id"]))]
            expected = [one.ask(request.name, values) for values in inputs]
            found = list(pool.map(lambda values, name=request.name: shared.ask(name, values), inputs))
            claims.append(_difference(request.name, request.answers, expected, found))
            rates: dict[str, list[float]] = {"one": [], "shared": []}
            for number in range(rounds):
                order = ("one", "shared") if number % 2 == 0 else ("shared", "one")
                for side in order:
                    callers, package = (1, one) if side == "one" else (CALLERS, shared)
                    rates[side].append(_rate(package, request.name, inputs, callers, seconds, pool))
                    time.sleep(PAUSE_SECONDS)
            claims.append(_ratio(request.name, rates))
            samples[request.name] = rates
    return claims, samples


def _rate(
    package: Package, request: str, inputs: Sequence[Mapping[str, Any]], callers: int, seconds: float, pool: Any
) -> float:
    """Answers per second of so many callers, each of whom asks again when it has its answer."""
    ends = time.perf_counter() + seconds

    def call(number: int) -> int:
        done = number
        while time.perf_counter() < ends:
            package.ask(request, inputs[done % len(inputs)])
            done += 1
        return done - number

    started = time.perf_counter()
    counts = list(pool.map(call, range(callers))) if callers > 1 else [call(0)]
    return sum(counts) / (time.perf_counter() - started)


def _ratio(request: str, rates: Mapping[str, Sequence[float]]) -> Claim:
    """Rounds are the units that are drawn again; neighbours in time stay together."""
    pairs = np.log(np.array(rates["shared"]) / np.array(rates["one"]))
    drawn = np.random.default_rng(0).integers(len(pairs), size=(10_000, len(pairs)))
    means = np.exp(pairs[drawn].mean(axis=1))
    low, high = (float(end) for end in np.quantile(means, (0.025, 0.975)))
    worse, better = (float(end) for end in np.quantile(means, (0.05, 0.95)))
    holds = verdict((worse, better), GOAL, higher_is_better=True)
    name = f"{request}: throughput of {CALLERS} callers, times one caller's"
    return Claim(name, float(np.exp(pairs.mean())), "ratio", (low, high), GOAL, True, holds)


def _difference(request: str, kind: str, expected: Sequence[Any], found: Sequence[Any]) -> Claim:
    """The largest difference of numbers, or the share of tokens and tags that differ."""
    if kind in ("tokens", "tags"):
        different = float(np.mean([not np.array_equal(a, b) for a, b in zip(expected, found, strict=True)]))
        return Claim(
            f"{request}: answers that differ from one caller's", different, "ratio", None, 0.0, False, different == 0
        )
    largest = max(float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True))
    name = f"{request}: largest difference from one caller's answers"
    return Claim(name, largest, "", None, TOLERANCE, False, largest <= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main(__doc__, measure, paths=("package",)))
