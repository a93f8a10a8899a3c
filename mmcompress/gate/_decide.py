"""Is the candidate slower by more than its budget? A pure function of recorded blocks: nothing here measures.

A **round** is one fresh process of the baseline, of the baseline again and of the candidate, which take turns. It gives one
number per quantity, the logarithm of the ratio of times: the median over the round's blocks, each a median of calls. Processes
differ more than calls do, so the round is the sampling unit, and intervals are Student's over rounds.

Looking after 5, 8, 12, ... rounds and stopping when the answer is there would reject too often. So the error is spent: look k
may use ``alpha (s(k) - s(k-1))`` with ``s(t) = ln(1 + (e - 1) t)``, which by the union bound keeps the whole below alpha whatever
the looks have in common (Lan and DeMets, Biometrika 70 (1983), the function of Pocock's type). The intervals that are told are
therefore repeated confidence intervals (Jennison and Turnbull, Journal of the Royal Statistical Society B 51 (1989)).
Several quantities are corrected for when one of them is to fail (Holm, Scandinavian Journal of Statistics 6 (1979)); that all
of them pass is an intersection of tests, each at its own level, and needs no correction (Berger, Technometrics 24 (1982)).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmcompress.metrics._statistics import Floats, student_interval, student_t, student_t_tail
from mmcompress.metrics._timing import Block, Job

BASELINE, AGAIN, CANDIDATE = "baseline", "baseline again", "candidate"
SIDES = (BASELINE, AGAIN, CANDIDATE)

Status = Literal["passed", "failed", "inconclusive"]
Next = Literal["first", "rerun", "nothing"]


@dataclass(frozen=True)
class Rule:
    """How the gate decides about times."""

    budget: float = 0.05
    """The slowdown that is allowed: 0.05 lets the candidate take 1.05 times as long."""
    alpha: float = 0.05
    """Of one side, over all looks together."""
    looks: tuple[int, ...] = (5, 8, 12, 17, 23, 30)
    """Rounds after which the gate looks, in the first run and in the rerun alike."""

    def spent(self, look: int) -> float:
        """The share of alpha that a look (0, 1, ...) may use."""

        def reached(rounds: int) -> float:
            return math.log(1 + (math.e - 1) * rounds / self.looks[-1])

        return reached(self.looks[look]) - (reached(self.looks[look - 1]) if look else 0.0)


@dataclass(frozen=True)
class Pairs:
    """One quantity, round by round: logarithms of ratios of times [n]."""

    candidate: Floats
    """Of the candidate to the mean of the two baselines."""
    again: Floats
    """Of the baseline to itself: what the machine alone does."""


@dataclass(frozen=True)
class Interval:
    """A mean logarithm with the ends that the last look may claim."""

    mean: float
    deviation: float
    """Standard deviation between rounds."""
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Found:
    """What the rounds of one run say of one quantity."""

    interval: Interval
    again: Interval
    p: float
    """Of the budget being kept, corrected for the looks."""
    within: bool
    """At some look the upper end lay within the budget."""


@dataclass(frozen=True)
class Decision:
    """Verdicts so far, and what is to be measured next."""

    status: Mapping[str, Status]
    reason: Mapping[str, str]
    first: Mapping[str, Found]
    rerun: Mapping[str, Found]
    next: Next


def pairs_of(blocks: Sequence[Block], job: Job, scope: str = "engine") -> Pairs:
    """The rounds of one job, in order. Waiting for a core that another program had is not part of a time."""
    times: dict[tuple[int, int, str], float] = {}
    for block in blocks:
        if block.job == job:
            calls, waited = (
                (block.engine, block.waited) if scope == "engine" else (block.end_to_end, block.end_to_end_waited)
            )
            own = np.array(calls) - np.array(waited or (0.0,) * len(calls))
            # A wait that is counted a little late can exceed its call by microseconds.
            times[block.process, block.block, block.side] = math.log(max(float(np.median(own)), 1e-5))
    rounds: dict[int, list[tuple[float, float]]] = {}
    for process, number, side in times:
        if side == CANDIDATE:
            one, two, new = (times[process, number, name] for name in SIDES)
            rounds.setdefault(process, []).append((new - (one + two) / 2, two - one))
    medians = np.array([np.median(np.array(rounds[process]), axis=0) for process in sorted(rounds)])
    return Pairs(medians[:, 0], medians[:, 1]) if len(medians) else Pairs(np.empty(0), np.empty(0))


def interval_of(values: Floats, alpha: float) -> Interval:
    """Student's interval whose ends leave ``alpha`` outside each; unbounded for fewer than two values."""
    n = len(values)
    if n < 2:
        return Interval(float(values.mean()) if n else 0.0, math.inf, -math.inf, math.inf, n)
    low, high = student_interval(values, alpha)
    return Interval(float(values.mean()), float(values.std(ddof=1)), low, high, n)


def examine(pairs: Pairs, rule: Rule) -> Found:
    """All looks that the rounds of one run have reached; the intervals are those of the last."""
    limit, p = math.log1p(rule.budget), 1.0
    # Before the first look there is something to tell, and nothing to decide by.
    interval = interval_of(pairs.candidate[: rule.looks[0] - 1], rule.alpha * rule.spent(0))
    again = interval_of(np.empty(0), rule.alpha)
    for look, n in enumerate(rule.looks):
        if n > len(pairs.candidate):
            break
        share = rule.spent(look)
        interval = interval_of(pairs.candidate[:n], rule.alpha * share)
        again = interval_of(pairs.again[:n], rule.alpha * share)
        p = min(p, _tail(interval, limit) / share)
        if interval.high <= limit:
            return Found(interval, again, p, True)
    return Found(interval, again, p, False)


def _tail(interval: Interval, limit: float) -> float:
    """How likely a mean at least as high is where the truth is the limit."""
    if interval.deviation == 0:
        return 0.0 if interval.mean > limit else 1.0
    return student_t_tail((interval.mean - limit) / (interval.deviation / math.sqrt(interval.n)), interval.n - 1)


def holm(p: Mapping[str, float], others: Sequence[float] = ()) -> dict[str, float]:
    """Holm's adjusted p-values; ``others`` take part and are not told."""
    family = [*((value, name) for name, value in p.items()), *((value, None) for value in others)]
    adjusted: dict[str, float] = {}
    worst = 0.0
    for rank, (value, name) in enumerate(sorted(family, key=lambda item: item[0])):
        worst = min(1.0, max(worst, value * (len(family) - rank)))
        if name is not None:
            adjusted[name] = worst
    return adjusted


def decide(
    first: Mapping[str, Pairs],
    rerun: Mapping[str, Pairs],
    rule: Rule,
    *,
    exhausted: bool = False,
    others: Sequence[float] = (),
) -> Decision:
    """What the rounds of a run, and of the rerun in fresh processes if there is one, say of every quantity.

    A quantity **passes** when its upper end lies within the budget. It **fails** when its lower end lies above, the baseline
    against itself stays within the budget, and the rerun says the same. Until then more is sampled, if time is left
    (``exhausted`` says that it is not), and what is then open is **inconclusive**.
    """
    found = {name: examine(pairs, rule) for name, pairs in first.items()}
    adjusted = holm({name: item.p for name, item in found.items()}, others)
    above = {name for name, item in found.items() if not item.within and adjusted[name] <= rule.alpha}
    off = {name for name, item in found.items() if is_off(item.again, rule)}
    noisy = {name for name in above if not is_quiet(found[name].again, rule)}
    open_ = {name for name, item in found.items() if not item.within and name not in above} | noisy
    over = exhausted or _rounds(first) >= rule.looks[-1]
    again = {name: examine(pairs, rule) for name, pairs in rerun.items() if name in above}
    status: dict[str, Status] = {}
    reason: dict[str, str] = {}
    for name, item in found.items():
        if name in off:
            status[name], reason[name] = "inconclusive", off_text(item.again)
        elif item.within:
            status[name], reason[name] = "passed", ""
        elif name in open_:
            status[name], reason[name] = "inconclusive", needed_text(item, rule, noisy=name in noisy)
        else:
            status[name], reason[name] = _confirmed(again.get(name), rule)
    step: Next = "nothing"
    decided = above - noisy - off
    if not off and open_ and not decided and not over:
        step = "first"
    elif decided and not exhausted and _rounds(rerun) < rule.looks[-1]:
        undecided = [name for name in decided if name not in again or _open(again[name], rule)]
        step = "rerun" if undecided else "nothing"
    return Decision(status, reason, found, again, step)


def _rounds(pairs: Mapping[str, Pairs]) -> int:
    return min((len(item.candidate) for item in pairs.values()), default=0)


def _open(found: Found, rule: Rule) -> bool:
    return not found.within and found.p > rule.alpha


def _confirmed(rerun: Found | None, rule: Rule) -> tuple[Status, str]:
    if rerun is None or rerun.interval.n == 0:
        return "inconclusive", "slower in the first run; no time was left to confirm it in fresh processes"
    if is_off(rerun.again, rule):
        return "inconclusive", off_text(rerun.again)
    if rerun.p <= rule.alpha:
        return "failed", "a rerun in fresh processes confirms it"
    if rerun.within:
        return (
            "inconclusive",
            "slower in the first run, within the budget in the rerun: the machine changed between them",
        )
    return "inconclusive", "slower in the first run, and the rerun did not decide: " + needed_text(rerun, rule)


def is_off(again: Interval, rule: Rule) -> bool:
    """The baseline differs from itself: its interval lies beyond half the budget."""
    half = math.log1p(rule.budget) / 2
    return again.n > 1 and (again.low > half or again.high < -half)


def is_quiet(again: Interval, rule: Rule) -> bool:
    """The baseline against itself is known to stay within the budget."""
    return max(abs(again.low), abs(again.high)) <= math.log1p(rule.budget)


def off_text(again: Interval) -> str:
    """What to say of a machine on which the baseline differs from itself."""
    return f"the baseline differs from itself by {math.expm1(again.mean):+.1%}: this machine cannot tell"


def needed_rounds(interval: Interval, limit: float, alpha: float) -> int | None:
    """Rounds after which an interval around the same mean would exclude the limit; None where none would."""
    distance = abs(interval.mean - limit)
    if distance == 0 or not math.isfinite(interval.deviation):
        return None
    needed = interval.n + 1
    while needed < 1_000_000:
        if student_t(alpha, min(needed, 400) - 1) * interval.deviation / math.sqrt(needed) < distance:
            return needed
        needed = max(needed + 1, int(needed * 1.1))
    return None


def needed_text(found: Found, rule: Rule, *, noisy: bool = False) -> str:
    """What an undecided quantity would have needed."""
    interval = found.again if noisy else found.interval
    if interval.n < rule.looks[0]:
        return f"{interval.n} rounds were measured; {rule.looks[0]} are the fewest"
    limit = math.copysign(math.log1p(rule.budget), interval.mean) if noisy else math.log1p(rule.budget)
    needed = needed_rounds(interval, limit, rule.alpha * rule.spent(len(rule.looks) - 1))
    what = "the baseline's interval against itself is wider than" if noisy else "the interval contains"
    would = f"about {needed:,} rounds would decide" if needed else "no number of rounds is known to decide"
    return f"{what} the budget after {interval.n} rounds (they differ by {interval.deviation:.1%}); {would}"
