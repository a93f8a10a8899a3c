"""Cuts for a goal of time, made again until what is left takes, measured, what was asked for.

A table of times prices each part of a model; what the whole takes besides depends on what fits into the caches. So the cut
model is exported and timed in turn with the one before it, and where it takes more or less than it should, the budget is
corrected by as much and the cut made anew.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmcompress.errors import StageError
from mmcompress.families import Feeds
from mmcompress.stages import Model
from mmcompress.stages._block_times import compiled, open_compiled
from mmcompress.stages._cutting import Budget
from mmcompress.stages._goal import Goal
from mmcompress.stages._timing_rounds import Timed, time_in_turn

CUTS = 5
NEAR = 0.02
"""Relative to the goal; nearer than that, times of processes do not tell two models apart."""
OPENINGS, ROUNDS = 5, 6
"""An engine's time depends on where its memory came to lie, so each is opened more than once."""

Milliseconds = Mapping[str, tuple[float, float]]
"""By tower, what its graph takes before a cut and after it; what is exact about the second is its ratio to the first."""


@dataclass(frozen=True)
class Aimed:
    """A cut, with its facts and what it takes."""

    asked: Budget
    """What the cut was asked for, in terms of the table."""
    facts: Mapping[str, Any]
    milliseconds: Milliseconds

    def over(self, budget: Budget) -> dict[str, float]:
        """By tower that a budget cuts, the share of its time that is left over the share that it should be."""
        return {
            tower: after / before / budget.keep(tower)
            for tower, (before, after) in self.milliseconds.items()
            if budget.keep(tower) < 1
        }

    def miss(self, budget: Budget) -> float:
        """How far the tower that misses most is off, as the size of a logarithm."""
        return max((abs(math.log(over)) for over in self.over(budget).values()), default=0.0)


def aim(
    budget: Budget,
    cut: Callable[[Budget, Path], Mapping[str, Any]],
    clock: Callable[[Path], Milliseconds],
    work: Path,
) -> Aimed:
    """The cut whose measured time is nearest to a budget, of :data:`CUTS` or fewer.

    Args:
        budget: The shares of time that towers shall keep.
        cut: Cuts by a budget in terms of the table, into a folder; gives the facts.
        clock: Times a cut model beside the one before it.
        work: Where cuts lie.

    Raises:
        StageError: even the smallest structure takes more than the budget by the table.
    """
    best: Aimed | None = None
    seen: list[Any] = []
    reached: dict[str, list[tuple[float, float]]] = {}
    asked = budget
    for number in range(CUTS):
        folder = work / f"aimed-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            facts = cut(asked, folder)
        except StageError:
            if best is None:
                raise
            break  # the correction asks for less than the smallest structure, or for no cut
        structure = (facts["blocks"], facts.get("widths"))
        if structure in seen:
            break
        seen.append(structure)
        found = Aimed(asked, facts, clock(folder))
        if best is None or found.miss(budget) < best.miss(budget):
            best = found
        if best.miss(budget) <= NEAR:
            break
        for tower, over in found.over(budget).items():
            reached.setdefault(tower, []).append((asked.keep(tower), over))
        corrected = {tower: _corrected(tries) for tower, tries in reached.items()}
        asked = replace(asked, towers={**asked.towers, **corrected})
    assert best is not None
    return best


def _corrected(tries: Sequence[tuple[float, float]]) -> float:
    """What to ask for next, by what was asked for and what was left over the goal, try by try.

    On the line through the two nearest tries, where they can tell its slope; else in proportion to the last.
    """
    asked, over = tries[-1]
    near, far = sorted(tries, key=lambda one: abs(math.log(one[1])))[:2] if len(tries) > 1 else (tries[-1], tries[-1])
    slope = (far[1] - near[1]) / (far[0] - near[0]) if far[0] != near[0] else 0.0
    wanted = near[0] + (1 - near[1]) / slope if slope > 0 and abs(far[1] - near[1]) > NEAR else asked / over
    return min(1.0, max(wanted, asked / 2))


def with_times(aimed: Aimed, budget: Budget) -> dict[str, Any]:
    """The facts of a cut with the milliseconds before and after, and a note for each tower that missed its goal."""
    notes = list(aimed.facts["notes"])
    for tower, over in aimed.over(budget).items():
        if abs(math.log(over)) > NEAR:
            before, after = aimed.milliseconds[tower]
            notes.append(
                f"{tower}: takes {after:.3g} ms, where the goal leaves {before * budget.keep(tower):.3g} of {before:.3g} ms:"
                " the nearest of the cuts that were timed"
            )
    towers = {
        tower: {**costs, **({"milliseconds": list(aimed.milliseconds[tower])} if tower in aimed.milliseconds else {})}
        for tower, costs in aimed.facts["towers"].items()
    }
    return {**aimed.facts, "towers": towers, "notes": notes}


# --- timing --------------------------------------------------------------------------------------------------------


class Clock:
    """Times models beside the one that they were cut from, on the runtime that a goal is of."""

    def __init__(self, source: Model, towers: Mapping[str, str], goal: Goal, work: Path) -> None:
        """``towers`` names the graph of each; compiled graphs lie below ``work``."""
        assert goal.on is not None
        self._family, self._towers, self._work = source.family, towers, work
        self._runtime, self._threads, self._batch = goal.on, goal.threads, goal.batch
        self._whole = self._compiled("whole", source.folder)

    def __call__(self, folder: Path) -> Milliseconds:
        """What each tower's graph takes before a cut and after it: the medians over openings of the first and of their ratio.

        Processors change their speed for seconds at a time. Both of an opening's times are of the same seconds, so that
        their ratio holds where medians of each by itself would be of different ones.
        """
        feeds = {"whole": self._whole, "cut": self._compiled("cut", folder)}
        found: list[Mapping[tuple[str, str], float]] = []
        for seed in range(OPENINGS):
            sides = [side for name, given in feeds.items() for side in self._open(name, given)]
            found.append(time_in_turn(sides, ROUNDS, seed))
            for session in {id(side.session): side.session for side in sides}.values():
                session.close()
        return {tower: before_and_after(found, graph) for tower, graph in self._towers.items()}

    def _compiled(self, name: str, folder: Path) -> dict[str, Feeds]:
        shutil.rmtree(self._work / name, ignore_errors=True)
        return compiled(self._family, folder, self._runtime, self._batch, self._work / name)

    def _open(self, name: str, feeds: Mapping[str, Feeds]) -> list[Timed]:
        sides = open_compiled(name, self._work / name, feeds, self._runtime, self._threads)
        return [side for side in sides if side.graph in self._towers.values()]


def before_and_after(found: Sequence[Mapping[tuple[str, str], float]], graph: str) -> tuple[float, float]:
    """Medians over openings of a graph's milliseconds before a cut, and, by those of its ratio, after it."""
    pairs = np.array([(times["whole", graph], times["cut", graph]) for times in found])
    before, ratio = np.median(pairs[:, 0]), np.median(pairs[:, 1] / pairs[:, 0])
    return float(before), float(before * ratio)
