"""Distill by hidden states and attention maps: layers of other number, width and heads, projections that are trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file
from training_helpers import stage_input, write_model

from mmcompress.errors import UsageError
from mmcompress.families.clip import Clip
from mmcompress.stages import Model
from mmcompress.stages.distill import Distill

torch.set_num_threads(1)


def run(root: Path, name: str, model: Model, teacher: Model, **fields: Any) -> dict[str, Any]:
    given = stage_input(root, name, model=model, teacher=teacher)
    fields = {"steps": 2, "batch_size": 24, "precision": "fp32", "attention": "eager", **fields}
    return dict(Distill(teacher_outputs="online", **fields).run(given))


def test_a_narrow_student_follows_layer_by_layer(tmp_path: Path) -> None:
    teacher, student = write_model(tmp_path / "teacher"), write_model(tmp_path / "student", seed=1, width=16)
    losses = [
        {"hidden_mse": {"part": "vision"}},
        {"hidden_mse": {"part": "text", "student_layers": [-1], "teacher_layers": [-1]}},
        {"attention_kl": {"part": "text", "weight": 10.0}},
    ]
    first = run(tmp_path, "first", student, teacher, losses=losses, steps=1)["losses"]
    facts = run(tmp_path, "last", student, teacher, losses=losses, steps=40, learning_rate=1e-2)["losses"]
    assert facts.keys() == {"loss", "hidden_mse", "hidden_mse_2", "attention_kl"}
    assert facts["loss"] < 0.8 * first["loss"]
    expected = facts["hidden_mse"] + facts["hidden_mse_2"] + 10 * facts["attention_kl"]
    assert facts["loss"] == pytest.approx(expected, rel=1e-3)
    saved = load_file(tmp_path / "last" / "output" / "model.safetensors")
    assert saved.keys() == load_file(student.folder / "model.safetensors").keys()


def test_attention_maps_with_sdpa_are_refused(tmp_path: Path) -> None:
    teacher = write_model(tmp_path / "teacher")
    with pytest.raises(UsageError, match="eager"):
        run(tmp_path, "stage", teacher, teacher, losses=["attention_kl"], attention="sdpa")


@pytest.mark.unit
def test_maps_of_attention_are_refused_of_sdpa_when_the_recipe_is_read(tmp_path: Path) -> None:
    clip = Clip(path=tmp_path)
    losses = [{"attention_kl": {"part": "vision"}}]
    told = Distill(losses=losses, attention="sdpa", teacher_outputs="online").problems(clip, clip)
    assert [where for where, _ in told] == [("attention",)] and "attention_kl" in told[0][1]
    stage = Distill(losses=losses, teacher_outputs="online")
    assert stage.problems(clip, clip) == []
    assert stage.environment()["attention"] == "eager"
