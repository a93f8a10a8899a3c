"""Finetune on scenes: it learns, keeps the best model, and refuses what cannot work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from safetensors.numpy import load_file
from training_helpers import stage_input, write_config, write_model

from mmcompress.errors import UsageError
from mmcompress.families import FromTeacher
from mmcompress.families.clip import Clip
from mmcompress.stages import Model
from mmcompress.stages.finetune import Finetune


def weights(folder: Path) -> dict[str, Any]:
    return dict(load_file(folder / "model.safetensors"))


def test_a_model_from_a_config_learns_and_the_facts_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path / "config")
    told: list[tuple[str, int, int]] = []
    given = stage_input(tmp_path, examples=32, captions=1, progress=lambda *a: told.append(a))
    stage = Finetune(student={"clip": {"config": config}}, epochs=60, batch_size=16, learning_rate=3e-3, warmup=0.1)
    facts = stage.run(given)
    assert facts["steps"] == 120
    assert facts["epochs"] == 60
    assert facts["losses"]["task"] < 1.0
    assert facts["losses"]["task"] == pytest.approx(facts["losses"]["loss"])
    assert facts["precision"] in ("fp32", "bf16")
    assert facts["examples_per_second"] > 0
    assert told[-1][1:] == (120, 120)
    assert "examples/s" in told[-1][0]
    assert capsys.readouterr().out == ""
    family = Clip(path=given.output)
    assert family.load(given.output).get_parameter("logit_scale") is not None


def test_the_best_model_is_kept_and_patience_ends_the_training(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    given = stage_input(tmp_path, examples=32, captions=1, model=model)
    facts = Finetune(steps=200, batch_size=16, learning_rate=5e-3, schedule="constant", evaluations=20, patience=2).run(
        given
    )
    losses = [entry["loss"] for entry in facts["validation"]]
    best = losses.index(min(losses))
    assert facts["steps"] == 10 * len(losses) < 200
    assert len(losses) == best + 3
    assert facts["best_step"] == 10 * (best + 1)
    again = stage_input(tmp_path, "again", examples=32, captions=1, model=Model(model.family, given.output))
    check = Finetune(steps=1, batch_size=16, learning_rate=1e-9, weight_decay=0, evaluations=1).run(again)
    assert check["validation"][0]["loss"] == pytest.approx(min(losses), abs=1e-3)


def test_frozen_parts_stay_and_the_rest_moves(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    given = stage_input(tmp_path, model=model)
    Finetune(steps=2, batch_size=8, warmup=0, freeze=("vision_model", "visual_projection.weight")).run(given)
    before, after = weights(model.folder), weights(given.output)
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed
    assert not [name for name in changed if name.startswith(("vision_model", "visual_projection"))]


def test_precision_is_that_of_the_stage_whatever_ran_before(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    made = []
    for index, precision in enumerate(("fp32", "bf16", "fp32")):
        given = stage_input(tmp_path, str(index), model=model)
        facts = Finetune(steps=3, batch_size=8, precision=precision).run(given)
        assert facts["precision"] == precision
        made.append((given.output / "model.safetensors").read_bytes())
    assert made[0] == made[2] != made[1]


def test_a_cut_of_the_teacher(tmp_path: Path) -> None:
    teacher = write_model(tmp_path / "teacher")
    given = stage_input(tmp_path, model=teacher, teacher=teacher)
    stage = Finetune(student={"from_teacher": {"text_layers": 1, "init": "random"}}, steps=1, batch_size=8)
    stage.run(given)
    assert not [name for name in weights(given.output) if name.startswith("text_model.encoder.layers.1")]
    with pytest.raises(UsageError, match="no teacher"):
        stage.run(stage_input(tmp_path, "other", model=teacher))


@pytest.mark.unit
def test_problems_are_found_before_anything_runs(tmp_path: Path) -> None:
    clip = Clip(path=tmp_path)
    assert Finetune().problems(clip, clip) == []
    assert [where for where, _ in Finetune().problems(None, None)] == [("student",)]
    assert [where for where, _ in Finetune(student="from_teacher").problems(None, None)] == [
        ("student", "from_teacher")
    ]
    assert [where for where, _ in Finetune(batch_size=1).problems(clip, clip)] == [("batch_size",)]
    assert Finetune(student={"clip": {"hub": "a/b", "revision": "main"}}).result_family(None).hub == "a/b"


@pytest.mark.unit
@pytest.mark.parametrize(
    ("student", "where", "message"),
    [
        ({"from_teacher": {"layers": 3}}, ("student", "from_teacher"), "unknown key 'layers'"),
        ({"from_teachers": {}}, ("student",), "did you mean 'from_teacher'"),
        ({"clip": {"pat": "x"}}, ("student", "clip", "pat"), "Extra inputs"),
        ({"from_teacher": 3}, ("student",), "as a mapping"),
        (3, ("student",), "expected one name"),
    ],
)
def test_a_wrong_student_is_told_where_it_is_wrong(student: Any, where: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Finetune(student=student)
    assert where in [error["loc"] for error in caught.value.errors()]
    assert message in str(caught.value)


@pytest.mark.unit
def test_a_student_dumps_and_loads_equal() -> None:
    for student in (None, FromTeacher(vision_layers=(0, 2), init="random"), Clip(hub="a/b", revision="c")):
        stage = Finetune(student=student)
        assert Finetune.model_validate(stage.model_dump(mode="json")) == stage
