"""Spoken digit strings: a student with a quarter of the decoder's layers, trained until it stopped getting better on validation data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tasks
import yaml
from _claims import Claim, claim, find
from _distillation_temperature import teacher_of
from _recipes import write

from mmcompress import runs
from mmcompress.report import load_report

STUDENT = {"student": {"from_teacher": {"decoder_layers": 1}}, "batch_size": 48, "learning_rate": 0.001}
STEPS = 1600
"""400 steps lost two points; 1,600 were chosen on validation data, where 800 on the teacher's own texts were no better."""
METRIC = "wer"


def speech(quick: bool, data: Path, work: Path) -> tuple[Sequence[Claim], Mapping[str, Any]]:
    """Distil the student (what is built is found) and judge it on the test, paired with its teacher."""
    path = student_recipe(data, work)
    if quick:
        passed = not runs.run(path, smoke=True).failures
        return [Claim("the student of spoken digits trains", float(passed), "", None, 1.0, True, passed)], {}
    report = load_report(runs.run(path, store=work / "store", runs=work / "runs").folder)
    claims = [
        claim("digit strings, WER: the teacher", find(report, METRIC, "teacher")),
        claim("digit strings, WER: the student", find(report, METRIC, "distill")),
        claim("digit strings, WER, paired: points above the teacher", find(report, f"drop.{METRIC}", "distill"), 0.005),
    ]
    return claims, {}


def student_recipe(data: Path, work: Path) -> Path:
    """Write the recipe of the student, beside its tables."""
    (task,) = [task for task in tasks.TASKS if task.name == "digit_strings"]
    source = tasks.prepare(task, data, work)
    given = yaml.safe_load(source.read_text(encoding="utf-8"))
    recipe = {
        "version": 1,
        "name": "distillation-speech",
        "teacher": teacher_of(source),
        "data": {name: given["data"][name] for name in ("train", "test")},
        "stages": [{"distill": {**STUDENT, "steps": STEPS}}],
        "measure": {"metrics": [METRIC, "parameters"]},
    }
    return write(recipe, source.with_name("distillation_speech.yaml"))
