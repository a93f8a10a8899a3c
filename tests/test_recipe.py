"""Recipes: every mistake at once with line and nearest name; overrides; what dumps loads again."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mmcompress.errors import RecipeError
from mmcompress.recipe import dump_recipe, fields_at, json_schema, load_recipe

pytestmark = pytest.mark.unit

GOOD = """\
version: 1
name: small
teacher: {clip: {path: teacher}}
data:
  train: {scenes: {split: train, size: 100}}
  validation: {from_train: 0.1}
  test: {scenes: {split: test, size: 50}}
stages:
  - distill:
      student: {from_teacher: {vision_layers: 1, text_layers: 1}}
      losses:
        - contrastive_kl: {temperature: 2.0}
        - feature_mse: {weight: 10.0}
      epochs: 2
      batch_size: 8
quantize: {precision: int8, calibration_samples: 16}
targets: [onnxruntime]
measure: {metrics: [recall_at_k: {k: [1, 5]}, size: {}]}
demand:
  retention.recall_at_1: 0.9
  size_bytes: 4 MB
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, text), overrides)
    assert caught.value.exit_code == 2
    return caught.value.problems


def test_a_mistake_inside_a_baseline_names_the_key_and_not_the_baseline(tmp_path: Path) -> None:
    text = GOOD + "baselines:\n  mine: [{prune: {goal: {macs: 0.5, thread: 3}}}]\n"
    (problem,) = problems(tmp_path, text)
    assert "recipe.yaml:23: baselines.mine.0.prune.goal.thread: unknown key 'thread'" in problem
    assert "did you mean 'threads'" in problem


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert recipe.teacher.path == tmp_path / "teacher"


def test_a_path_given_on_the_command_line_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    recipe = load_recipe(write(tmp_path, GOOD), ["teacher.clip.path=mine"])
    assert recipe.teacher.path == tmp_path / "elsewhere" / "mine"


def test_dump_and_load_give_an_equal_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    again = load_recipe(write(tmp_path, dump_recipe(recipe)))
    assert again == recipe
    assert again.stages[0].losses[1].weight == 10.0  # type: ignore[attr-defined]


def test_three_mistakes_are_told_at_once_with_line_and_nearest_name(tmp_path: Path) -> None:
    text = GOOD.replace("temperature: 2.0", "temprature: 2.0").replace("batch_size: 8", "batch_size: -8")
    text = text.replace("[onnxruntime]", "[onnxruntimes]")
    found = problems(tmp_path, text)
    assert len(found) == 3
    by_line = {int(problem.split(":")[1]): problem for problem in found}
    assert "stages.0.distill.losses.0.contrastive_kl.temprature" in by_line[12]
    assert "did you mean 'temperature'" in by_line[12]
    assert "stages.0.distill.batch_size" in by_line[15] and "-8" in by_line[15]
    assert "did you mean 'onnxruntime'" in by_line[17]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a\n- b\n", "not a mapping"),
        ("", "is empty"),
        ("a: [1, 2\n", "not valid YAML"),
        ("version: 1\nversion: 1\n", "stands twice"),
        (GOOD.replace("version: 1", "version: 2"), "version"),
        (GOOD.replace("name: small", "name: ../up"), "name"),
        (GOOD.replace("path: teacher", "path: teacher, config: other"), "exactly one of path, hub, config"),
        (GOOD.replace("teacher: {clip: {path: teacher}}", "teacher: {clip: {hub: openai/clip}}"), "needs a revision"),
        (GOOD.replace("retention.recall_at_1", "retention.recall_at_2"), "recall_at_1"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in "\n".join(problems(tmp_path, text))


def test_no_such_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe"):
        load_recipe(tmp_path / "absent.yaml")


def test_override_changes_one_value_and_names_itself_in_errors(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD), ["stages.0.distill.epochs=7", "seed=3"])
    assert recipe.stages[0].epochs == 7 and recipe.seed == 3  # type: ignore[attr-defined]
    recipe = load_recipe(write(tmp_path, GOOD), ["demand.retention.recall_at_1=0.5"])
    assert recipe.demand["retention.recall_at_1"] == 0.5
    assert problems(tmp_path, GOOD, "stages.0.distill.epoch=7")[0].startswith("-s stages.0.distill.epoch")
    assert "index from 0 to 0" in problems(tmp_path, GOOD, "stages.4.distill.epochs=7")[0]
    assert "PATH=VALUE" in problems(tmp_path, GOOD, "seed")[0]


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD), ["stages.0.distill.learning_rate=1e-3"])
    assert recipe.stages[0].learning_rate == 0.001  # type: ignore[attr-defined]


def test_only_true_and_false_are_booleans(tmp_path: Path) -> None:
    """YAML 1.1 reads `on` and `no` as booleans, which would make a key of goals of time, or a class, another thing."""
    goal = "goal: {speedup: 1.5, on: onnxruntime}"
    text = GOOD.replace("quantize:", f"  - prune: {{{goal}}}\nquantize:")
    recipe = load_recipe(write(tmp_path, text), ["stages.1.prune.goal={speedup: 2, on: openvino}", "name=no"])
    assert recipe.stages[1].goal.on.component_name() == "openvino"
    assert load_recipe(write(tmp_path, text)).stages[1].goal.on.component_name() == "onnxruntime"
    assert recipe.name == "no"


def test_fields_at_follows_components(tmp_path: Path) -> None:
    assert "temperature" in fields_at(("stages", 0, "distill", "losses", 0, "contrastive_kl"))
    assert "validation" in fields_at(("data",))


def test_the_schema_accepts_the_recipe(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema()
    jsonschema.validate(yaml.safe_load(GOOD), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(GOOD.replace("temperature", "temprature")), schema)
