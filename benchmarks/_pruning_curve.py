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
from _claims import Claim, verdict
from _recipes import movable, smoke, write

from mmcompress import runs
from mmcompress.metrics._statistics import Floats, bootstrap_means, drop_estimate, ratio_estimate, student_interval
from mmcompress.pipeline import Planner
from mmcompress.recipe import load_recipe
from mmcompress.report import Report, load_report, read_samples
from mmcompress.runtimes.onnxruntime import OnnxRuntime
from mmcompress.stages._block_times import compiled, open_compiled
from mmcompress.stages._timing_rounds import Timed, time_in_turn
from mmcompress.store import Store

BASE = Path(__file__).parent / "pruning" / "curve.yaml"
IMPORTANCES = ("taylor", "magnitude", "random")
SHARES = (0.75, 0.55, 0.4, 0.25, 0.15)
SPEEDUPS = (1.3, 1.8, 2.4, 3.0, 4.0)
WEIGHED = {"samples": 2048, "batch_size": 256}
RECOVER = {"losses": ["feature_mse"], "steps": 250, "batch_size": 256, "learning_rate": 1e-3}
ORDER = "random order"
AGAINST = {"random": 0.0, ORDER: None}
"""What Taylor is compared with, and the goal: cuts by no data at all, and those that differ in the order of groups alone."""
SEEDS = 3
"""Of the cuts by an importance at shares of the MACs, whose qualities are compared; the others have one."""
THREADS, PROCESSES, ROUNDS = 2, 8, 24
GRAPH = "vision_model"
METRIC = "recall_at_1"


@dataclass(frozen=True)
class Cut:
    """What decides a cut: an importance, and a goal in one of the terms of ``prune``."""

    importance: str
    term: str
    value: float
    layers: bool = False
    """Whether whole layers may go beside heads and feed-forward units."""
    measured: bool = False
    """Whether an importance without data is ranked by measured sensitivity and reconstructed, as one by data is."""

    @property
    def series(self) -> str:
        """The cuts that differ in the goal's value alone."""
        return f"{self.importance}_{'measured_' * self.measured}{self.term}{'_or_layers' * self.layers}"

    @property
    def name(self) -> str:
        """``taylor_macs_40``; ``taylor_speedup_or_layers_250`` for 2.5 times as fast."""
        return f"{self.series}_{round(100 * self.value)}"

    def stage(self) -> dict[str, Any]:
        """The stage of a recipe: the picture tower is what is cut and timed, the text tower stays as it is."""
        goal: dict[str, Any] = {self.term: self.value}
        if self.term == "speedup":
            goal |= {"on": "onnxruntime", "threads": THREADS}
        parts = ["heads", "feed_forward", *(["layers"] if self.layers else [])]
        rest = {"towers": {"text": 1.0}, "importance": self.importance, **WEIGHED, "recover": RECOVER}
        by_data = self.importance == "taylor" or self.measured
        measured = {"ranking": "measured", "reconstruct": True} if by_data else {}
        return {"prune": {"goal": goal, "parts": parts, **rest, **measured}}


CUTS = (
    *(Cut(importance, "macs", share) for importance in IMPORTANCES for share in SHARES),
    *(Cut("random", "macs", share, measured=True) for share in SHARES),
    *(Cut("taylor", term, share, layers=True) for term in ("macs", "parameters") for share in SHARES),
    *(Cut("taylor", "speedup", times, layers=True) for times in SPEEDUPS),
)


QUICK = (CUTS[0], CUTS[-1])
SEVERAL = tuple(cut for cut in CUTS if cut.importance in IMPORTANCES and cut.term == "macs" and not cut.layers)
"""The cuts that are made with every seed."""


def recipe(work: Path, cuts: Sequence[Cut] = CUTS, seed: int = 0) -> Path:
    """Write the recipe of cuts with a seed."""
    baselines = {cut.name: [cut.stage()] for cut in cuts}
    return write({**movable(BASE), "seed": seed, "baselines": baselines}, work / f"curve-{seed}.yaml")


def curve(quick: bool, work: Path) -> tuple[list[Claim], dict[str, Any]]:
    """Build every cut (what is built is found), judge them together, time them together."""
    if quick:
        return smoke(recipe(work / "quick", QUICK)), {}
    store = Store(work / "store")
    paths = [recipe(work, CUTS if seed == 0 else SEVERAL, seed) for seed in range(SEEDS)]
    judged = Judged([load_report(runs.run(path, store=store.root, runs=work / "runs").folder) for path in paths])
    planner = Planner(load_recipe(paths[0]), store)
    models = {model.name: (model.family, planner.get(model.step).folder) for model in planner.plan().models}
    seconds = _times(models, work / "curve-times")
    teacher = seconds["teacher"]
    claims = []
    for cut in CUTS:
        claims += [judged.kept(cut), _fast(cut, teacher, seconds[cut.name])]
    for share in SHARES:
        taylor = Cut("taylor", "macs", share)
        for other, goal in AGAINST.items():
            chance = Cut("random", "macs", share, measured=other == ORDER)
            name = f"at {share} of the MACs, paired, points: Taylor above {other}"
            claims.append(judged.above(name, taylor, chance, goal))
    curves = {
        term: Curve.of([c for c in CUTS if c.series == f"taylor_{term}_or_layers"], judged, seconds)
        for term in ("speedup", "macs", "parameters")
    }
    for other in ("macs", "parameters"):
        claims += compared(curves["speedup"], curves[other], other)
    return claims, {"curve_ms": seconds, "curve_recall_at_1": judged.by_seed(["teacher", *(cut.name for cut in CUTS)])}


# --- quality over seeds --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """Scores of the same test examples in the reports of several seeds, the first of which holds every cut."""

    reports: Sequence[Report]

    def scores(self, *names: str) -> Floats:
        """Of each example, its mean score over the seeds that have all of these models, [n, names]."""
        found = [
            [[record["score"] for record in read_samples(report, f"{METRIC}/{name}")] for name in names]
            for report in self.reports
            if _has(report, names)
        ]
        mean: Floats = np.mean(found, axis=0).T
        return mean

    def by_seed(self, names: Sequence[str]) -> dict[str, list[float]]:
        """The mean score of each model, seed by seed."""
        own = {name: [Judged([report]) for report in self.reports if _has(report, [name])] for name in names}
        return {name: [float(one.scores(name).mean()) for one in found] for name, found in own.items()}

    def kept(self, cut: Cut) -> Claim:
        """The share of the teacher's recall@1 that a cut keeps; the interval is of test examples."""
        values, drawn, n = self._two(cut.name, "teacher")
        found = ratio_estimate(values, n, drawn)
        assert found is not None
        return Claim(f"{cut.name}: recall@1 kept", found.value, "ratio", found.ci95, None, True, None)

    def above(self, name: str, cut: Cut, other: Cut, goal: float | None) -> Claim:
        """How much more recall@1 a cut has than another."""
        values, drawn, n = self._two(cut.name, other.name)
        found = drop_estimate(values, n, drawn)
        holds = verdict(found.one_sided95, goal, higher_is_better=True)
        return Claim(name, found.value, "", found.ci95, goal, True, holds)

    def _two(self, *names: str) -> tuple[tuple[float, float], tuple[Floats, Floats], int]:
        scores = self.scores(*names)
        first, second = scores.mean(axis=0)
        drawn = bootstrap_means(scores, 0)
        return (float(first), float(second)), (drawn[:, 0], drawn[:, 1]), len(scores)


def _has(report: Report, names: Sequence[str]) -> bool:
    return all(f"{METRIC}/{name}" in report.samples for name in names)


# --- one curve against another -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """Cuts in the order of their speed, with resamplings over examples and processes that all curves share."""

    names: tuple[str, ...]
    quality: Floats
    """[c]; ``qualities`` [r, c] are its resamplings."""
    qualities: Floats
    speed: Floats
    """Times as fast as the teacher, [c]; ``speeds`` [r, c] likewise."""
    speeds: Floats

    @classmethod
    def of(cls, cuts: Sequence[Cut], judged: Judged, seconds: Mapping[str, Sequence[float]]) -> Curve:
        """The curve of some cuts: mean scores of the test examples, mean speeds of the processes."""
        scores = judged.scores(*(cut.name for cut in cuts))
        speeds = np.array([np.divide(seconds["teacher"], seconds[cut.name]) for cut in cuts]).T
        order = np.argsort(speeds.mean(axis=0))
        return cls(
            tuple(cuts[index].name for index in order),
            scores.mean(axis=0)[order],
            bootstrap_means(scores, 0)[:, order],
            speeds.mean(axis=0)[order],
            bootstrap_means(speeds, 1)[:, order],
        )


def compared(ours: Curve, other: Curve, term: str) -> list[Claim]:
    """At each of our cuts: their time over ours at our quality, and our quality above theirs at our time."""
    claims = []
    drawn = list(zip(ours.qualities, ours.speeds, other.qualities, other.speeds, strict=True))
    for index, name in enumerate(ours.names):

        def faster(q: Floats, s: Floats, their_q: Floats, their_s: Floats, index: int = index) -> float:
            return speed_at(q, s, q[index]) / speed_at(their_q, their_s, q[index])

        def above(q: Floats, s: Floats, their_q: Floats, their_s: Floats, index: int = index) -> float:
            order = np.argsort(their_s)
            return float(q[index] - np.interp(s[index], their_s[order], their_q[order]))

        measured = (ours.quality, ours.speed, other.quality, other.speed)
        if ours.quality[index] >= other.quality.min():
            told = f"at the quality of {name}: times as fast as by {term}"
            claims.append(_estimated(told, faster(*measured), [faster(*one) for one in drawn], 1.0))
        if ours.speed[index] <= other.speed.max():
            told = f"at the time of {name}: points of recall@1 above cuts by {term}"
            claims.append(_estimated(told, above(*measured), [above(*one) for one in drawn], 0.0))
    return claims


def speed_at(quality: Floats, speed: Floats, wanted: float) -> float:
    """The greatest speed at which a curve, straight between its points, still has a quality; its best point's if nowhere.

    Args:
        quality: Of the points, [c].
        speed: Likewise; in any order.
        wanted: The quality.
    """
    order = np.argsort(speed)
    quality, speed = quality[order], speed[order]
    if quality.max() < wanted:
        return float(speed[int(quality.argmax())])
    last = int(np.flatnonzero(quality >= wanted)[-1])
    if last == len(speed) - 1:
        return float(speed[last])
    fall = (quality[last] - wanted) / (quality[last] - quality[last + 1])
    return float(speed[last] + fall * (speed[last + 1] - speed[last]))


def _estimated(name: str, value: float, drawn: Sequence[float], goal: float) -> Claim:
    low, worst, best, high = (float(np.quantile(drawn, share)) for share in (0.025, 0.05, 0.95, 0.975))
    return Claim(name, value, "", (low, high), goal, True, verdict((worst, best), goal, higher_is_better=True))


# --- time ----------------------------------------------------------------------------------------------------------


def _fast(cut: Cut, teacher: Sequence[float], own: Sequence[float]) -> Claim:
    """Times as fast as the teacher, by processes."""
    ratios = np.divide(teacher, own)
    ci95 = student_interval(ratios, 0.025)
    return Claim(f"{cut.name}: times as fast", float(ratios.mean()), "ratio", ci95, None, True, None)


def _times(models: Mapping[str, tuple[Any, Path]], work: Path) -> dict[str, list[float]]:
    """Milliseconds of each model's picture graph, one number per process; in a process all take turns."""
    shutil.rmtree(work, ignore_errors=True)
    for name, (family, folder) in models.items():
        feeds = compiled(family, folder, OnnxRuntime(), 1, work / name)[GRAPH]
        np.savez(work / name / "feeds.npz", allow_pickle=False, **feeds)
    found: dict[str, list[float]] = {name: [] for name in models}
    for number in range(PROCESSES):
        command = [sys.executable, __file__, str(work), str(number)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        for name, ms in json.loads(done.stdout).items():
            found[name].append(ms)
    return found


def _in_turn(work: Path, seed: int) -> dict[str, float]:
    runtime = OnnxRuntime()
    sides: list[Timed] = []
    for place in sorted(work.iterdir()):
        with np.load(place / "feeds.npz", allow_pickle=False) as stored:
            feeds = dict(stored)
        sides += open_compiled(place.name, place, {GRAPH: feeds}, runtime, THREADS)
    return {name: ms for (name, _), ms in time_in_turn(sides, ROUNDS, seed).items()}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_in_turn(Path(sys.argv[1]), int(sys.argv[2]))))
