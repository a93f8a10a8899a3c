"""The whole way on a tiny teacher: what is built, what is found again, what a change rebuilds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import mmcompress
from mmcompress import runs
from mmcompress.benchmarking import benchmark_packages, benchmark_recipe
from mmcompress.errors import InputError, RecipeError, StageError, UsageError
from mmcompress.families.clip import Clip
from mmcompress.pipeline import Planner
from mmcompress.plan import plan, plan_lines
from mmcompress.recipe import load_recipe
from mmcompress.report import load_report
from mmcompress.store import Store
from tests.page_report import LIMIT, Read
from tests.small_recipe import RECIPE, write_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def first(project: Path) -> runs.Outcome:
    return runs.run(project, store=project.parent / "store", runs=project.parent / "runs")


def artifacts(project: Path) -> dict[str, set[str]]:
    root = project.parent / "store" / "artifacts"
    return {kind.name: {path.name for path in kind.iterdir()} for kind in root.iterdir()}


def test_a_run_leaves_a_report_its_recipe_its_samples_and_a_package(project: Path, first: runs.Outcome) -> None:
    report = load_report(project.parent / "runs" / "small" / "latest")
    assert first.built > 0 and not first.failures
    roles = {(row.role, row.stage, row.target) for row in report.rows}
    assert ("teacher", "teacher", "torch") in roles
    assert {("student", "distill", "torch"), ("student", "prune", "torch")} <= roles
    assert ("package", "package", "onnxruntime") in roles and ("teacher", "package", "onnxruntime") in roles
    drop = [row for row in report.rows if row.metric == "drop.recall_at_1" and row.role == "package"]
    assert len(drop) == 1 and drop[0].n == 40 and drop[0].one_sided95 is not None
    ratio = next(row for row in report.rows if row.metric == "size_ratio" and row.role == "package")
    assert ratio.value is not None and ratio.value > 1.5 and ratio.ci95 is None
    assert first.exit_code == 0 and [verdict.holds for verdict in report.verdicts] == [True]
    assert (first.folder / "report.md").is_file() and (first.folder / "recipe.yaml").is_file()
    assert any((first.folder / "samples").iterdir())


def test_a_run_leaves_a_page_with_its_stages_and_pictures(first: runs.Outcome) -> None:
    ran = first.folder
    found = Read((ran / "report.html").read_text(encoding="utf-8"))
    assert not found.problems and (ran / "report.html").stat().st_size < LIMIT
    assert "Passed: of 1 demands 1 passed." in found.text
    labels = " ".join(a["aria-label"] for a in found.all("svg") if "aria-label" in a)
    facts = {step["name"]: step["facts"] for step in json.loads((ran / "report.json").read_text())["steps"]}
    for name, cut in facts["prune"]["blocks"].items():
        ((what, (before, after)),) = cut.items()
        assert f"{name} {before} → {after} {what}" in labels
    products = facts["onnxruntime quantize (prune)"]["graphs"]["vision_model"]
    assert (
        f"vision_model {len(products['int8'])} of {len(products['int8']) + len(products['float'])} products" in labels
    )
    assert found.all("article") and len(found.all("img")) >= len(found.all("article"))
    assert list((ran / "examples").glob("*.png"))


def test_the_resolved_recipe_builds_nothing_new(first: runs.Outcome, project: Path) -> None:
    again = runs.run(first.folder / "recipe.yaml", store=project.parent / "store", runs=project.parent / "runs")
    assert again.built == 0
    quality = [(row.name, row.metric, row.value) for row in first.rows if "recall" in row.metric]
    assert quality == [(row.name, row.metric, row.value) for row in again.rows if "recall" in row.metric]


def test_the_copied_package_answers_as_the_report_says(first: runs.Outcome) -> None:
    folder = first.folder / "packages" / "onnxruntime"
    assert not (folder / "artifact.json").exists()
    scores = json.loads((folder / "scores.json").read_text())
    assert {row["metric"] for row in scores["rows"]} >= {"recall_at_1", "size_bytes"}
    assert "| recall_at_1 | " in (folder / "README.md").read_text()
    with mmcompress.load_package(folder, threads=1) as package:  # both lie outside what the manifest seals
        assert package.embed_texts(["a red star", "a blue ring"]).shape == (2, 20)
        assert all((check.lowest or 0.0) > 0.999 for check in package.check_probe().values())


def test_the_plan_tells_what_is_found_and_what_would_be_built(first: runs.Outcome, project: Path) -> None:
    before = artifacts(project)
    store = Store(project.parent / "store")
    whole = plan(Planner(load_recipe(project), store))
    assert all(step.found for step in whole) and plan_lines(whole)[-1] == "nothing to build"
    assert [step.kind for step in whole][:3] == ["teacher", "distill", "prune"]
    changed = plan(Planner(load_recipe(project, ["quantize.calibration_samples=23"]), store))
    assert {step.kind for step in changed if not step.found} == {"quantize", "compile"}
    assert plan_lines(changed)[-1] == f"2 of {len(changed)} steps to build"
    assert artifacts(project) == before


def test_other_calibration_rebuilds_quantize_and_compile_alone(first: runs.Outcome, project: Path) -> None:
    before = artifacts(project)
    runs.run(
        project,
        overrides=["quantize.calibration_samples=24"],
        store=project.parent / "store",
        runs=project.parent / "runs",
    )
    after = artifacts(project)
    changed = {kind for kind in after if after[kind] != before[kind]}
    assert changed == {"quantize", "compile"}
    assert len(after["quantize"]) == len(before["quantize"]) + 1
    assert len(after["compile"]) == len(before["compile"]) + 1


@pytest.mark.parametrize(
    ("override", "rebuilt"),
    [
        ("seed=2", {"distill", "prune"}),
        ("stages.0.distill.learning_rate=0.002", {"distill", "prune"}),
        ("stages.1.prune.goal.macs=0.6", {"prune"}),
        ("data.train.scenes.size=95", {"distill", "prune"}),
        ("data.validation.scenes.size=47", {"distill", "prune"}),
        ("measure.threads=1", set()),
        ("demand.size_ratio=1.4", set()),
        ("name=other", set()),
        ("data.test.scenes.size=39", set()),
    ],
)
def test_the_key_of_a_model_changes_with_what_shapes_it_and_nothing_else(
    project: Path, override: str, rebuilt: set[str]
) -> None:
    store = Store(project.parent / "keys")

    def keys(*overrides: str) -> dict[str, str]:
        plan = Planner(load_recipe(project, overrides), store).plan()
        return {made.stage: made.step.key for made in plan.models}

    before, after = keys(), keys(override)
    assert {kind for kind in before if before[kind] != after[kind]} == rebuilt


def test_losses_that_the_family_chooses_are_in_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = "\n".join(line for line in RECIPE.splitlines() if "losses:" not in line)
    recipe = write_project(tmp_path, silent.replace("round_to: 8", "round_to: 8, recover: {steps: 2, batch_size: 16}"))

    def keys(*overrides: str) -> dict[str, str]:
        plan = Planner(load_recipe(recipe, overrides), Store(tmp_path / "store")).plan()
        return {made.stage: made.step.key for made in plan.models}

    before, chosen = keys(), json.dumps(Clip(path=tmp_path / "teacher").default_losses())
    assert keys(f"stages.0.distill.losses={chosen}", f"stages.1.prune.recover.losses={chosen}") == before
    monkeypatch.setattr(Clip, "default_losses", lambda self: ("feature_mse",))
    after = keys()
    assert {kind for kind in before if before[kind] != after[kind]} == {"distill", "prune"}
    assert keys(f"stages.0.distill.losses={chosen}")["distill"] == before["distill"]


def test_a_changed_weight_file_is_another_teacher(tmp_path: Path) -> None:
    recipe = write_project(tmp_path)
    store = Store(tmp_path / "store")
    before = Planner(load_recipe(recipe), store).plan().models[0].step.key
    weights = tmp_path / "teacher" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert Planner(load_recipe(recipe), store).plan().models[0].step.key != before


def test_without_a_teacher_the_first_stage_makes_it(project: Path, tmp_path: Path) -> None:
    text = RECIPE.replace("teacher: {clip: {path: teacher}}\n", "")
    finetune = "  - finetune: {student: {clip: {config: teacher-config}}, steps: 2, batch_size: 16}\n"
    text = text.replace("stages:\n", "stages:\n" + finetune)
    path = project.parent / "whole.yaml"
    path.write_text(text)
    plan = Planner(load_recipe(path), Store(tmp_path)).plan()
    assert [(made.role, made.stage) for made in plan.models] == [
        ("teacher", "finetune"),
        ("student", "distill"),
        ("student", "prune"),
    ]
    path.write_text(RECIPE.replace("teacher: {clip: {path: teacher}}", "teacher: {recipe: whole.yaml}"))
    again = path.with_name("after.yaml")
    path.rename(again)
    path.write_text(text)
    onward = Planner(load_recipe(again), Store(tmp_path)).plan()
    assert onward.models[0].step.key == plan.models[-1].step.key and onward.models[0].role == "teacher"


def test_splits_that_share_examples_are_refused(project: Path) -> None:
    with pytest.raises(InputError, match="share"):
        runs.run(project, overrides=["data.test.scenes.split=train"], store=project.parent / "store")


def test_fewer_training_examples_than_calibration_asks_for(project: Path, first: runs.Outcome) -> None:
    outcome = runs.run(
        project,
        overrides=["quantize.calibration_samples=1000"],
        store=project.parent / "store",
        runs=project.parent / "runs",
    )
    assert outcome.exit_code == StageError.exit_code
    assert "1000 training examples asked for, 96 are there" in next(iter(outcome.failures.values()))


def test_a_demand_of_a_metric_that_is_not_measured_is_told_with_the_others(project: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(project, ["demand.sizeratio=3", "measure.thread=1"])
    assert "size_ratio" in str(caught.value) or "threads" in str(caught.value)


def test_a_smoke_run_keeps_nothing(
    project: Path, first: runs.Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = artifacts(project)
    outcome = runs.run(project, store=project.parent / "store", smoke=True)
    assert outcome.built > 0 and not outcome.failures
    assert artifacts(project) == before and not list(tmp_path.iterdir())


def test_a_smoke_run_makes_the_recipe_of_its_teacher_small_too(tmp_path: Path) -> None:
    large = write_project(
        tmp_path, RECIPE.replace("batch_size: 16", "batch_size: 80").replace("steps: 6", "steps: 1000")
    )
    after = tmp_path / "after.yaml"
    text = RECIPE.replace("teacher: {clip: {path: teacher}}", f"teacher: {{recipe: {large.name}}}")
    after.write_text(text[: text.index("stages:")] + "stages: []\n" + text[text.index("quantize:") :])
    outcome = runs.run(after, store=tmp_path / "store", smoke=True)
    assert outcome.built > 0 and not outcome.failures


def test_artifacts_say_what_made_them(first: runs.Outcome, project: Path) -> None:
    root = project.parent / "store" / "artifacts"
    manifest = json.loads(next((root / "distill").glob("*/artifact.json")).read_text())
    assert manifest["facts"]["steps"] == 6
    assert manifest["identity"]["stage"]["fields"]["batch_size"] == 16
    assert Store(project.parent / "store").verify() == []


def test_packages_are_benchmarked_against_the_first(first: runs.Outcome, project: Path, tmp_path: Path) -> None:
    int8 = first.folder / "packages" / "onnxruntime"
    compiled = (project.parent / "store" / "artifacts" / "compile").glob("*/manifest.json")
    fp32 = next(path.parent for path in compiled if json.loads(path.read_text())["precision"] == "fp32")
    rows = benchmark_packages([fp32, int8], threads=1)
    speedups = [row for row in rows if row.metric == "speedup.latency_ms_p50" and row.role == "package"]
    assert {row.conditions["request"] for row in speedups} == {"embed_image", "embed_text"}
    assert all(row.value is not None and row.n > 0 for row in speedups)
    with pytest.raises(InputError, match="not a package"):
        benchmark_packages([tmp_path], threads=1)


def test_a_recipe_that_is_not_built_is_not_benchmarked(project: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not built yet"):
        benchmark_recipe(project, store=tmp_path / "empty")
