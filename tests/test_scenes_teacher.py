"""The shipped teacher: small enough to ship, and made again by its recipe to the same quality."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmcompress import runs
from mmcompress.report import load_report


@pytest.mark.unit
def test_the_shipped_teacher_is_small(root: Path) -> None:
    assert (root / "recipes" / "scenes_teacher" / "model.safetensors").stat().st_size <= 10_000_000


@pytest.mark.slow
def test_its_recipe_makes_it_again_to_the_same_quality(root: Path, tmp_path: Path) -> None:
    recipes = root / "recipes"
    store, where = tmp_path / "store", tmp_path / "runs"
    made = load_report(
        runs.run(recipes / "scenes_teacher.yaml", overrides=["baselines={}"], store=store, runs=where).folder
    )
    shipped = load_report(
        runs.run(
            recipes / "quickstart.yaml",
            overrides=["stages=[]", "targets=[]", "demand={}", "measure.metrics=[recall_at_k: {gallery_size: 1000}]"],
            store=store,
            runs=where,
        ).folder
    )
    again, ours = (
        next(row for row in report.rows if row.metric == "recall_at_1" and row.conditions["direction"] == "mean")
        for report in (made, shipped)
    )
    assert again.value is not None and again.ci95 is not None and ours.ci95 is not None
    assert again.value >= 0.8
    assert again.ci95[0] <= ours.ci95[1] and ours.ci95[0] <= again.ci95[1]
