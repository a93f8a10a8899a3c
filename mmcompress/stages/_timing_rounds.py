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

ROUNDS, CALLS, SETTLE = 16, 3, 1


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
    """The milliseconds of a call of each graph, by name and graph: the lower quartile over rounds of a round's fastest call.

    Each round visits all in a new order; calls that only warm the caches are not counted. Other processes only add time,
    so the fast calls tell most of the graph itself.
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
                for _ in range(SETTLE):
                    sides[index].milliseconds()
                found[number, index] = min(sides[index].milliseconds() for _ in range(CALLS))
    finally:
        gc.enable()
    quartiles = np.quantile(found, 0.25, axis=0)
    return {(side.name, side.graph): float(value) for side, value in zip(sides, quartiles, strict=True)}
