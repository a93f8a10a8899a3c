"""The quickstart, its teacher and the baselines beside it: what the teacher knows, what the package keeps and costs.

    python benchmarks/whole_way.py --out benchmarks/results/whole_way.json      (about an hour on two cores when nothing is built)

``--quick`` drives the quickstart on 64 examples: it shows that everything runs, and measures nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _claims import Claim, claim, find, main, samples_of

from mmcompress import runs
from mmcompress.report import load_report

RECIPES = Path(__file__).parents[1] / "recipes"
INT8 = "onnxruntime int8"


def measure(quick: bool) -> tuple[Sequence[Claim], Mapping[str, Any]]:
    """Run both recipes (what is built is found) and read the claims off their reports."""
    if quick:
        outcome = runs.run(RECIPES / "quickstart.yaml", smoke=True)
        passed = 0.0 if outcome.failures else 1.0
        return [Claim("a smoke run of the quickstart finishes", passed, "", None, 1.0, True, passed == 1.0)], {}
    made = load_report(runs.run(RECIPES / "scenes_teacher.yaml").folder)
    ours = load_report(runs.run(RECIPES / "quickstart.yaml").folder)
    mean: dict[str, Any] = {"direction": "mean"}
    image: dict[str, Any] = {"request": "embed_image", "batch": 1, "scope": "engine"}
    text = {**image, "request": "embed_text"}
    speed = "speedup.latency_ms_p50"
    claims = [
        claim("recall@1 of the teacher", find(made, "recall_at_1", "teacher", **mean), 0.80),
        claim("recall@1 of the shipped teacher", find(ours, "recall_at_1", "teacher", **mean), 0.80),
        claim(
            "half the teacher's width: points lost",
            find(made, "drop.recall_at_1", "half_width", **mean),
            0.02,
            better=True,
        ),
        claim(
            "the package's size, its steps, no teacher: points lost",
            find(made, "drop.recall_at_1", "package_size", **mean),
            0.05,
            better=True,
        ),
        claim("recall@1 of the package", find(ours, "recall_at_1", INT8, **mean)),
        claim("recall@1 that the package keeps", find(ours, "retention.recall_at_1", INT8, **mean), 0.97),
        claim("embed_image, p50, engine, batch 1: times as fast", find(ours, speed, INT8, **image), 4.0),
        claim("embed_text, p50, engine, batch 1: times as fast", find(ours, speed, INT8, **text), 1.0),
        claim("times smaller", find(ours, "size_ratio", INT8), 8.0),
    ]
    return claims, samples_of([made, ours])


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", measure))
