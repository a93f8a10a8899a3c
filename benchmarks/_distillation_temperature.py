"""Which way round, and how soft: the divergence's direction by its temperature, on retrieval, classes and sequences.

Every arm is trained once and judged on validation data; the best of each task and ``forward`` at 2 are then judged on the test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tasks
import yaml
from _claims import Claim, claim, find
from _recipes import movable, write

from mmcompress import runs
from mmcompress.metrics import Row
from mmcompress.report import Report, load_report

DIRECTIONS, TEMPERATURES = ("forward", "reverse"), (1.0, 2.0, 4.0, 8.0)
SCENES = Path(__file__).parent / "distillation" / "scenes.yaml"


@dataclass(frozen=True)
class Study:
    """A task, the loss that is varied, and what a stage of its arms says besides."""

    name: str
    metric: str
    loss: str
    fields: Mapping[str, Any]
    distill: Mapping[str, Any]
    conditions: Mapping[str, Any]


STUDIES = (
    Study(
        "scenes",
        "recall_at_1",
        "contrastive_kl",
        {},
        {
            "student": {"from_teacher": {"vision_layers": 2, "text_layers": 2}},
            "steps": 400,
            "batch_size": 256,
            "learning_rate": 1e-3,
        },
        {"direction": "mean"},
    ),
    Study(
        "av_digits",
        "accuracy",
        "logits_kl",
        {},
        {"student": {"fusion": {"config": "small.json"}}, "steps": 600, "batch_size": 64, "learning_rate": 1e-3},
        {"masked": None},
    ),
    Study(
        "digit_strings",
        "wer",
        "logits_kl",
        {"output": "decoder.logits", "mask": "decoder.mask"},
        {
            "student": {"from_teacher": {"decoder_layers": 1}},
            "steps": 200,
            "batch_size": 32,
            "learning_rate": 1e-3,
        },
        {},
    ),
)


def temperature(quick: bool, data: Path, work: Path) -> tuple[Sequence[Claim], Mapping[str, Any]]:
    """Train the arms of every task (what is built is found), and read the tables off the reports."""
    claims: list[Claim] = []
    samples: dict[str, Any] = {}
    for study in STUDIES[:1] if quick else STUDIES:
        folder = _prepare(study, data, work)
        arms = _arms()
        if quick:
            outcome = runs.run(_write(study, folder, arms, "validation"), smoke=True)
            passed = not outcome.failures
            claims.append(Claim("every direction and temperature trains", float(passed), "", None, 1.0, True, passed))
            continue
        chosen = load_report(_run(study, folder, arms, "validation", work).folder)
        scores = {arm: _row(chosen, study, arm) for arm in arms}
        claims += [claim(f"{study.name}, validation: {study.metric} of {arm}", row) for arm, row in scores.items()]
        best = (max if next(iter(scores.values())).higher_is_better else min)(
            scores, key=lambda arm: scores[arm].value or 0.0
        )
        confirmed = load_report(_run(study, folder, sorted({best, "forward_2"}), "test", work).folder)
        for arm in sorted({best, "forward_2"}):
            what = "the best on validation" if arm == best else "to compare"
            claims.append(claim(f"{study.name}, test: {study.metric} of {arm}, {what}", _row(confirmed, study, arm)))
        samples[study.name] = {arm: row.value for arm, row in scores.items()}
    return claims, samples


def _arms() -> list[str]:
    return [f"{direction}_{value:g}" for direction in DIRECTIONS for value in TEMPERATURES]


def _prepare(study: Study, data: Path, work: Path) -> Path:
    if study.name == "scenes":
        return write(movable(SCENES), work / "scenes" / "recipe.yaml")
    (task,) = [task for task in tasks.TASKS if task.name == study.name]
    return tasks.prepare(task, data, work)


def _write(study: Study, source: Path, arms: Sequence[str], split: str) -> Path:
    """The task's recipe with these arms as baselines, judged on a split; beside the recipe, for its paths."""
    recipe = yaml.safe_load(source.read_text(encoding="utf-8"))
    recipe["name"] = f"temperature-{study.name}-{split}"
    recipe["data"]["test"] = recipe["data"][split]
    del recipe["data"]["validation"]  # so that both splits judge the very same models
    if "teacher" not in recipe:  # the first stage makes it
        recipe["teacher"] = teacher_of(source)
    recipe["stages"] = []
    recipe["baselines"] = {arm: [{"distill": _stage(study, arm)}] for arm in arms}
    recipe["measure"] = {"metrics": [_metric(study)]}
    recipe["targets"] = []
    recipe.pop("quantize", None)
    return write(recipe, source.with_name(f"temperature_{study.name}_{split}.yaml"))


def teacher_of(source: Path) -> dict[str, str]:
    """A task's teacher, which its first stage makes, by a recipe of its own that is written beside the task's."""
    recipe: dict[str, Any] = yaml.safe_load(source.read_text(encoding="utf-8"))
    kept = {name: recipe[name] for name in ("version", "data")}
    maker = {**kept, "name": f"{recipe['name']}-teacher", "stages": recipe["stages"][:1], "measure": {"metrics": []}}
    return {"recipe": write(maker, source.with_name("teacher.yaml")).name}


def _stage(study: Study, arm: str) -> dict[str, Any]:
    direction, _, value = arm.partition("_")
    loss = {study.loss: {**study.fields, "direction": direction, "temperature": float(value)}}
    return {**study.distill, "losses": [loss, "task"]}


def _metric(study: Study) -> Any:
    return {"recall_at_k": {"k": [1], "gallery_size": 1000}} if study.metric == "recall_at_1" else study.metric


def _run(study: Study, folder: Path, arms: Sequence[str], split: str, work: Path) -> runs.Outcome:
    return runs.run(_write(study, folder, arms, split), store=work / "store", runs=work / "runs")


def _row(report: Report, study: Study, arm: str) -> Row:
    return find(report, study.metric, arm, **study.conditions)
