"""Structured pruning: what it keeps, the time that it gives back, and whether the times it chooses by are right.

    python benchmarks/pruning.py DATA WORK --only scenes --out benchmarks/results/pruning.json

DATA holds a folder ``emoji``, beside a folder ``teachers`` with ``emoji-clip``. WORK gets the recipes and a store: what is built
there is found by a second call. The parts, all measured without ``--only``, and the time of each on two cores:

- ``time``: times by the table against the clock, on the shapes of ViT-B/32 (half an hour)
- ``scenes``: the scenes teacher at a quarter of its multiply-accumulates, three seeds (an hour)
- ``curve``: quality over time of 35 cuts, by importance and by the goal's term (an hour)
- ``drawings``: a quarter of the multiply-accumulates of a teacher of emoji, in three cuts (a quarter of an hour)

All of them time graphs in the end and need a quiet machine for that; trainings do not. ``--quick`` shows that everything runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import _pruning_times as pruning_times
from _claims import Claim, claim, find, main_of_parts, samples_of
from _pruning_curve import curve
from _recipes import reports as reports_of
from _recipes import smoke
from clip_emoji import places

from mmcompress.metrics import Row
from mmcompress.report import Report

RECIPES = Path(__file__).parent / "pruning"
SEEDS = 3
PACKAGE, SPEED, METRIC = "onnxruntime fp32", "speedup.latency_ms_p50", "recall_at_1"
MEAN: dict[str, Any] = {"direction": "mean"}
ENGINE: dict[str, Any] = {"request": "embed_image", "batch": 1, "scope": "engine"}
Found = tuple[list[Claim], dict[str, Any]]


def scenes(quick: bool, data: Path, work: Path) -> Found:
    """What a quarter of the MACs keep and give back, seed by seed."""
    recipe = RECIPES / "four_times.yaml"
    if quick:
        return smoke(recipe), {}
    reports = reports_of(recipe, work, SEEDS)
    claims = []
    for seed, report in enumerate(reports):
        claims += _kept_and_gained(report, f"a quarter of the MACs, seed {seed}", "prune 2", kept=0.99, gained=0.65)
    return claims, samples_of(reports)


def drawings(quick: bool, data: Path, work: Path) -> Found:
    """A quarter of the MACs of a teacher of drawings and their names, as it comes out."""
    recipe = RECIPES / "emoji.yaml"
    overrides = places(data.resolve().parent / "teachers" / "emoji-clip", data.resolve() / "emoji")
    if quick:
        return smoke(recipe, overrides), {}
    (report,) = reports_of(recipe, work, 1, overrides)
    claims = []
    for metric in (METRIC, "recall_at_5"):
        shown = metric.replace("_at_", "@")
        claims += [
            claim(f"emoji, {shown}: {what}", find(report, metric, name, **MEAN))
            for name, what in (("teacher", "the teacher"), (PACKAGE, "a quarter of the MACs"))
        ]
    return [*claims, *_kept_and_gained(report, "emoji, a quarter of the MACs", "prune")], samples_of([report])


def _kept_and_gained(
    report: Report, what: str, cut: str, kept: float | None = None, gained: float | None = None
) -> Sequence[Claim]:
    """The share of recall@1 that the package keeps, times as fast, and that over the MACs saved in the picture tower."""
    whole, left = (find(report, "macs", name, part="vision_model").value for name in ("teacher", cut))
    if not whole or not left:
        raise LookupError(f"{report.title}: the products of teacher and pruned model are not known")
    fast = find(report, SPEED, PACKAGE, **ENGINE)
    share = claim(f"{what}: times as fast over times fewer MACs", _over(fast, whole / left), gained)
    return [
        claim(f"{what}: recall@1 kept", find(report, f"retention.{METRIC}", PACKAGE, **MEAN), kept),
        Claim(f"{what}: times fewer MACs, picture tower", whole / left, "ratio", None, None, True, None),
        claim(f"{what}: times as fast", fast),
        share,
    ]


def _over(row: Row, by: float) -> Row:
    """A row with its value and intervals divided by a number that is known exactly."""

    def divided(ends: tuple[float, float] | None) -> tuple[float, float] | None:
        return None if ends is None else (ends[0] / by, ends[1] / by)

    assert row.value is not None
    return replace(row, value=row.value / by, ci95=divided(row.ci95), one_sided95=divided(row.one_sided95))


def times(quick: bool, data: Path, work: Path) -> Found:
    """Predicted against measured times, and how long tracing and cutting take."""
    folder = work / ("times-quick" if quick else "times")
    found = pruning_times.predictions(folder, quick, 2 if quick else 10)
    worst = max(item.error for item in found)
    seconds = pruning_times.graph_and_cut_seconds(folder, quick)
    claims = [
        Claim("predicted against measured time, the worst structure", worst, "", None, 0.10, False, worst <= 0.10),
        Claim("seconds of dependency graph and cut", seconds, "s", None, 60.0, False, seconds <= 60),
    ]
    return claims, {"predictions": [asdict(item) for item in found]}


PARTS: dict[str, Callable[[bool, Path, Path], Found]] = {
    "time": times,
    "scenes": scenes,
    "curve": lambda quick, data, work: curve(quick, work),
    "drawings": drawings,
}


if __name__ == "__main__":
    sys.exit(main_of_parts(__doc__ or "", PARTS))
