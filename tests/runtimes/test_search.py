from __future__ import annotations

import dataclasses

import pytest
from test_quantize import SCHEME, feeds, onnx, run, small_graph

from mmcompress.errors import StageError
from mmcompress.runtimes._quantize import int8_products
from mmcompress.runtimes._search import Drop, Search

pytestmark = pytest.mark.unit


class Judge:
    """Loses what is told for each operator in INT8."""

    def __init__(self, costs: dict[str, float]) -> None:
        self.costs, self.asked = costs, 0

    def drops(self, graphs):
        self.asked += 1
        lost = 0.0
        for path in graphs.values():
            lost += sum(self.costs[name] for name in int8_products(onnx.load(path)))
        return {"score": Drop(lost, lost + 0.001)}

    def nearness(self, graph, path):
        given = feeds(1, seed=9)[0]
        exact, found = run(small_graph(), given), run(onnx.load(path), given)
        return -float(((exact - found) ** 2).mean())


def search(tmp_path, judge, limit, proof="interval"):
    onnx.save(small_graph(), tmp_path / "small.onnx")
    graphs, batches = {"small": tmp_path / "small.onnx"}, {"small": feeds()}
    return Search(graphs, SCHEME, batches, judge, {"score": limit}, proof, tmp_path, lambda *told: None)


def test_nothing_stays_float_where_nothing_is_lost(tmp_path):
    found = search(tmp_path, Judge({"first": 0.0, "second": 0.0}), 0.001).run()
    assert found.choices["small"].float_nodes == ()
    assert found.drops["score"] == Drop(0.0, 0.001)


def test_the_promise_is_the_upper_end_and_the_point_by_name(tmp_path):
    with pytest.raises(StageError, match=r"no INT8 graph keeps within score 0.0005"):
        search(tmp_path, Judge({"first": 0.0, "second": 0.0}), 0.0005).run()
    assert search(tmp_path, Judge({"first": 0.0, "second": 0.0}), 0.0005, "point").run().drops["score"].value == 0.0


def test_the_operators_that_cost_too_much_stay_float(tmp_path):
    judge = Judge({"first": 0.2, "second": 0.2})
    found = search(tmp_path, judge, 0.25).run()
    assert len(found.choices["small"].float_nodes) == 1
    assert found.drops["score"].upper <= 0.25


def test_what_cannot_be_reached_names_the_nearest(tmp_path):
    with pytest.raises(StageError, match=r"The nearest loses score 0.201 .*with 1 operators in float") as error:
        search(tmp_path, Judge({"first": 0.2, "second": 0.2}), 0.1).run()
    assert "precision: fp32" in str(error.value)


def test_a_search_that_was_killed_goes_on_where_it_was(tmp_path):
    first, second = Judge({"first": 0.2, "second": 0.2}), Judge({"first": 9.0, "second": 9.0})
    before = search(tmp_path, first, 0.25).run()
    after = search(tmp_path, second, 0.25).run()
    assert dataclasses.asdict(after) == dataclasses.asdict(before)
    assert (first.asked > 0, second.asked) == (True, 0)
