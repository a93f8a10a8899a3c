"""Teachers and students that are not of one piece: several, merged from an adapter, one tower alone, of other words."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from training_helpers import SIDE, stage_input, write_model

from mmcompress.component import digest_json
from mmcompress.errors import InputError, RecipeError
from mmcompress.families._adapters import OLD_NAME
from mmcompress.families._adapters import write_model as write_checkpoint
from mmcompress.families.clip import Clip
from mmcompress.losses.logits_kl import LogitsKL
from mmcompress.recipe import dump_recipe, load_recipe
from mmcompress.stages import Model
from mmcompress.stages._vocabularies import check_vocabularies
from mmcompress.stages.distill import Distill
from tests.small_recipe import write_teacher

unit = pytest.mark.unit


# --- several teachers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["online", "cached"])
def test_a_student_follows_two_teachers_of_other_widths(tmp_path: Path, kind: str) -> None:
    main, other = write_model(tmp_path / "main"), write_model(tmp_path / "other", seed=5, projection=24)
    student = write_model(tmp_path / "student", seed=1)
    fields: dict[str, Any] = {"steps": 1, "batch_size": 24, "precision": "fp32", "learning_rate": 1e-9}
    fields |= {"losses": ["contrastive_kl", "icl", "affinity"], "teacher_outputs": kind}

    def told(name: str, **more: Any) -> Mapping[str, float]:
        teacher = more.pop("teacher", main)
        given = stage_input(tmp_path, name, model=student, teacher=teacher, teacher_key=teacher.folder.name, **more)
        teachers = [{"clip": {"path": other.folder}, "weight": 0.25}] if more else []
        losses: Mapping[str, float] = Distill(**fields, teachers=teachers).run(given)["losses"]
        return losses

    one, two = told("one"), told("two", teacher=other)
    if kind == "online":
        # The widths fit the student's, or not: a loss whose projection is new has its own value for each teacher.
        fields["losses"] = ["contrastive_kl", "affinity"]
    both = told("both", others=((other, "other"),))
    # The cross entropy is linear in its target, so that a mixture has the weighted mean of the losses.
    assert both["affinity"] == pytest.approx(0.75 * one["affinity"] + 0.25 * two["affinity"], rel=1e-3)
    # The divergence is convex in the teacher's distribution: the mixture's is less than the mean of both.
    assert both["contrastive_kl"] < 0.75 * one["contrastive_kl"] + 0.25 * two["contrastive_kl"]
    assert both["contrastive_kl"] > 0


@unit
@pytest.mark.parametrize(
    ("teachers", "where"),
    [
        ([{"clip": {"path": "a"}}], ("teachers", 0)),
        ([{"clip": {"path": "a"}, "weight": 1}], ("teachers", 0)),
        ([{"clip": {"pat": "a"}, "weight": 0.5}], ("teachers", 0, "clip", "pat")),
        ([{"clap": {"path": "a"}, "clip": {"path": "a"}, "weight": 0.5}], ("teachers", 0)),
        ([{"clip": {"path": "a"}, "weight": 0.5}] * 2, ()),
    ],
)
def test_impossible_teachers_are_refused_where_they_stand(teachers: Any, where: tuple[str | int, ...]) -> None:
    with pytest.raises(ValidationError) as refused:
        Distill(teachers=teachers)
    assert where in [item["loc"] for item in refused.value.errors()]


@unit
def test_teachers_are_dumped_and_part_of_the_identity(tmp_path: Path) -> None:
    stages = [Distill(teachers=[{"clip": {"path": tmp_path}, "weight": share}]) for share in (0.2, 0.3)]
    stages += [Distill(), Distill(teachers=[{"recipe": tmp_path / "other.yaml", "weight": 0.2}])]
    assert len({digest_json(stage.identity()) for stage in stages}) == 4
    for stage in stages:
        assert Distill.model_validate(stage.model_dump(mode="json")) == stage
    assert stages[0].further_teachers() == (Clip(path=tmp_path),)


@unit
def test_a_further_teacher_that_cannot_teach_is_told_with_the_reason(tmp_path: Path) -> None:
    clip = Clip(path=tmp_path)
    whisper = {"whisper": {"hub": "a/b", "revision": "c"}, "weight": 0.5}
    problems = Distill(losses=["contrastive_kl"], teachers=[whisper]).problems(clip, clip)
    assert [where for where, _ in problems] == [("teachers", 0, "whisper")]
    assert "vision.embeds" in problems[0][1]


RECIPE = """
version: 1
name: {name}
teacher: {{clip: {{path: teacher}}}}
data: {{train: {{scenes: {{split: train, size: 64, image_size: 24}}}}}}
stages: [{{distill: {{student: from_teacher, steps: 1, batch_size: 8{more}}}}}]
"""


def test_a_recipe_names_another_recipes_model_as_a_teacher(tmp_path: Path) -> None:
    write_teacher(tmp_path / "teacher")
    (tmp_path / "other.yaml").write_text(RECIPE.format(name="other", more=""))
    more = ", teachers: [{recipe: other.yaml, weight: 0.5}]"
    path = tmp_path / "main.yaml"
    path.write_text(RECIPE.format(name="main", more=more))
    from mmcompress.pipeline import Planner
    from mmcompress.store import Store

    recipe = load_recipe(path)
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe))
    assert load_recipe(again) == recipe
    planner = Planner(recipe, Store(tmp_path / "store"))
    step = planner.plan().models[-1].step
    assert len(step.identity["teachers"]) == 1
    planner.get(step)
    assert len(list((tmp_path / "store" / "artifacts" / "distill").iterdir())) == 2
    path.write_text(RECIPE.format(name="main", more=more.replace("0.5", "2")))
    with pytest.raises(RecipeError, match=r"main\.yaml:6.*teachers\.0.*above 0 and below 1"):
        load_recipe(path)


# --- one tower alone -----------------------------------------------------------------------------------------------


class Pictures:
    """A split that has pictures and nothing else."""

    columns = frozenset({"image"})

    def __init__(self, whole: Any) -> None:
        self.whole, self.ids, self.notes = whole, whole.ids, {}

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: int) -> Any:
        example = self.whole[index]
        return type(example)(example.id, {"image": example.values["image"]})

    def fingerprint(self, index: int) -> str:
        return str(index)


@pytest.mark.parametrize("kind", ["online", "cached"])
def test_one_tower_learns_from_pictures_without_texts(tmp_path: Path, kind: str) -> None:
    teacher, student = write_model(tmp_path / "teacher"), write_model(tmp_path / "student", seed=1)
    given = stage_input(tmp_path, "stage", model=student, teacher=teacher, teacher_key="key", train_identity=None)
    alone = Pictures(given.train)
    given = type(given)(**{**vars(given), "train": alone})
    losses = [{"feature_mse": {"outputs": ["vision.embeds"]}}, {"cosine": {"outputs": ["vision.embeds"]}}]
    frozen = ("text_model", "text_projection", "logit_scale")
    fields: dict[str, Any] = {"steps": 40, "batch_size": 24, "learning_rate": 3e-3, "freeze": frozen}
    facts = Distill(**fields, losses=losses, teacher_outputs=kind).run(given)
    assert facts["losses"]["feature_mse"] == pytest.approx(2 * facts["losses"]["cosine"], rel=1e-3)
    assert facts["losses"]["feature_mse"] < 1.2
    before, after = (load_file(folder / "model.safetensors") for folder in (student.folder, given.output))
    assert not [name for name in before if name.startswith(frozen) and (before[name] != after[name]).any()]
    with pytest.raises(InputError, match="no texts"):
        Distill(steps=1, batch_size=24).run(given)


# --- other words and classes ---------------------------------------------------------------------------------------


@unit
def test_logits_of_other_tokens_are_refused_with_the_reason(tmp_path: Path) -> None:
    models = []
    for name, words in (("one", ["a", "b"]), ("two", ["a", "c"]), ("three", ["a", "b"])):
        folder = tmp_path / name
        folder.mkdir()
        content = {
            "model": {"vocab": {word: i for i, word in enumerate(words)}},
            "truncation": {"max_length": len(models)},
        }
        (folder / "tokenizer.json").write_text(json.dumps(content))
        models.append(Model(Clip(path=folder), folder))
    losses = [LogitsKL(output="decoder.logits", mask="decoder.mask")]
    check_vocabularies(losses, models[0], [models[2]])
    with pytest.raises(InputError, match="tokenizers differ"):
        check_vocabularies(losses, models[0], [models[2], models[1]])


# --- an adapter ----------------------------------------------------------------------------------------------------


def write_adapter(base: Model, folder: Path) -> torch.nn.Module:
    """A small LoRA adapter of the vision tower, made by peft; gives the model with it."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = base.family.load(base.folder)
    made = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "visual_projection"]))
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    made.save_pretrained(str(folder), save_embedding_layers=False)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "../base"}))
    return made.eval()


@pytest.mark.filterwarnings(f"ignore:{OLD_NAME}:FutureWarning")
def test_an_adapter_is_merged_into_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_model(tmp_path / "base")
    pixels = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, SIDE, SIDE)).astype(np.float32))
    want = frozenset({"vision.embeds"})
    plain = base.family.outputs(base.family.load(base.folder), {"pixel_values": pixels}, want)["vision.embeds"]
    adapted = write_adapter(base, tmp_path / "adapter")
    expected = base.family.outputs(adapted.get_base_model(), {"pixel_values": pixels}, want)["vision.embeds"]

    family = Clip(path=tmp_path / "adapter")
    (tmp_path / "work").mkdir()
    write_checkpoint(family, tmp_path / "merged", tmp_path / "work", 0)
    found = family.outputs(family.load(tmp_path / "merged"), {"pixel_values": pixels}, want)["vision.embeds"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found - plain).abs().max() > 0.01
    assert not [name for name in load_file(tmp_path / "merged" / "model.safetensors") if "lora" in name]

    # The key knows the model below the adapter.
    key = digest_json(family.identity())
    config = base.folder / "config.json"
    config.write_text(config.read_text() + "\n")
    assert digest_json(family.identity()) != key

    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "elsewhere")
    with pytest.raises(InputError, match=r"adapter_model\.safetensors is missing"):
        write_checkpoint(family, tmp_path / "second", tmp_path / "work", 0)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"mmcompress\[lora\]"):
        write_checkpoint(family, tmp_path / "second", tmp_path / "work", 0)


@unit
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "base_model_name_or_path is missing"),
        ({"base_model_name_or_path": "openai/clip"}, "no revision"),
    ],
)
def test_an_adapter_without_its_model_is_told(tmp_path: Path, settings: dict[str, str], message: str) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=message):
        Clip(path=tmp_path).identity()


@unit
def test_an_adapter_of_a_hub_model_names_its_revision(tmp_path: Path) -> None:
    settings = {"base_model_name_or_path": "openai/clip", "revision": "abc"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    assert Clip(path=tmp_path).identity()["base"] == ["openai/clip", "abc"]
