"""The fields of the prune stage, as a recipe writes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from mmcompress import component
from mmcompress.families.clip import Clip
from mmcompress.stages.prune import Prune

pytestmark = pytest.mark.unit
CLIP = Clip(path=Path("teacher"))

# --- the recipe ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"goal": {"macs": 0.0}},
        {"goal": {"macs": 1.0}},
        {"goal": {"macs": 1.5}},
        {"goal": {"parameters": -1}},
        {"goal": {}},
        {"goal": {"macs": 0.5, "parameters": 0.5}},
        {"goal": {"latency": 0.5}},
        {"goal": {"macs": 0.5}, "towers": {"text": 0}},
        {"goal": {"macs": 0.5}, "towers": {"text": 1.1}},
        {"goal": {"macs": 0.5}, "parts": []},
        {"goal": {"macs": 0.5}, "importance": "guess"},
        {"goal": {"macs": 0.5}, "ranking": "none"},
        {"goal": {"macs": 0.5}, "round_to": 0},
    ],
)
def test_fields_out_of_range_are_refused(fields):
    with pytest.raises(ValidationError):
        Prune.model_validate(fields)


def test_dump_and_load_are_equal_and_every_field_is_in_the_key():
    stage = Prune(goal={"macs": 0.5}, towers={"text": 1.0}, ranking="local")
    assert component.parse("stages", component.dump(stage)) == stage
    other = {
        "goal": {"parameters": 0.5},
        "towers": {"text": 0.9},
        "parts": ["heads"],
        "importance": "random",
        "samples": 8,
        "batch_size": 2,
        "ranking": "measured",
        "reconstruct": False,
        "round_to": 1,
    }
    keys = {component.digest_json(stage.identity())}
    for name, value in other.items():
        keys.add(component.digest_json(Prune.model_validate({**stage.model_dump(), name: value}).identity()))
    assert len(keys) == 1 + len(other)


def test_a_stage_without_a_model_is_a_problem():
    stage = Prune(goal={"macs": 0.5})
    assert stage.problems(CLIP, CLIP) == []
    assert "no model to prune" in stage.problems(None, None)[0][1]


def test_recover_has_the_fields_of_a_distill_stage_without_a_student():
    stage = Prune.model_validate({"goal": {"macs": 0.5}, "recover": {"epochs": 3}})
    dumped = component.dump(stage)
    assert dumped["prune"]["recover"]["epochs"] == 3
    assert "student" not in dumped["prune"]["recover"]
    assert component.parse("stages", dumped) == stage
    bare = Prune(goal={"macs": 0.5})
    assert component.digest_json(stage.identity()) != component.digest_json(bare.identity())
    assert "recover" in stage.environment() and "recover" not in bare.environment()
    assert stage.problems(CLIP, None) == []
    for wrong, message in (
        ({"student": {"from_teacher": {}}}, "leave `student` out"),
        (5, "fields of a distill stage"),
        ({"epoch": 3}, "recover.epoch"),
    ):
        with pytest.raises(ValidationError, match=message):
            Prune.model_validate({"goal": {"macs": 0.5}, "recover": wrong})


def test_problems_of_the_recovery_are_told_at_its_place():
    stage = Prune.model_validate({"goal": {"macs": 0.5}, "recover": {"losses": [{"task": {}}]}})
    assert stage.problems(CLIP, None)[0][0][:2] == ("recover", "losses")
