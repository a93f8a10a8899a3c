"""The quickstart, its teacher and the baselines beside it: what the teacher knows, what the package keeps and costs.

    python benchmarks/whole_way.py --only package --out benchmarks/results/whole_way.json

The parts, both without ``--only``, and the time of each on two cores when nothing is built:

- ``package``: the quickstart (a quarter of an hour)
- ``teacher``: its teacher, made again, and two baselines (an hour)

``--quick`` drives them on 64 examples: it shows that everything runs, and measures nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _claims import Claim, claim, find, main_of_parts, samples_of
from _recipes import smoke

from mmcompress import runs
from mmcompress.report import load_report

RECIPES = Path(__file__).parents[1] / "recipes"
INT8 = "onnxruntime int8"
MEAN: dict[str, Any] = {"direction": "mean"}


def package(quick: bool) -> tuple[list[Claim], Mapping[str, Any]]:
    """Run the quickstart (what is built is found): what its package keeps and costs."""
    recipe = RECIPES / "quickstart.yaml"
    if quick:
        return smoke(recipe), {}
    report = load_report(runs.run(recipe).folder)
    image: dict[str, Any] = {"request": "embed_image", "batch": 1, "scope": "engine"}
    text = {**image, "request": "embed_text"}
    speed = "speedup.latency_ms_p50"
    claims = [
        claim("recall@1 of the shipped teacher", find(report, "recall_at_1", "teacher", **MEAN), 0.80),
        claim("recall@1 of the package", find(report, "recall_at_1", INT8, **MEAN)),
        claim("recall@1 that the package keeps", find(report, "retention.recall_at_1", INT8, **MEAN), 0.97),
        claim("embed_image, p50, engine, batch 1: times as fast", find(report, speed, INT8, **image), 4.0),
        claim("embed_text, p50, engine, batch 1: times as fast", find(report, speed, INT8, **text), 1.0),
        claim("times smaller", find(report, "size_ratio", INT8), 8.0),
    ]
    return claims, samples_of([report])


def teacher(quick: bool) -> tuple[list[Claim], Mapping[str, Any]]:
    """Make the teacher again, and what it should be better than."""
    recipe = RECIPES / "scenes_teacher.yaml"
    if quick:
        return smoke(recipe), {}
    report = load_report(runs.run(recipe).folder)
    lost = "drop.recall_at_1"
    half, small = (find(report, lost, name, **MEAN) for name in ("half_width", "package_size"))
    claims = [
        claim("recall@1 of the teacher", find(report, "recall_at_1", "teacher", **MEAN), 0.80),
        claim("half the teacher's width: points lost", half, 0.02, better=True),
        claim("the package's size, its steps, no teacher: points lost", small, 0.05, better=True),
    ]
    return claims, samples_of([report])


PARTS = {"package": package, "teacher": teacher}


if __name__ == "__main__":
    sys.exit(main_of_parts(__doc__ or "", PARTS, paths=()))
