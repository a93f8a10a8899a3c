"""A cut for a goal of time on this machine: table, choice, cut, and the clock that has the last word."""

from __future__ import annotations

import json
import math

import pytest

from mmcompress.stages._aiming import CUTS, NEAR, Clock
from mmcompress.stages.prune import TIMES, Prune

pytest.importorskip("torch")
from pruned_clip import write_small_clip
from test_prune import given

from mmcompress.families.clip import Clip

pytestmark = pytest.mark.usefixtures("one_thread")
GOAL = {"speedup": 1.6, "on": "onnxruntime", "threads": 1}


def test_a_goal_of_time_is_met_by_the_clock_or_said_to_be_missed(tmp_path, monkeypatch):
    folder = write_small_clip(tmp_path, hidden_size=192, intermediate_size=768, num_hidden_layers=6)
    timed = []
    monkeypatch.setattr(Clock, "__call__", lambda *a, call=Clock.__call__: timed.append(call(*a)) or timed[-1])
    stage = Prune.model_validate(
        {"goal": GOAL, "importance": "magnitude", "parts": ["heads", "feed_forward", "layers"], "towers": {"text": 1.0}}
    )
    asked = given(Clip(path=folder), folder, tmp_path / "cut")
    facts = stage.run(asked)
    before, after = facts["towers"]["vision"]["milliseconds"]
    off = [math.log(left / whole * GOAL["speedup"]) for whole, left in (times["vision"] for times in timed)]
    assert abs(math.log(after / before * GOAL["speedup"])) == min(map(abs, off))
    assert bool(facts["notes"]) == (min(map(abs, off)) > NEAR)
    assert all("where the goal leaves" in note for note in facts["notes"])
    assert 1 <= len(timed) <= CUTS and 0 < after < before
    assert json.loads((asked.output / TIMES).read_text())["towers"]["vision"]["graph"] == "vision_model"
    assert not list(asked.work.glob("aiming*"))
    model = Clip(path=asked.output).load(asked.output)
    assert sum(p.numel() for p in model.parameters()) == facts["parameters"][1] < facts["parameters"][0]
