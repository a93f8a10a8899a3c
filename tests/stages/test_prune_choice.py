"""What pruning removes first, and how much of it: by numbers computed by hand."""

from __future__ import annotations

import dataclasses

import pytest

from mmcompress.families import Prunable
from mmcompress.stages._choice import cumulated, options_of, solve
from mmcompress.stages._importance import magnitude, taylor, uniform
from mmcompress.stages._pruning import Block

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.unit

# --- choosing ------------------------------------------------------------------------------------------------------


def block(name: str, groups: int, heads: int | None = None) -> Block:
    return Block(Prunable(name, "tower", "root", heads), 0, ("root",), ("next",), groups * (4 if heads else 1), groups)


def test_counts_that_may_be_left_are_multiples():
    assert options_of(11, 4) == (11, 8, 4)
    assert options_of(12, 4) == (12, 8, 4)
    assert options_of(4, 4) == options_of(4, 8) == (4,)
    assert options_of(3, 1) == (3, 2, 1)
    assert cumulated([5, 1, 3]).tolist() == [0, 1, 4, 9]


def test_the_knapsack_loses_the_least_at_the_cost():
    # Both whole cost 18; at 14 the pairs (10, 4) and (6, 8) fit, which lose 2 and 3.
    classes = [[(10.0, 0.0), (6.0, 3.0)], [(8.0, 0.0), (4.0, 2.0)]]
    assert solve(classes, 18.0) == [0, 0]
    assert solve(classes, 14.0) == [0, 1]
    assert solve(classes, 10.0) == [1, 1]
    assert solve(classes, 9.0) is None
    assert solve([[(-3.0, 1.0), (0.0, 0.0)]], -1.0) == [0]


# --- importance ----------------------------------------------------------------------------------------------------


class Two(torch.nn.Module):
    """y = w . (first(x)), two units."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(1, 2, bias=False)
        self.second = torch.nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0], [2.0]]))
            self.second.weight.copy_(torch.tensor([[3.0, -1.0]]))

    def forward(self, x):
        return self.second(self.first(x))


UNITS = Block(Prunable("units", "tower", "first", None), 0, ("first",), ("second",), 2, 2)


def test_taylor_by_hand():
    # L = y^2 / 2 and y = 3 x - 2 x = x; masking unit 1 or 2 changes y by -3 x or +2 x, so L by y dy = -3 x^2 or +2 x^2.
    model = Two()
    batches = [torch.tensor([[1.0]]), torch.tensor([[2.0]])]
    scores = taylor([UNITS], model, (model(x).square().sum() / 2 for x in batches))
    assert scores == {"units": [pytest.approx(3 * (1 + 4) / 2), pytest.approx(2 * (1 + 4) / 2)]}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_examples_of_a_batch_change_does_not_cancel():
    # L = y1 - y2, so masking unit 1 changes it by -3 x1 + 3 x2, which is nothing where both are 1.
    model = Two()
    losses = (torch.tensor([1.0, -1.0]) @ model(x) for x in [torch.ones(2, 1)])
    assert taylor([UNITS], model, (loss.sum() for loss in losses)) == {"units": [pytest.approx(6), pytest.approx(4)]}


def test_taylor_counts_what_goes_by_way_of_its_consumers_alone():
    """y = 3 h1 - h2 + 2 (h1 + h2) + h1 + h2, where the last two go beside both consumers, to the residual stream."""

    class Both(Two):
        def __init__(self) -> None:
            super().__init__()
            self.third = torch.nn.Linear(2, 1, bias=False)
            torch.nn.init.constant_(self.third.weight, 2.0)

        def forward(self, x):
            hidden = self.first(x)
            return self.second(hidden) + self.third(hidden) + hidden.sum(dim=1, keepdim=True)

    model, block = Both(), dataclasses.replace(UNITS, consumers=("second", "third"))
    # h = (1, 2): masked at both consumers y loses 3 + 2 by the first and -2 + 4 by the second unit.
    found = taylor([block], model, (model(x).sum() for x in [torch.ones(1, 1)]))
    assert found == {"units": [pytest.approx(5), pytest.approx(2)]}


def test_taylor_of_a_head_adds_its_channels_with_their_signs():
    model = Two()
    head = dataclasses.replace(UNITS, prunable=Prunable("units", "tower", "first", 1), groups=1)
    losses = (model(x).square().sum() / 2 for x in [torch.tensor([[1.0]])])
    assert taylor([head], model, losses) == {"units": [pytest.approx(1.0)]}
    with pytest.raises(ValueError, match="no batch"):
        taylor([head], model, [])
    with pytest.raises(ValueError, match="before they were asked for"):
        taylor([head], model, [model(torch.tensor([[1.0]])).sum()])


def test_magnitude_by_hand():
    first, second = (1 + 9) ** 0.5, (4 + 1) ** 0.5
    mean = (first + second) / 2
    assert magnitude(Two(), [UNITS]) == {"units": [pytest.approx(first / mean), pytest.approx(second / mean)]}


def test_random_is_the_same_for_a_seed():
    assert uniform([UNITS], 3) == uniform([UNITS], 3) != uniform([UNITS], 4)
