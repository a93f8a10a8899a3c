"""Distill on scenes: stored and live teachers agree, projections stay out of the student, problems are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file
from training_helpers import stage_input, write_model

from mmcompress.errors import StageError, UsageError
from mmcompress.families.captioner import Captioner
from mmcompress.families.clip import Clip
from mmcompress.losses import Loss
from mmcompress.stages import Model, _teacher_outputs
from mmcompress.stages.distill import Distill


def run(root: Path, name: str, model: Model, teacher: Model, **fields: Any) -> dict[str, Any]:
    given = stage_input(root, name, model=model, teacher=teacher, teacher_key="teacher-key")
    return dict(Distill(**{"steps": 4, "batch_size": 24, "precision": "fp32", **fields}).run(given))


def test_stored_and_live_teachers_give_the_same_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = write_model(tmp_path / "teacher"), write_model(tmp_path / "student", seed=1, projection=12)
    facts = {
        kind: run(tmp_path, kind, student, teacher, teacher_outputs=kind, evaluations=1)
        for kind in ("cached", "online")
    }
    for name, value in facts["online"]["losses"].items():
        assert facts["cached"]["losses"][name] == pytest.approx(value, abs=1e-3)
    for name, value in facts["online"]["validation"][0].items():
        assert facts["cached"]["validation"][0][name] == pytest.approx(value, abs=1e-3)
    assert facts["online"]["losses"].keys() == {"loss", "feature_mse", "icl", "contrastive_kl"}

    def refused(*args: Any) -> None:
        raise AssertionError("the teacher was asked again")

    monkeypatch.setattr(_teacher_outputs.Asked, "__call__", refused)
    again = run(tmp_path, "again", student, teacher, evaluations=1)
    assert again["losses"] == facts["cached"]["losses"]


def test_the_student_follows_and_holds_no_projection(tmp_path: Path) -> None:
    teacher, student = write_model(tmp_path / "teacher"), write_model(tmp_path / "student", seed=1, projection=12)
    facts = run(tmp_path, "stage", student, teacher, losses=["feature_mse"], steps=60, learning_rate=3e-3)
    assert facts["losses"]["feature_mse"] < 0.6
    assert (
        load_file(tmp_path / "stage" / "output" / "model.safetensors").keys()
        == load_file(student.folder / "model.safetensors").keys()
    )


def test_a_student_cut_from_the_teacher_with_the_task_loss_and_augmented_views(tmp_path: Path) -> None:
    teacher = write_model(tmp_path / "teacher")
    facts = run(
        tmp_path,
        "stage",
        teacher,
        teacher,
        student={"from_teacher": {"vision_layers": 1}},
        losses=["task", {"contrastive_kl": {"weight": 0.5}}],
        teacher_outputs="online",
        augment="crop",
    )
    losses = facts["losses"]
    assert losses["loss"] == pytest.approx(losses["task"] + 0.5 * losses["contrastive_kl"], rel=1e-4)


def test_views_are_stored_and_seen_alike_whatever_asks(tmp_path: Path) -> None:
    teacher, student = write_model(tmp_path / "teacher"), write_model(tmp_path / "student", seed=1)
    fields: dict[str, Any] = {"augment": "crop", "teacher_views": 2, "evaluations": 1}
    facts = {
        kind: run(tmp_path, kind, student, teacher, teacher_outputs=kind, **fields) for kind in ("cached", "online")
    }
    for name, value in facts["online"]["losses"].items():
        assert facts["cached"]["losses"][name] == pytest.approx(value, rel=1e-3)


def test_a_teacher_that_is_not_finite_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = write_model(tmp_path / "teacher"), write_model(tmp_path / "student", seed=1)
    original = Clip.outputs

    def broken(self: Any, model: Any, batch: Any, want: Any) -> Any:
        found = original(self, model, batch, want)
        return {name: value * torch.nan if value.ndim else value for name, value in found.items()}

    monkeypatch.setattr(Clip, "outputs", broken)
    with pytest.raises(StageError, match="not finite for scenes/0/train/0, "):
        run(tmp_path, "stage", student, teacher)


@pytest.mark.unit
def test_problems_are_found_before_anything_runs(tmp_path: Path) -> None:
    clip = Clip(path=tmp_path)

    def told(teacher: Any = clip, **fields: Any) -> list[tuple[tuple[str | int, ...], str]]:
        return Distill(**fields).problems(clip, teacher)

    assert told() == []
    assert told(teacher=None)[0][1].startswith("there is no teacher")
    assert told(augment="crop", teacher_outputs="cached")[0][0] == ("teacher_outputs",)
    assert told(augment="crop") == told(augment="crop", teacher_outputs="online") == []
    assert Distill(augment="crop").asking(clip) == "online"
    assert Distill().asking(clip) == "cached"
    assert told(batch_size=1)[0][0] == ("batch_size",)
    assert told(losses=["task"])[0][0] == ("losses",)
    unfed = told(losses=["icl", "logits_kl"])
    assert [where for where, _ in unfed] == [("losses", 1, "logits_kl")] * 2
    assert "fusion.logits" in unfed[0][1]
    sequence = {"logits_kl": {"output": "decoder.logits", "mask": "decoder.mask"}}
    assert told(losses=[sequence], teacher_outputs="cached") == told(losses=[sequence])
    layers = told(losses=["hidden_mse"], teacher_outputs="cached")
    assert any("online" in message for _, message in layers)
    assert told(teacher_views=2)[0][0] == ("teacher_views",)
    assert told(augment="crop", teacher_views=2, teacher_outputs="cached") == []
    assert Distill(augment="crop", teacher_views=2).asking(clip) == "cached"


@pytest.mark.unit
def test_sequences_are_stored_with_their_mask_and_by_default_with_few_classes(tmp_path: Path) -> None:
    captioner = Captioner(path=tmp_path)

    def stage(**fields: Any) -> Distill:
        return Distill(losses=[{"logits_kl": {"output": "decoder.logits", **fields}}])

    told = stage().model_copy(update={"teacher_outputs": "cached"}).problems(captioner, captioner)
    assert "`mask: decoder.mask`" in told[0][1]
    assert stage(mask="decoder.mask").asking(captioner) == "online"
    assert stage(mask="decoder.mask", top_k=32).asking(captioner) == "cached"


@pytest.mark.unit
def test_fields_of_nested_losses_are_in_dump_and_identity() -> None:
    stage = Distill(losses=[{"contrastive_kl": {"temperature": 3.0}}, "task"])
    assert Distill.model_validate(stage.model_dump(mode="json")) == stage
    assert stage.identity() != Distill(losses=["contrastive_kl", "task"]).identity()
    default = Distill().terms(Clip(path=Path()))
    assert [loss.component_name() for loss in default] == ["feature_mse", "icl", "contrastive_kl"]
    assert all(isinstance(loss, Loss) for loss in default)


def test_without_a_teacher(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no teacher"):
        Distill().run(stage_input(tmp_path))
