"""What INT8 costs in quality, on ONNX Runtime, against the same model in FP32, example by example; and what calibration takes.

    python benchmarks/int8.py DATA WORK --out benchmarks/results/int8.json

DATA holds the public sets that ``_task_data.py`` names and a folder ``emoji``, beside a folder ``teachers`` with ``emoji-clip``.
WORK gets models and a store: what is built there is found by a second call. The parts, all measured without ``--only``:

- ``scenes``: the quickstart's last model, 20,000 test pairs
- ``speech``: the student of spoken digits that ``distillation.py --only speech`` trains
- ``emoji``: a teacher of drawings and their names; INT8 by the promise of ``max_drop``
- ``calibration``: CLIP ViT-B/32 (random weights), 512 pictures, by entropy

``--quick`` shows that everything runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from _claims import Claim, claim, find, main_of_parts
from _distillation_speech import student_recipe
from _int8_calibration import calibration
from _recipes import reports, smoke, write
from clip_emoji import places

from mmcompress.report import Report, read_samples

RECIPES = Path(__file__).parent / "int8"
INT8, FLOAT_SHARE = "onnxruntime int8", 0.05
MEAN: dict[str, Any] = {"direction": "mean"}
Found = tuple[list[Claim], dict[str, Any]]


def scenes(quick: bool, data: Path, work: Path) -> Found:
    """The quickstart's student: at most 0.3 points of recall@1 and 0.1 of zero-shot top-1."""
    if quick:
        return smoke(RECIPES / "scenes.yaml"), {}
    (report,) = reports(RECIPES / "scenes.yaml", work, 1)
    return [
        *_before_and_after(report, "scenes, recall@1", "recall_at_1", MEAN, 0.003),
        *_before_and_after(report, "scenes, zero-shot top-1", "zero_shot_top1", {}, 0.001),
        *_in_float(report, "scenes"),
    ], _scores(report)


def speech(quick: bool, data: Path, work: Path) -> Found:
    """The student of spoken digits: at most 0.1 points of word error rate more."""
    source = student_recipe(data, work)
    given = yaml.safe_load(source.read_text(encoding="utf-8"))
    recipe = {
        "version": 1,
        "name": "int8-speech",
        "teacher": {"recipe": source.name},
        "data": given["data"],
        "stages": [],
        "quantize": {"precision": "int8", "calibration_samples": 256},
        "targets": ["onnxruntime"],
        "measure": {"metrics": ["wer", "coverage", "size"]},
    }
    path = write(recipe, source.with_name("int8_speech.yaml"))
    if quick:
        return smoke(path), {}
    (report,) = reports(path, work, 1)
    return [
        *_before_and_after(report, "digit strings, WER", "wer", {}, 0.001),
        *_in_float(report, "digit strings"),
    ], _scores(report)


def emoji(quick: bool, data: Path, work: Path) -> Found:
    """A teacher of drawings, as it comes out."""
    overrides = places(data.resolve().parent / "teachers" / "emoji-clip", data.resolve() / "emoji")
    if quick:
        return smoke(RECIPES / "emoji.yaml", overrides), {}
    (report,) = reports(RECIPES / "emoji.yaml", work, 1, overrides)
    claims = [
        item
        for metric in ("recall_at_1", "recall_at_5")
        for item in _before_and_after(report, f"emoji, {metric.replace('_at_', '@')}", metric, MEAN)
    ]
    return [*claims, *_in_float(report, "emoji")], _scores(report)


def _before_and_after(
    report: Report, what: str, metric: str, conditions: Mapping[str, Any], goal: float | None = None
) -> list[Claim]:
    """FP32, INT8, and the points between them, paired."""
    return [
        claim(f"{what}: FP32", find(report, metric, "teacher", **conditions)),
        claim(f"{what}: INT8", find(report, metric, INT8, **conditions)),
        claim(f"{what}: points lost", find(report, f"drop.{metric}", INT8, **conditions), goal),
    ]


def _in_float(report: Report, what: str) -> list[Claim]:
    """The share of multiply-accumulates with weights that stay in float, by graph."""
    rows = [row for row in report.rows if row.metric == "float_macs_ratio" and row.name == INT8]
    return [
        claim(f"{what}, {row.conditions['part']}: share of weighted products in float", row, FLOAT_SHARE)
        for row in rows
    ]


def _scores(report: Report) -> dict[str, Any]:
    """Each example's score, by metric and model."""
    found = {f"{report.title}/{name}": read_samples(report, name) for name in report.samples}
    return {name: [record["score"] for record in records] for name, records in found.items() if "score" in records[0]}


PARTS: dict[str, Callable[[bool, Path, Path], Found]] = {
    "scenes": scenes,
    "speech": speech,
    "emoji": emoji,
    "calibration": lambda quick, data, work: (calibration(quick, work), {}),
}


if __name__ == "__main__":
    sys.exit(main_of_parts(__doc__ or "", PARTS))
