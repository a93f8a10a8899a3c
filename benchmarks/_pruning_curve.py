"""Quality over time: cuts of the scenes teacher by importance and by what the goal is in, judged and timed side by side.

``python benchmarks/_pruning_curve.py FOLDER SEED`` times the graphs that lie in FOLDER in a process of its own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _claims import Claim, claim, find
from _recipes import movable, smoke, write

from mmcompress import runs
from mmcompress.compare import mean_of
from mmcompress.metrics import Row
from mmcompress.pipeline import Planner
from mmcompress.recipe import load_recipe
from mmcompress.report import Report, load_report, read_samples
from mmcompress.runtimes.onnxruntime import OnnxRuntime
from mmcompress.stages._block_times import opened
from mmcompress.stages._timing_rounds import Timed, time_in_turn
from mmcompress.store import Store

BASE = Path(__file__).parent / "pruning" / "curve.yaml"
IMPORTANCES = ("taylor", "magnitude", "random")
SHARES = (0.75, 0.55, 0.4, 0.25, 0.15)
SPEEDUPS = (1.3, 1.8, 2.4, 3.0, 4.0)
RECOVER = {"losses": ["feature_mse"], "steps": 250, "batch_size": 256, "learning_rate": 1e-3}
THREADS, PROCESSES, ROUNDS = 2, 8, 24
GRAPH = "vision_model"
METRIC, MEAN = "recall_at_1", {"direction": "mean"}


@dataclass(frozen=True)
class Cut:
    """What decides a cut: an importance, and a goal in one of the terms of ``prune``."""

    importance: str
    term: str
    value: float

    @property
    def name(self) -> str:
        """``taylor_macs_40``; ``taylor_speedup_250`` for 2.5 times as fast."""
        return f"{self.importance}_{self.term}_{round(100 * self.value)}"

    def stage(self) -> dict[str, Any]:
        """The stage of a recipe: the picture tower is what is cut and timed, the text tower stays as it is."""
        goal: dict[str, Any] = {self.term: self.value}
        if self.term == "speedup":
            goal |= {"on": "onnxruntime", "threads": THREADS}
        parts = ["heads", "feed_forward", "layers"]
        rest = {"towers": {"text": 1.0}, "importance": self.importance, "recover": RECOVER}
        return {"prune": {"goal": goal, "parts": parts, **rest}}


CUTS = (
    *(Cut(importance, "macs", share) for importance in IMPORTANCES for share in SHARES),
    *(Cut("taylor", "parameters", share) for share in SHARES),
    *(Cut("taylor", "speedup", times) for times in SPEEDUPS),
)


QUICK = (CUTS[0], CUTS[-1])


def recipe(work: Path, cuts: Sequence[Cut] = CUTS) -> Path:
    """Write the recipe of all cuts."""
    return write({**movable(BASE), "baselines": {cut.name: [cut.stage()] for cut in cuts}}, work / "curve.yaml")


def curve(quick: bool, work: Path) -> tuple[list[Claim], dict[str, Any]]:
    """Build every cut (what is built is found), judge them together, time them together."""
    if quick:
        return smoke(recipe(work / "quick", QUICK)), {}
    path = recipe(work)
    store = Store(work / "store")
    report = load_report(runs.run(path, store=store.root, runs=work / "runs").folder)
    planner = Planner(load_recipe(path), store)
    models = {model.name: (model.family, planner.get(model.step).folder) for model in planner.plan().models}
    seconds = _times(models, work / "curve-times")
    teacher = seconds["teacher"]
    fast = {
        cut.name: _mean(report, cut, [t / own for t, own in zip(teacher, seconds[cut.name], strict=True)])
        for cut in CUTS
    }
    kept = {cut.name: find(report, f"retention.{METRIC}", cut.name, **MEAN) for cut in CUTS}
    claims = []
    for cut in CUTS:
        claims += [
            claim(f"{cut.name}: recall@1 kept", kept[cut.name]),
            claim(f"{cut.name}: times as fast", fast[cut.name]),
        ]
    for share in SHARES:
        taylor, chance = (Cut(importance, "macs", share) for importance in ("taylor", "random"))
        above = [a - b for a, b in zip(_scores(report, taylor), _scores(report, chance), strict=True)]
        claims.append(
            claim(
                f"at {share} of the MACs, paired: Taylor above random", _mean(report, taylor, above), 0.0, better=True
            )
        )
    points = {
        term: [
            (kept[c.name].value or 0.0, fast[c.name].value or 0.0)
            for c in CUTS
            if (c.importance, c.term) == ("taylor", term)
        ]
        for term in ("macs", "parameters", "speedup")
    }
    for other in ("macs", "parameters"):
        worst = min(at_equal_quality(points["speedup"], points[other]), default=None)
        claims.append(
            Claim(
                f"by time over by {other}, at equal quality: times as fast, the worst",
                worst,
                "",
                None,
                1.0,
                True,
                None if worst is None else worst >= 1,
            )
        )
    return claims, {"curve_ms": seconds}


def at_equal_quality(ours: Sequence[tuple[float, float]], others: Sequence[tuple[float, float]]) -> list[float]:
    """Our speed over the others' at the quality of each of our cuts, by straight lines between theirs.

    Above their best quality they are taken to be as fast as there, which favours them; below their worst nothing is known.

    Args:
        ours: pairs of quality and speed.
        others: likewise.
    """
    known = sorted(others)
    qualities, speeds = [point[0] for point in known], [point[1] for point in known]
    return [speed / float(np.interp(quality, qualities, speeds)) for quality, speed in ours if quality >= qualities[0]]


def _scores(report: Report, cut: Cut) -> list[float]:
    return [record["score"] for record in read_samples(report, f"{METRIC}/{cut.name}")]


def _mean(report: Report, cut: Cut, values: Sequence[float]) -> Row:
    row = find(report, METRIC, cut.name, **MEAN)
    return mean_of(row, values, [str(number) for number in range(len(values))])


def _times(models: Mapping[str, tuple[Any, Path]], work: Path) -> dict[str, list[float]]:
    """Milliseconds of each model's picture graph, one number per process; in a process all take turns."""
    shutil.rmtree(work, ignore_errors=True)
    for name, (family, folder) in models.items():
        for side in opened(family, folder, name, OnnxRuntime(), THREADS, 1, work / name):
            if side.graph == GRAPH:
                np.savez(work / name / "feeds.npz", allow_pickle=False, **side.feeds)
    found: dict[str, list[float]] = {name: [] for name in models}
    for number in range(PROCESSES):
        command = [sys.executable, __file__, str(work), str(number)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        for name, ms in json.loads(done.stdout).items():
            found[name].append(ms)
    return found


def _in_turn(work: Path, seed: int) -> dict[str, float]:
    runtime = OnnxRuntime()
    sides = []
    for place in sorted(work.iterdir()):
        with np.load(place / "feeds.npz", allow_pickle=False) as stored:
            feeds = dict(stored)
        sides.append(Timed(place.name, GRAPH, runtime.open(place / "compiled", [GRAPH], THREADS), feeds))
    return {name: ms for (name, _), ms in time_in_turn(sides, ROUNDS, seed).items()}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_in_turn(Path(sys.argv[1]), int(sys.argv[2]))))
