"""Structured pruning: what it keeps, the time that it gives back, and whether the times it chooses by are right.

    python benchmarks/pruning.py WORK --out benchmarks/results/pruning.json    (four to six hours on two cores when nothing is built)

WORK gets the recipes and a store, so that a second call goes on where the first ended. ``--only train`` and ``--only time``
run one half: the trainings do not mind other processes, the times need a quiet machine. ``--quick`` drives every recipe on
a few examples and times a smaller tower.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import _pruning_times as pruning_times
from _claims import Claim, claim, find, main, only

from mmcompress import runs
from mmcompress.report import Report, load_report

TEACHER = Path(__file__).parents[1] / "recipes" / "scenes_teacher"
PACKAGE, SPEED, QUALITY = "onnxruntime fp32", "speedup.latency_ms_p50", "retention.recall_at_1"
SEEDS = (0, 1, 2)
CUTS = (0.75, 0.55, 0.4, 0.25, 0.15)
IMPORTANCES = ("taylor", "magnitude", "random")
GOALS = {"macs": (0.7, 0.5, 0.35), "parameters": (0.7, 0.5, 0.35), "speedup": (1.3, 1.8, 2.5)}
RECIPE = """\
version: 1
name: {name}
seed: {seed}
teacher: {{clip: {{path: {teacher}}}}}
data:
  train: {{scenes: {{split: train, size: {train}, twins: 1, omit: 0.3}}}}
  validation: {{scenes: {{split: validation, size: 1000, twins: 1, omit: 0.3, unseen: 0.5}}}}
  test: {{scenes: {{split: test, size: 20000, twins: 1, omit: 0.3}}}}
stages:
  - prune:
      goal: {goal}
      parts: {parts}
      importance: {importance}
      steps: {steps}
      recover: {{losses: [feature_mse], steps: {training}, batch_size: 256, learning_rate: 1e-3, teacher_outputs: cached}}
quantize: {{precision: fp32}}
targets: [onnxruntime]
measure:
  threads: 2
  metrics:
    - recall_at_k: {{k: [1], gallery_size: 1000}}
    - latency
    - macs
    - parameters
"""


def recipe(work: Path, name: str, goal: str, importance: str, seed: int, *, long: bool) -> Path:
    """Write one pruning of the scenes teacher; the long ones come to the goal in three steps."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"{name}.yaml"
    path.write_text(
        RECIPE.format(
            name=name,
            seed=seed,
            teacher=TEACHER,
            train=60000 if long else 30000,
            goal=goal,
            parts="[heads, feed_forward, layers]" if long else "[heads, feed_forward]",
            importance=importance,
            steps=3 if long else 1,
            training=1500 if long else 250,
        )
    )
    return path


def train(quick: bool, work: Path) -> dict[str, Report]:
    """Build and measure every recipe (what is built is found); by name."""
    wanted = {
        f"four-times-{seed}": recipe(work, f"four-times-{seed}", "{macs: 0.25}", "taylor", seed, long=True)
        for seed in SEEDS
    }
    for importance in IMPORTANCES:
        for cut in CUTS:
            name = f"{importance}-{cut}"
            wanted[name] = recipe(work, name, f"{{macs: {cut}}}", importance, 0, long=False)
    for goal, values in GOALS.items():
        on = ", on: onnxruntime, threads: 2" if goal == "speedup" else ""
        for value in values:
            name = f"by-{goal}-{value}"
            wanted[name] = recipe(work, name, f"{{{goal}: {value}{on}}}", "taylor", 0, long=False)
    if quick:
        wanted = {name: wanted[name] for name in ("four-times-0", "taylor-0.4")}
    reports = {}
    for name, path in wanted.items():
        outcome = runs.run(path, store=work / "store", runs=work / "runs", smoke=quick)
        if outcome.failures:
            raise RuntimeError(f"{name}: {outcome.failures}")
        print(json.dumps({"recipe": name, "folder": str(outcome.folder)}), flush=True)
        if not quick:
            reports[name] = load_report(outcome.folder)
    return reports


def trained_claims(reports: Mapping[str, Report]) -> list[Claim]:
    """What four times fewer MACs keep and give, the curves, and what a goal of time gains over the others."""
    mean: dict[str, Any] = {"direction": "mean"}
    engine: dict[str, Any] = {"request": "embed_image", "batch": 1, "scope": "engine"}
    claims = []
    for seed in SEEDS:
        report = reports[f"four-times-{seed}"]
        claims.append(
            claim(f"4 times fewer MACs, seed {seed}: recall@1 kept", find(report, QUALITY, PACKAGE, **mean), 0.99)
        )
        claims.append(_gained(report, seed, find(report, SPEED, PACKAGE, **engine)))
    for name, report in reports.items():
        if not name.startswith("four-times"):
            claims.append(claim(f"{name}: recall@1 kept", find(report, QUALITY, PACKAGE, **mean)))
            claims.append(claim(f"{name}: times as fast", find(report, SPEED, PACKAGE, **engine)))
    for cut in CUTS:
        kept = {i: find(reports[f"{i}-{cut}"], QUALITY, PACKAGE, **mean) for i in IMPORTANCES}
        taylor, chance = kept["taylor"], kept["random"]
        above = None
        if taylor.ci95 and chance.ci95:
            above = taylor.ci95[0] > chance.ci95[1] if taylor.ci95[0] > chance.ci95[1] else None
            above = False if taylor.ci95[1] < chance.ci95[0] else above
        gap = (taylor.value or 0) - (chance.value or 0)
        claims.append(Claim(f"at {cut} of the MACs: Taylor above random", gap, "", None, 0.0, True, above))
    return [*claims, *_by_goal(reports, mean, engine)]


def _gained(report: Report, seed: int, speed: Any) -> Claim:
    """Times as fast over times fewer MACs, of the whole model's picture tower."""
    whole, cut = (find(report, "macs", name, part="vision_model").value for name in ("teacher", "prune"))
    if not whole or not cut:
        raise LookupError(f"{report.title}: the products of teacher and pruned model are not known")
    macs = whole / cut
    ends = tuple(end / macs for end in speed.ci95) if speed.ci95 else None
    holds = None if ends is None else True if ends[0] >= 0.65 else False if ends[1] < 0.65 else None
    return Claim(
        f"4 times fewer MACs, seed {seed}: time gained over MACs saved", speed.value / macs, "", ends, 0.65, True, holds
    )


def _by_goal(reports: Mapping[str, Report], mean: dict[str, Any], engine: dict[str, Any]) -> list[Claim]:
    """At the quality of each cut by time: times as fast, over what the other goals' curves give at that quality."""
    curves = {
        goal: sorted(
            (
                find(reports[f"by-{goal}-{v}"], QUALITY, PACKAGE, **mean).value,
                find(reports[f"by-{goal}-{v}"], SPEED, PACKAGE, **engine).value,
            )
            for v in values
        )
        for goal, values in GOALS.items()
    }
    claims = []
    for other in ("macs", "parameters"):
        ratios = [speed / _interpolated(curves[other], quality) for quality, speed in curves["speedup"]]
        worst = min(ratios)
        claims.append(
            Claim(
                f"cut by time against cut by {other}, at equal quality: times as fast",
                worst,
                "",
                None,
                1.0,
                True,
                worst >= 1,
            )
        )
    return claims


def _interpolated(curve: Sequence[tuple[float, float]], quality: float) -> float:
    import numpy as np

    return float(np.interp(quality, [point[0] for point in curve], [point[1] for point in curve]))


def timed_claims(quick: bool, work: Path) -> tuple[list[Claim], dict[str, Any]]:
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


def measure(quick: bool, work: Path) -> tuple[Sequence[Claim], Mapping[str, Any]]:
    """Both halves, or the one that was asked for."""
    work = work.resolve()
    claims: list[Claim] = []
    samples: dict[str, Any] = {}
    if "time" in ONLY or not ONLY:
        claims, samples = timed_claims(quick, work)
    if "train" in ONLY or not ONLY:
        reports = train(quick, work / ("quick" if quick else "recipes"))
        claims += [Claim("the recipes run", 1.0, "", None, 1.0, True, True)] if quick else trained_claims(reports)
        samples["curves"] = [asdict(item) for item in claims]
    return claims, samples


ONLY: list[str] = []

if __name__ == "__main__":
    ONLY.extend(only())
    sys.exit(main(__doc__ or "", measure, paths=("work",)))
