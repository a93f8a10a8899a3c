"""Times of many opened graphs in turn, so that drift of the machine hits all of them alike."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmcompress.families import Feeds
from mmcompress.runtimes import Session

ROUNDS, FEWEST_CALLS = 12, 3
SETTLE_SECONDS, TIMED_SECONDS = 0.04, 0.02
"""Worker threads of the session that ran before keep spinning for some 20 ms: so long, and until the scheduler has spread a
session's own threads over the cores, it runs as fast as with one thread."""


@dataclass(frozen=True)
class Timed:
    """An opened graph with what it is fed."""

    name: str
    graph: str
    session: Session
    feeds: Feeds

    def milliseconds(self) -> float:
        """One call."""
        started = time.perf_counter()
        self.session.run(self.graph, self.feeds)
        return (time.perf_counter() - started) * 1000


def time_in_turn(sides: Sequence[Timed], rounds: int = ROUNDS, seed: int = 0) -> dict[tuple[str, str], float]:
    """The milliseconds of a call of each graph, by name and graph: the lower quartile over rounds of a round's lower quartile.

    Each round visits all in a new order. A visit calls the graph without counting until it has settled, and then for as
    long as it takes to see past single slow calls. Other processes only add time, so fast calls tell most of the graph.
    """
    chance = random.Random(seed)
    found = np.zeros((rounds, len(sides)))
    gc.collect()
    gc.disable()
    try:
        for side in sides:
            side.milliseconds()
        for number in range(rounds):
            order = list(range(len(sides)))
            chance.shuffle(order)
            for index in order:
                found[number, index] = _visit(sides[index])
    finally:
        gc.enable()
    quartiles = np.quantile(found, 0.25, axis=0)
    return {(side.name, side.graph): float(value) for side, value in zip(sides, quartiles, strict=True)}


def _visit(side: Timed) -> float:
    _calls(side, SETTLE_SECONDS, 1)
    return float(np.quantile(_calls(side, TIMED_SECONDS, FEWEST_CALLS), 0.25))


def _calls(side: Timed, seconds: float, fewest: int) -> list[float]:
    """Milliseconds of as many calls as fit into so many seconds, and at least ``fewest``."""
    found: list[float] = []
    while len(found) < fewest or sum(found) < 1000 * seconds:
        found.append(side.milliseconds())
    return found
