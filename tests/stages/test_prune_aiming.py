"""Goals of time: the cut is made again until what is left takes, measured, what was asked for."""

from __future__ import annotations

import pytest

from mmcompress.errors import StageError
from mmcompress.stages._aiming import CUTS, aim, before_and_after, with_times
from mmcompress.stages._cutting import Budget

pytestmark = pytest.mark.unit


class Machine:
    """A tower of 1,000 units whose time is no share of what the table says; another that stays whole."""

    def __init__(self, takes, least=0):
        self.takes, self.least, self.asked = takes, least, []

    def cut(self, budget, folder):
        self.asked.append(budget.keep("vision"))
        left = round(1000 * self.asked[-1])
        if left < self.least:
            raise StageError("no structure is so small")
        folder.mkdir(parents=True)
        (folder / "left").write_text(str(left))
        return {"blocks": {"units": [1000, left]}, "notes": ["told"], "towers": {"vision": {"macs": [2, 1]}}}

    def clock(self, folder):
        return {"vision": (10.0, self.takes(int((folder / "left").read_text()) / 1000)), "text": (3.0, 3.0)}


BUDGET = Budget("milliseconds", 0.5, {"text": 1.0})


@pytest.mark.parametrize(
    "takes",
    [
        lambda share: 10 * share,
        lambda share: 10 * min(1.0, 1.3 * share),
        lambda share: 10 * 0.8 * share,
        lambda share: 10 * (0.3 + 0.7 * share),
        lambda share: 10 * share**1.5,
    ],
)
def test_what_the_table_does_not_know_is_made_up_for(takes, tmp_path):
    machine = Machine(takes)
    found = aim(BUDGET, machine.cut, machine.clock, tmp_path)
    assert found.milliseconds["vision"][1] == pytest.approx(5.0, rel=0.02)
    assert len(machine.asked) <= 4
    facts = with_times(found, BUDGET)
    assert facts["notes"] == ["told"]
    assert facts["towers"]["vision"]["milliseconds"] == list(found.milliseconds["vision"])
    assert facts["towers"]["vision"]["macs"] == [2, 1]


def test_the_nearest_cut_stays_where_the_goal_is_out_of_reach(tmp_path):
    machine = Machine(lambda share: 10 * (0.4 + 0.6 * share), least=300)
    found = aim(BUDGET, machine.cut, machine.clock, tmp_path)
    left = found.facts["blocks"]["units"][1]
    assert left == min(round(1000 * asked) for asked in machine.asked if round(1000 * asked) >= 300)
    assert len(machine.asked) <= CUTS
    (_, note) = with_times(found, BUDGET)["notes"]
    assert note.startswith(f"vision: takes {4 + 6 * left / 1000:.3g} ms, where the goal leaves 5 of 10 ms")


def test_a_budget_below_the_smallest_structure_is_refused(tmp_path):
    machine = Machine(lambda share: 10 * share, least=600)
    with pytest.raises(StageError, match="no structure is so small"):
        aim(BUDGET, machine.cut, machine.clock, tmp_path)


def test_a_structure_that_comes_again_ends_the_search(tmp_path):
    machine = Machine(lambda share: 9.0)
    found = aim(BUDGET, lambda budget, folder: {**machine.cut(budget, folder), "blocks": {}}, machine.clock, tmp_path)
    assert len(machine.asked) == 2 and found.milliseconds["vision"] == (10.0, 9.0)


def test_an_opening_in_a_slow_time_does_not_shift_what_is_left():
    """By themselves the medians would be 10 of before and 6 of after, though each opening says a half."""
    pairs = [(10.0, 5.0), (10.0, 5.0), (14.0, 7.0), (10.0, 5.0), (12.0, 6.0), (12.0, 6.0), (10.0, 6.0)]
    openings = [{("whole", "vision"): before, ("cut", "vision"): after} for before, after in pairs]
    assert before_and_after(openings, "vision") == (10.0, 5.0)
