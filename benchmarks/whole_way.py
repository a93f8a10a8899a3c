"""The quickstart, its teacher and the baselines beside it: what the teacher knows, what the package keeps and costs.

    python benchmarks/whole_way.py --only package --out benchmarks/results/whole_way.json

The parts, both without ``--only``, and the time of each on two cores when nothing is built:

- ``package``: the quickstart (a quarter of an hour)
- ``teacher``: its teacher, made again, and two baselines (an hour)

``--quick`` drives the quickstart on 64 examples: it shows that everything runs, and measures nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from _claims import Claim, claim, find, main, only, samples_of

from mmcompress import runs
from mmcompress.report import load_report

RECIPES = Path(__file__).parents[1] / "recipes"
INT8 = "onnxruntime int8"
MEAN: dict[str, Any] = {"direction": "mean"}


def package() -> tuple[list[Claim], Mapping[str, Any]]:
    """Run the quickstart (what is built is found): what its package keeps and costs."""
    report = load_report(runs.run(RECIPES / "quickstart.yaml").folder)
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


def teacher() -> tuple[list[Claim], Mapping[str, Any]]:
    """Make the teacher again, and what it should be better than."""
    report = load_report(runs.run(RECIPES / "scenes_teacher.yaml").folder)
    lost = "drop.recall_at_1"
    half, small = (find(report, lost, name, **MEAN) for name in ("half_width", "package_size"))
    claims = [
        claim("recall@1 of the teacher", find(report, "recall_at_1", "teacher", **MEAN), 0.80),
        claim("half the teacher's width: points lost", half, 0.02, better=True),
        claim("the package's size, its steps, no teacher: points lost", small, 0.05, better=True),
    ]
    return claims, samples_of([report])


PARTS: dict[str, Callable[[], tuple[list[Claim], Mapping[str, Any]]]] = {"package": package, "teacher": teacher}


def measure(chosen: Sequence[str], quick: bool) -> tuple[Sequence[Claim], Mapping[str, Any]]:
    """The parts that were asked for."""
    if quick:
        outcome = runs.run(RECIPES / "quickstart.yaml", smoke=True)
        passed = 0.0 if outcome.failures else 1.0
        return [Claim("a smoke run of the quickstart finishes", passed, "", None, 1.0, True, passed == 1.0)], {}
    found = [PARTS[name]() for name in chosen or PARTS]
    return [one for claims, _ in found for one in claims], {
        key: raw for _, samples in found for key, raw in samples.items()
    }


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", partial(measure, only())))
