"""Answers of another system in place of a teacher: read, matched by id, learned from; what does not fit is told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_helpers import stage_input, write_model

from mmcompress.data import Example
from mmcompress.errors import InputError, RecipeError
from mmcompress.families.captioner import Captioner
from mmcompress.families.clip import Clip
from mmcompress.pipeline import Planner
from mmcompress.recipe import dump_recipe, load_recipe
from mmcompress.stages._answers import AnsweringTeacher, read_answers
from mmcompress.stages._pseudo_labels import LabelFilter, with_given_labels
from mmcompress.stages.distill import Distill
from mmcompress.store import Store

ROWS = [
    {"id": "b", "vision.embeds": [3.0, 4.0], "text": "two"},
    {"id": "a", "vision.embeds": [0.0, 2.0], "text": "one"},
]


def jsonl(file: Path, *records: Any) -> Path:
    file.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return file


@pytest.mark.unit
def test_both_formats_give_the_same(tmp_path: Path) -> None:
    text = read_answers(jsonl(tmp_path / "a.jsonl", {"fusion.logit_scale": 50}, *ROWS))
    np.savez(
        tmp_path / "a.npz",
        ids=np.array(["b", "a"]),
        text=np.array(["two", "one"]),
        **{"vision.embeds": np.array([[3, 4], [0, 2]]), "fusion.logit_scale": np.float64(50)},
    )
    for given in (text, read_answers(tmp_path / "a.npz")):
        assert given.ids == ("b", "a") and given.texts == ("two", "one")
        np.testing.assert_allclose(given.outputs["vision.embeds"], [[0.6, 0.8], [0, 1]])
        assert given.scalars == {"fusion.logit_scale": 50}
        assert given.rows(["a", "b"]).tolist() == [1, 0]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("records", "told"),
    [
        ([*ROWS, {**ROWS[0], "vision.embeds": [1.0, 1.0]}], "several answers about b"),
        (
            [ROWS[0], {**ROWS[1], "vision.embeds": [1.0]}],
            r"a\.jsonl:2: vision\.embeds of a has \(1,\) numbers; expected \(2,\)",
        ),
        ([ROWS[0], {"id": "a", "vision.embeds": [1.0, 2.0]}], r"a\.jsonl:2: has vision\.embeds; expected"),
        ([ROWS[0], {**ROWS[1], "vision.embeds": [0.0, 0.0]}], "not finite, or 0, for a"),
        ([{"id": "a", "embeds": [1.0]}], "'embeds' is no output"),
        ([{"id": "a"}], "ids alone"),
        ([[1]], "expected a JSON object"),
        ([], "no answers"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, records: list[Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        read_answers(jsonl(tmp_path / "a.jsonl", *records))


@pytest.mark.unit
def test_no_pickle_and_no_other_format(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", ids=np.array(["a"]), values=np.array([{}], object))
    with pytest.raises(InputError, match="plain arrays"):
        read_answers(tmp_path / "a.npz")
    with pytest.raises(InputError, match=r"\.jsonl or \.npz"):
        read_answers(jsonl(tmp_path / "a.csv", *ROWS))
    with pytest.raises(InputError, match="no such file"):
        read_answers(tmp_path / "b.npz")


@pytest.mark.unit
def test_examples_without_an_answer_are_named(tmp_path: Path) -> None:
    given = read_answers(jsonl(tmp_path / "a.jsonl", *ROWS))
    with pytest.raises(InputError, match=re.escape("no answer about c, d of 3 examples")) as told:
        given.rows(["a", "c", "d"])
    assert "answers about examples that the data lack, too: b" in str(told.value)


@pytest.mark.unit
def test_what_a_file_cannot_do_is_told_when_the_recipe_is_read(tmp_path: Path) -> None:
    teacher = AnsweringTeacher(path=jsonl(tmp_path / "a.jsonl", *ROWS))
    student = Clip(path=tmp_path)

    def told(**fields: Any) -> list[str]:
        return [message for _, message in Distill(student=student, **fields).problems(None, teacher)]

    cosine = [{"cosine": {"outputs": ["vision.embeds"]}}]
    assert told(losses=cosine) == []
    assert "answers (the teacher) does not give" in told(losses=["icl"])[0]
    assert "no model" in told(losses=cosine, teacher_outputs="online")[0]
    assert "writes no texts" in told(losses=cosine, labels="teacher")[0]
    cut = Distill(student={"from_teacher": {"vision_layers": 1}}, losses=cosine).problems(None, teacher)
    assert "answers has no vision_layers" in cut[0][1]


def test_the_student_learns_from_them_as_from_the_teacher(tmp_path: Path) -> None:
    teacher, student = write_model(tmp_path / "teacher"), write_model(tmp_path / "student", seed=1, projection=12)
    given = stage_input(tmp_path, "live", captions=1, model=student, teacher=teacher, teacher_key="key")
    fields: dict[str, Any] = {"steps": 3, "batch_size": 24, "precision": "fp32"}
    facts = Distill(teacher_outputs="online", **fields).run(given)
    model, processor = teacher.family.load(teacher.folder), teacher.family.processor(teacher.folder)
    values = [given.train[i].values for i in range(len(given.train))]
    feeds = processor.encode({"image": [v["image"] for v in values], "text": [v["texts"][0] for v in values]})
    want = frozenset({"vision.embeds", "text.embeds", "fusion.logit_scale"})
    with torch.no_grad():
        outputs = teacher.family.outputs(model, {n: torch.from_numpy(a) for n, a in feeds.items()}, want)
    order = np.random.default_rng(0).permutation(len(values))
    arrays = {name: value.numpy()[order] if value.ndim else value.numpy() for name, value in outputs.items()}
    np.savez(tmp_path / "answers.npz", ids=np.array(given.train.ids)[order], **arrays)
    again = stage_input(tmp_path, "given", captions=1, model=student, answers=tmp_path / "answers.npz")
    found = Distill(**fields).run(again)
    assert found["losses"] == pytest.approx(facts["losses"], rel=1e-3)
    assert found["teacher_outputs"] == "given"


class _Two:
    """Two examples with their own texts."""

    ids = ("a", "b")
    columns = frozenset({"image", "texts"})
    notes: dict[str, int] = {}  # noqa: RUF012 - a protocol's field

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Example:
        return Example(self.ids[index], {"image": None, "texts": ("own",)})


@pytest.mark.unit
def test_texts_become_labels(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", *ROWS, {**ROWS[0], "id": "c"})
    given = stage_input(tmp_path, train=_Two(), train_identity="two")
    labelled, facts = with_given_labels(given, file, Captioner(path=tmp_path), LabelFilter())
    column = next(iter(labelled.train.columns & {"texts", "text"}))
    assert [labelled.train[i].values[column] for i in range(2)] == [("one",), ("two",)]
    assert facts["kept"] == 2 and labelled.train_identity != "two"


@pytest.mark.unit
def test_a_recipe_with_answers_plans_no_teacher(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", *ROWS)
    (tmp_path / "recipe.yaml").write_text(
        "version: 1\nname: given\nteacher: {answers: a.jsonl}\ndata: {train: {scenes: {split: train, size: 8}}}\n"
        "stages: [{distill: {student: {clip: {path: .}}, losses: [{cosine: {outputs: [vision.embeds]}}], steps: 1, batch_size: 4}}]\n"
    )
    recipe = load_recipe(tmp_path / "recipe.yaml")
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "again.yaml") == recipe
    plan = Planner(recipe, Store(tmp_path / "store")).plan()
    assert [(model.role, model.name) for model in plan.models] == [("student", "distill")]
    key = plan.models[0].step.key
    jsonl(tmp_path / "a.jsonl", ROWS[1], ROWS[0])
    assert Planner(recipe, Store(tmp_path / "store")).plan().models[0].step.key != key
    with pytest.raises(RecipeError, match="does not give"):
        load_recipe(tmp_path / "recipe.yaml", ["stages.0.distill.losses=[icl]"])
