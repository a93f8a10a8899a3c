"""Decisions about slowdowns on rounds whose truth is known: hand-made blocks, and draws from stated distributions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from mmcompress.errors import UsageError
from mmcompress.gate._decide import (
    AGAIN,
    BASELINE,
    CANDIDATE,
    Decision,
    Pairs,
    Rule,
    decide,
    examine,
    holm,
    interval_of,
    needed_rounds,
    pairs_of,
)
from mmcompress.gate._sample import check_budget, level_of, pilot, resolvable, sample
from mmcompress.metrics._timing import Block, Job

pytestmark = pytest.mark.unit
JOB = Job("graph", 1)


def pairs(candidate: list[float], again: list[float] | None = None) -> dict[str, Pairs]:
    return {
        "x": Pairs(
            np.array(candidate),
            np.array(again if again is not None else [0.0, 0.001] * (len(candidate) // 2 + 1))[: len(candidate)],
        )
    }


def block(side: str, ms: float, process: int = 0, number: int = 0, waited: float = 0.0) -> Block:
    return Block(process, number, side, JOB, (ms, ms, 9 * ms), (2 * ms,), (waited, waited, 0.0), (0.0,))


def test_a_round_is_the_median_over_blocks_and_waiting_is_no_part_of_it() -> None:
    blocks = []
    for number, slower in enumerate((1.10, 1.10, 5.0)):
        blocks += [block(BASELINE, 2.0, number=number), block(AGAIN, 2.0, number=number)]
        blocks.append(block(CANDIDATE, 2.0 * slower + 3.0, number=number, waited=3.0))
    found = pairs_of(blocks, JOB)
    assert found.candidate == pytest.approx([math.log(1.10)])
    assert found.again == pytest.approx([0.0])
    level = level_of(blocks, JOB, "engine", BASELINE)
    assert math.exp(level.mean) == pytest.approx(2.0)


def test_the_candidate_is_held_against_the_mean_of_both_baselines() -> None:
    blocks = [block(BASELINE, 1.0), block(AGAIN, 4.0), block(CANDIDATE, 2.0)]
    assert pairs_of(blocks, JOB).candidate == pytest.approx([0.0])
    assert pairs_of(blocks, JOB).again == pytest.approx([math.log(4.0)])


def test_end_to_end_times_are_their_own() -> None:
    blocks = [block(BASELINE, 1.0), block(AGAIN, 1.0), block(CANDIDATE, 3.0)]
    assert pairs_of(blocks, JOB, "end_to_end").candidate == pytest.approx([math.log(3.0)])


def test_the_error_is_spent_and_never_more() -> None:
    rule = Rule()
    shares = [rule.spent(look) for look in range(len(rule.looks))]
    assert sum(shares) == pytest.approx(1.0)
    assert shares[0] == pytest.approx(math.log(1 + (math.e - 1) * 5 / 30))
    assert min(shares) > 0


def test_students_interval_by_hand() -> None:
    # Mean 2, deviation 1, n 4: 2.3534 / 2 on each side.
    found = interval_of(np.array([1.0, 2.0, 2.0, 3.0]), 0.05)
    assert found.deviation == pytest.approx(math.sqrt(2 / 3))
    assert found.high - found.mean == pytest.approx(2.3534 * math.sqrt(2 / 3) / 2, rel=1e-4)


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04}, [0.03]) == pytest.approx({"a": 0.03, "b": 0.06})
    assert holm({"a": 0.9}, [0.9, 0.9]) == {"a": 1.0}


@pytest.mark.parametrize(
    ("first", "rerun", "status", "following"),
    [
        ([], [], "inconclusive", "first"),
        ([0.001, -0.001, 0.0, 0.002, 0.001], [], "passed", "nothing"),
        ([0.09, 0.091, 0.092, 0.09, 0.091], [], "inconclusive", "rerun"),
        ([0.09, 0.091, 0.092, 0.09, 0.091], [0.09, 0.091, 0.092, 0.09, 0.091], "failed", "nothing"),
        ([0.09, 0.091, 0.092, 0.09, 0.091], [0.0, 0.001, 0.002, 0.0, 0.001], "inconclusive", "nothing"),
        ([0.0, 0.1, 0.0, 0.1, 0.05], [], "inconclusive", "first"),
    ],
)
def test_three_verdicts_and_what_comes_next(
    first: list[float], rerun: list[float], status: str, following: str
) -> None:
    decision = decide(pairs(first), pairs(rerun), Rule())
    assert (decision.status["x"], decision.next) == (status, following)


def test_a_machine_on_which_the_baseline_differs_from_itself_decides_nothing() -> None:
    slower, off = [0.09, 0.091, 0.092, 0.09, 0.091], [0.06, 0.061, 0.062, 0.06, 0.061]
    decision = decide(pairs(slower, off), {}, Rule())
    assert decision.status["x"] == "inconclusive" and decision.next == "nothing"
    assert "differs from itself by +6.3%" in decision.reason["x"]
    noisy = decide(pairs(slower, [0.1, -0.1, 0.1, -0.1, 0.0]), {}, Rule())
    assert noisy.status["x"] == "inconclusive" and noisy.next == "first"


def test_time_that_is_up_leaves_open_what_is_open_and_says_what_it_would_have_needed() -> None:
    open_ = decide(pairs([0.0, 0.09, 0.01, 0.08, 0.03]), {}, Rule(), exhausted=True)
    assert open_.next == "nothing" and "rounds would decide" in open_.reason["x"]
    unconfirmed = decide(pairs([0.09, 0.091, 0.092, 0.09, 0.091]), {}, Rule(), exhausted=True)
    assert unconfirmed.status["x"] == "inconclusive" and "no time was left" in unconfirmed.reason["x"]
    needed = needed_rounds(interval_of(np.array([0.0, 0.09, 0.01, 0.08, 0.03]), 0.05), math.log1p(0.05), 0.01)
    # Deviation 0.0402, the mean 0.0068 below the limit, t 2.345: 2.345^2 0.0402^2 / 0.0068^2 = 192; searched in steps of a tenth.
    assert needed is not None and 190 < needed <= 215


def test_several_quantities_are_corrected_for() -> None:
    barely = Pairs(np.array([0.06, 0.052, 0.067, 0.055, 0.064]), np.zeros(5))
    rule = Rule()
    p = examine(barely, rule).p
    assert 0.01 < p < 0.05
    alone = decide({"x": barely}, {}, rule)
    assert alone.next == "rerun"
    among = decide({"x": barely}, {}, rule, others=[1.0] * 9)
    assert among.next == "first"


def draws(deviation: float, slowdown: float, seed: int, tails: bool = False) -> Callable[[], list[Block]]:
    """Rounds of three processes, each with its own deviation, on a clock that drifts."""
    random = np.random.default_rng(seed)
    process = iter(range(1_000_000))

    def record() -> list[Block]:
        number = next(process)
        factors = np.exp(deviation * (random.standard_t(3, 3) if tails else random.standard_normal(3)))
        times = 3.0 * factors * np.array([1.0, 1.0, 1.0 + slowdown])
        return [
            block(side, float(ms * np.exp(0.05 * np.sin(number + visit))), number, visit)
            for visit in range(2)
            for side, ms in zip((BASELINE, AGAIN, CANDIDATE), times, strict=True)
        ]

    return record


def verdicts(deviation: float, slowdown: float, count: int, tails: bool = False) -> list[Decision]:
    quantities = {"x": (JOB, "engine")}
    return [sample(draws(deviation, slowdown, seed, tails), quantities, Rule()).decision for seed in range(count)]


@pytest.mark.parametrize(("deviation", "tails"), [(0.01, False), (0.02, True)])
def test_identical_engines_pass_and_never_fail(deviation: float, tails: bool) -> None:
    found = [decision.status["x"] for decision in verdicts(deviation, 0.0, 60, tails)]
    assert found.count("failed") == 0
    assert found.count("passed") >= 57


def test_ten_per_cent_is_caught() -> None:
    assert [decision.status["x"] for decision in verdicts(0.015, 0.10, 40)].count("failed") >= 38


def test_what_lies_on_the_budget_seldom_fails() -> None:
    found = [decision.status["x"] for decision in verdicts(0.01, 0.05, 30)]
    assert found.count("failed") <= 2


def test_sampling_stops_when_time_is_up() -> None:
    sampled = sample(draws(0.3, 0.02, 0), {"x": (JOB, "engine")}, Rule(), limit_seconds=0.0)
    assert sampled.decision.status["x"] == "inconclusive"
    assert len(sampled.first) <= 6
    assert "5 are the fewest" in sampled.decision.reason["x"]


def test_a_budget_that_no_machine_resolves_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(UsageError, match=r"a latency budget of 0\.05% cannot be resolved.*\n.*--budget latency="):
        check_budget(Rule(budget=0.0005))
    check_budget(Rule(budget=0.01))
    assert resolvable(Rule(), 0.02) == pytest.approx(2 * resolvable(Rule(), 0.01), rel=0.02)


def test_a_tight_budget_is_held_against_this_machine_first() -> None:
    quantities = {"x": (JOB, "engine")}
    assert "this machine cannot resolve 1.00%" in pilot(draws(0.05, 0.0, 1), quantities, Rule(budget=0.01))
    assert pilot(draws(0.001, 0.0, 1), quantities, Rule(budget=0.01)) == ""
    assert pilot(draws(0.05, 0.0, 1), quantities, Rule(budget=0.05)) == ""
