"""What pruning removes first, and how much of it: by numbers computed by hand."""

from __future__ import annotations

import dataclasses

import pytest

from mmcompress.errors import StageError
from mmcompress.families import Prunable
from mmcompress.stages._importance import magnitude, taylor, uniform
from mmcompress.stages._pruning import Block, Chunk, choose, chunks_of

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.unit

# --- choosing ------------------------------------------------------------------------------------------------------


def block(name: str, groups: int, heads: int | None = None) -> Block:
    return Block(Prunable(name, "tower", "root", heads), 0, ("root",), ("next",), groups * (4 if heads else 1), groups)


def test_chunks_go_by_importance_and_round_the_width():
    chunks = chunks_of(block("b", 11), [float(value) for value in (5, 1, 9, 2, 8, 3, 7, 4, 6, 10, 0)], 2.0, 4)
    assert [chunk.groups for chunk in chunks] == [(10, 1, 3), (5, 7, 0, 8)]
    assert [chunk.cost for chunk in chunks] == [6.0, 8.0]
    assert [chunk.density for chunk in chunks] == [0.5, 18 / 8]
    assert chunks_of(block("b", 4), [1.0] * 4, 1.0, 4) == chunks_of(block("b", 3), [1.0] * 3, 1.0, 4) == []
    assert len(chunks_of(block("b", 8), [1.0] * 8, 1.0, 4)) == 1
    assert [chunk.groups for chunk in chunks_of(block("h", 3, heads=3), [3.0, 1.0, 2.0], 1.0, 4)] == [(1,), (2,)]


def test_choose_removes_the_least_dense_first_and_stops_at_the_nearest():
    chunks = {
        "a": [Chunk("a", (0,), 10.0, 1.0), Chunk("a", (1,), 10.0, 5.0)],
        "b": [Chunk("b", (0,), 4.0, 2.0), Chunk("b", (1,), 4.0, 3.0)],
    }
    assert choose(chunks, 100.0, 90.0, "global") == {"a": 1, "b": 0}
    assert choose(chunks, 100.0, 82.0, "global") == {"a": 1, "b": 2}
    assert choose(chunks, 100.0, 86.0, "local") == {"a": 1, "b": 1}
    with pytest.raises(StageError, match=r"0\.720 is left"):
        choose(chunks, 100.0, 60.0, "global")


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


def test_taylor_of_a_head_adds_its_channels_with_their_signs():
    model = Two()
    head = dataclasses.replace(UNITS, prunable=Prunable("units", "tower", "first", 1), groups=1)
    assert taylor([head], model, [model(torch.tensor([[1.0]])).square().sum() / 2]) == {"units": [pytest.approx(1.0)]}
    with pytest.raises(ValueError, match="no batch"):
        taylor([head], model, [])


def test_magnitude_by_hand():
    first, second = (1 + 9) ** 0.5, (4 + 1) ** 0.5
    mean = (first + second) / 2
    assert magnitude(Two(), [UNITS]) == {"units": [pytest.approx(first / mean), pytest.approx(second / mean)]}


def test_random_is_the_same_for_a_seed():
    assert uniform([UNITS], 3) == uniform([UNITS], 3) != uniform([UNITS], 4)
