"""Goals of pruning: what they ask for, prices of time from a table, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from mmcompress.errors import MissingExtra
from mmcompress.families import Prunable
from mmcompress.families.clip import Clip
from mmcompress.runtimes.onnxruntime import OnnxRuntime
from mmcompress.stages._block_times import Times, fingerprint
from mmcompress.stages._choice import Plan, Tower, choose, cumulated, options_of, price
from mmcompress.stages._goal import Goal
from mmcompress.stages._pruning import Block, Layer
from mmcompress.stages._time_prices import TimePrices, scales
from mmcompress.stages._timing_rounds import Timed, time_in_turn
from mmcompress.stages.prune import Prune

pytestmark = pytest.mark.unit

# --- what is asked for ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "ratio"),
    [
        ({"macs": 0.5}, 0.5),
        ({"parameters": 0.4}, 0.4),
        ({"size": 0.3}, 0.3),
        ({"size": "2 kB"}, 0.5),
        ({"size": "1KiB"}, 0.256),
        ({"speedup": 1.6, "on": "onnxruntime"}, 0.625),
        ({"latency_ms": 8, "on": "onnxruntime", "threads": 2}, 0.4),
    ],
)
def test_every_goal_is_a_share(fields, ratio):
    goal = Goal.model_validate(fields)
    assert goal.ratio(parameters=1000, milliseconds=20.0) == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"speedup": 1.5}, "needs the runtime"),
        ({"latency_ms": 3}, "needs the runtime"),
        ({"speedup": 1.0, "on": "onnxruntime"}, "greater than 1"),
        ({"macs": 0.5, "on": "onnxruntime"}, "belongs to goals of time"),
        ({"macs": 0.5, "threads": 2}, "belong to goals of time"),
        ({"macs": 0.5, "size": "1 MB"}, "expected one of"),
        ({"size": "much"}, "no number of bytes"),
        ({"speedup": 2, "on": "onnxruntim"}, "did you mean 'onnxruntime'"),
    ],
)
def test_goals_that_say_too_little_or_too_much_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        Goal.model_validate(fields)


def test_a_goal_that_the_model_meets_is_refused():
    with pytest.raises(ValueError, match="nothing to cut"):
        Goal(size="1 MB").ratio(parameters=1000)


def test_a_target_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(OnnxRuntime, "versions", lambda self: {})
    with pytest.raises(MissingExtra, match="onnxruntime"):
        fingerprint(OnnxRuntime(), 1)


def test_times_decide_with_the_machine_in_the_key():
    timed = Prune.model_validate({"goal": {"speedup": 2, "on": "onnxruntime", "threads": 3}})
    assert timed.environment()["machine"]["threads"] == 3
    assert timed.environment()["machine"]["versions"]
    assert "machine" not in Prune(goal={"macs": 0.5}).environment()
    elsewhere = Prune.model_validate({"goal": {"speedup": 2, "on": {"onnxruntime": {"for": "arm64"}}}})
    where, message = elsewhere.problems(Clip(path=Path("x")), None)[0]
    assert where == ("goal", "on") and "arm64" in message


def test_several_steps_need_a_recovery():
    with pytest.raises(ValidationError, match="steps"):
        Prune.model_validate({"goal": {"macs": 0.5}, "steps": 3})


# --- prices of time ------------------------------------------------------------------------------------------------


def blocks(layers: int) -> list[Block]:
    found = []
    for index in range(layers):
        layer = Layer("stack", index)
        heads = Prunable(f"vision.layers.{index}.attention", "vision", "q", 4)
        units = Prunable(f"vision.layers.{index}.feed_forward", "vision", "fc1", None)
        found.append(Block(heads, 0, ("q",), ("o",), 64, 4, layer))
        found.append(Block(units, 0, ("fc1",), ("fc2",), 128, 128, layer))
    return found


def true_ms(width: float, layers: list[tuple[int, int]]) -> float:
    """A made-up machine: 1 + 2 w, and per layer 0.5 + w (channels / 16 + units / 32)."""
    return 1 + 2 * width + sum(0.5 + width * (channels / 16 + units / 32) for channels, units in layers)


def made_table() -> dict:
    points = []
    for share in (1.0, 0.5):
        for depth, channels, units, cut in (
            (2, 64, 128, []),
            (4, 64, 128, []),
            (2, 16, 128, ["vision.layers.attention"]),
            (2, 64, 32, ["vision.layers.feed_forward"]),
        ):
            points.append(
                {
                    "share": share,
                    "widths": {"vision": int(64 * share)},
                    "layers": {"vision": depth},
                    "channels": {
                        "vision.layers.attention": [channels] * depth,
                        "vision.layers.feed_forward": [units] * depth,
                    },
                    "cut": cut,
                    "graphs": {"vision_model": true_ms(share, [(channels, units)] * depth)},
                }
            )
    whole = true_ms(1, [(64, 128)] * 6)
    return {
        "graphs": {"vision_model": whole, "text_model": 3.0},
        "towers": {
            "vision": {"graph": "vision_model", "ms": whole},
            "text": {"graph": "text_model", "ms": 3.0},
        },
        "points": points,
    }


WIDTH = Block(Prunable("vision.width", "vision", "o", None), 0, ("o",), ("q",), 64, 64)


def test_the_table_gives_the_times_that_it_was_made_of():
    made = blocks(6)
    prices = TimePrices(
        {**made_table(), "towers": {"vision": made_table()["towers"]["vision"]}}, made, {"vision": WIDTH}
    )
    losses = {block.name: cumulated([1.0] * block.groups) for block in made}
    tower = Tower("vision", tuple(made), losses, {}, width=WIDTH)
    full = {block.name: block.groups for block in made}
    assert price(tower, Plan(full), prices) == pytest.approx(true_ms(1, [(64, 128)] * 6))
    some = {name: count for name, count in full.items() if ".5." not in name}
    some["vision.layers.0.attention"], some["vision.layers.2.feed_forward"] = 2, 64
    layers = [(32, 128), (64, 128), (64, 64), (64, 128), (64, 128)]
    plan = Plan(some, {}, frozenset({Layer("stack", 5)}), None)
    assert price(tower, plan, prices) == pytest.approx(true_ms(1, layers))
    narrower = Plan(some, {}, frozenset({Layer("stack", 5)}), 48)
    assert price(tower, narrower, prices) == pytest.approx(true_ms(0.75, layers))


def test_towers_of_all_layers_correct_the_sum_of_the_parts():
    made, table = blocks(6), made_table()
    for share, factor in ((1.0, 1.2), (0.5, 0.8)):
        table["points"].append(
            {
                "share": share,
                "widths": {"vision": int(64 * share)},
                "layers": {"vision": 6},
                "channels": {"vision.layers.attention": [32] * 6, "vision.layers.feed_forward": [64] * 6},
                "cut": ["vision.layers.attention", "vision.layers.feed_forward"],
                "joint": True,
                "graphs": {"vision_model": factor * true_ms(share, [(32, 64)] * 6)},
            }
        )
    table["towers"] = {"vision": table["towers"]["vision"]}
    found = scales(table, made, {"vision": WIDTH})
    assert found["vision"] == [(0.5, pytest.approx(0.8)), (1.0, pytest.approx(1.2))]
    prices = TimePrices({**table, "scales": found}, made, {"vision": WIDTH})
    tower = Tower("vision", tuple(made), {b.name: cumulated([1.0] * b.groups) for b in made}, {}, width=WIDTH)
    plan = {block.name: block.groups for block in made} | {"vision.layers.0.attention": 1}
    layers = [(16, 128), *[(64, 128)] * 5]
    assert price(tower, Plan(plan, {}, frozenset(), None), prices) == pytest.approx(1.2 * true_ms(1, layers))
    assert price(tower, Plan(plan, {}, frozenset(), 32), prices) == pytest.approx(0.8 * true_ms(0.5, layers))
    assert price(tower, Plan(plan, {}, frozenset(), 48), prices) == pytest.approx(true_ms(0.75, layers))


def test_the_cut_that_costs_least_quality_meets_the_time():
    made = blocks(6)
    prices = TimePrices({**made_table(), "towers": {"vision": made_table()["towers"]["vision"]}}, made, {})
    chance = np.random.default_rng(0)
    losses = {block.name: cumulated(chance.random(block.groups).tolist()) for block in made}
    counts = {block.name: options_of(block.groups, 1 if block.prunable.heads else 32) for block in made}
    tower = Tower("vision", tuple(made), losses, counts, layers=True)
    plan = choose(tower, prices, 25.0, "global")
    layers = [
        (16 * plan.groups[f"vision.layers.{i}.attention"], plan.groups[f"vision.layers.{i}.feed_forward"])
        for i in range(6)
        if Layer("stack", i) not in plan.dropped
    ]
    assert 23.5 < true_ms(1, layers) <= 25.0 + 1e-6


def test_the_main_request_is_timed_and_other_towers_are_beside_it():
    times = Times(made_table())
    assert times.main_ms(Clip(path=Path("x"))) == made_table()["graphs"]["vision_model"]
    assert times.beside(Clip(path=Path("x"))) == ["text"]


def test_slow_calls_do_not_count(monkeypatch):
    class Fixed:
        def run(self, graph, feeds):
            return {}

        def close(self):
            pass

    sides = [Timed("a", "g", Fixed(), {}), Timed("b", "g", Fixed(), {})]
    slow = iter(range(10**6))

    def milliseconds(side):
        return (1.0 if side.name == "a" else 3.0) * (5 if next(slow) % 3 == 0 else 1)

    monkeypatch.setattr(Timed, "milliseconds", milliseconds)
    assert time_in_turn(sides) == {("a", "g"): 1.0, ("b", "g"): 3.0}
