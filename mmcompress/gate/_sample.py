"""Sampling until there is an answer: rounds from a recorder, looks at them, a rerun where something would fail."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mmcompress.errors import InputError, UsageError
from mmcompress.gate._decide import (
    AGAIN,
    BASELINE,
    CANDIDATE,
    Decision,
    Interval,
    Pairs,
    Rule,
    decide,
    interval_of,
    pairs_of,
)
from mmcompress.metrics._statistics import student_t
from mmcompress.metrics._timing import Block, Job, Opens, Plan, time_processes

Record = Callable[[], Sequence[Block]]
"""Measures one round: fresh processes of all sides."""
Quantities = Mapping[str, tuple[Job, str]]
"""What is compared, by name: a job, and ``engine`` or ``end_to_end``."""

BLOCK_SECONDS = 0.05
VISITS = 3
"""There and back over the sides, in each round."""
SLOW_ROUND_SECONDS = 15.0
LEAST_DEVIATION = 0.003
"""Between processes, of the quietest machines: what a budget is held against before anything is measured."""
PILOT_BELOW, PILOT_ROUNDS = 0.02, 4


@dataclass
class Sampled:
    """What was measured, and what it says."""

    decision: Decision
    first: list[Block] = field(default_factory=list)
    rerun: list[Block] = field(default_factory=list)
    seconds: float = 0.0


class Recorder:
    """Measures rounds of three sides on this machine: call it for one round."""

    def __init__(self, baseline: Opens, candidate: Opens, jobs: Sequence[Job], threads: int, seed: int) -> None:
        self.sides = {BASELINE: baseline, AGAIN: baseline, CANDIDATE: candidate}
        self.jobs, self.threads, self.seed = jobs, threads, seed
        self.chance = random.Random(seed)
        self.calls: dict[tuple[str, Job], int] = {}
        self.rounds, self.visits = 0, VISITS

    def __call__(self) -> Sequence[Block]:
        """One round.

        Raises:
            InputError: a side does not load on this machine.
        """
        absent: dict[str, str] = {}
        plan = Plan(1, self.visits, BLOCK_SECONDS, self.seed)
        started = time.monotonic()
        blocks = time_processes(self.sides, self.jobs, self.threads, plan, self.rounds, self.chance, self.calls, absent)
        if absent:
            name, reason = next(iter(absent.items()))
            raise InputError(f"the {name} does not load on this machine: {reason}")
        self.rounds += 1
        if time.monotonic() - started > SLOW_ROUND_SECONDS:
            self.visits = 1  # more processes tell more than more blocks of the same ones
        return blocks


def sample(
    record: Record,
    quantities: Quantities,
    rule: Rule,
    *,
    others: Sequence[float] = (),
    limit_seconds: float = math.inf,
    told: Callable[[int, str], None] = lambda rounds, run: None,
) -> Sampled:
    """Record rounds until every quantity is decided or time is up; see :func:`mmcompress.gate._decide.decide`.

    ``others`` are p-values of further quantities that are corrected for; ``told`` hears of each round before it.
    """
    started = time.monotonic()
    runs: dict[str, list[Block]] = {"first": [], "rerun": []}
    rounds = {"first": 0, "rerun": 0}
    while True:
        pairs = {name: _pairs(blocks, quantities) for name, blocks in runs.items()}
        exhausted = time.monotonic() - started > limit_seconds
        decision = decide(pairs["first"], pairs["rerun"], rule, exhausted=exhausted, others=others)
        if decision.next == "nothing":
            return Sampled(decision, runs["first"], runs["rerun"], time.monotonic() - started)
        wanted = next(look for look in rule.looks if look > rounds[decision.next])
        while rounds[decision.next] < wanted and time.monotonic() - started <= limit_seconds:
            told(rounds[decision.next], decision.next)
            runs[decision.next] += record()
            rounds[decision.next] += 1


def _pairs(blocks: Sequence[Block], quantities: Quantities) -> dict[str, Pairs]:
    return {name: pairs_of(blocks, *what) for name, what in quantities.items()}


def level_of(blocks: Sequence[Block], job: Job, scope: str, side: str, alpha: float = 0.05) -> Interval:
    """A side's typical time, as the logarithm of milliseconds, with an interval over rounds."""
    rounds: dict[int, list[float]] = {}
    for block in blocks:
        if block.job == job and block.side == side:
            calls, waited = (
                (block.engine, block.waited) if scope == "engine" else (block.end_to_end, block.end_to_end_waited)
            )
            own = float(np.median(np.array(calls) - np.array(waited)))
            rounds.setdefault(block.process, []).append(math.log(max(own, 1e-5)))
    return interval_of(np.array([np.median(values) for values in rounds.values()]), alpha)


def resolvable(rule: Rule, deviation: float) -> float:
    """The slowdown that the last look can just tell from none, where processes differ by ``deviation``."""
    rounds, share = rule.looks[-1], rule.spent(len(rule.looks) - 1)
    half = student_t(rule.alpha * share, rounds - 1) * deviation * math.sqrt(1.5 / rounds)
    return math.expm1(half)


def check_budget(rule: Rule) -> None:
    """Refuse a budget that no machine resolves in so many rounds.

    Raises:
        UsageError: with the smallest that could be.
    """
    least = resolvable(rule, LEAST_DEVIATION)
    if rule.budget < least:
        raise UsageError(
            f"a latency budget of {rule.budget:.2%} cannot be resolved: processes of the same engine differ by "
            f"{LEAST_DEVIATION:.1%} on the quietest machines\n"
            f"  Give at least {least:.2%}: --budget latency={least * 100:.2g}%."
        )


def pilot(record: Record, quantities: Quantities, rule: Rule) -> str:
    """For tight budgets: what the baseline against itself says of this machine; empty where it can resolve the budget."""
    if rule.budget >= PILOT_BELOW:
        return ""
    blocks = [block for _ in range(PILOT_ROUNDS) for block in record()]
    for name, pairs in _pairs(blocks, quantities).items():
        deviation = float(pairs.again.std(ddof=1)) / math.sqrt(2)
        least = resolvable(rule, deviation)
        if least > rule.budget:
            return (
                f"{name}: this machine cannot resolve {rule.budget:.2%} now: processes of the baseline differ by "
                f"{deviation:.1%}, so {least:.2%} is the least that {rule.looks[-1]} rounds tell from none"
            )
    return ""
