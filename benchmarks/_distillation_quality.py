"""What distillation is worth on scenes and on drawings: one student, with and without the teacher's weights and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _claims import Claim, claim, find
from _recipes import reports as reports_of
from _recipes import smoke
from clip_emoji import places

from mmcompress.compare import mean_of
from mmcompress.metrics import Row
from mmcompress.report import Report, read_samples

RECIPES = Path(__file__).parent / "distillation"
SEEDS = 3
ARMS = {
    "distill": "the teacher's weights, three terms",
    "random": "random weights, three terms",
    "no_teacher": "the teacher's weights, no outputs",
    "no_teacher_random": "random weights, no outputs",
    "feature_mse": "the teacher's weights, feature_mse alone",
    "icl": "the teacher's weights, icl alone",
    "contrastive_kl": "the teacher's weights, contrastive_kl alone",
}
METRIC, MEAN = "recall_at_1", {"direction": "mean"}
DRAWINGS = (METRIC, "recall_at_5", "mrr")


def quality(quick: bool, data: Path, work: Path) -> tuple[Sequence[Claim], Mapping[str, Any]]:
    """Train all arms on scenes with every seed (what is built is found) and read the claims off the reports."""
    if quick:
        return smoke(RECIPES / "scenes.yaml"), {}
    reports = reports_of(RECIPES / "scenes.yaml", work, SEEDS)
    share = _parameters(reports[0], "distill") / _parameters(reports[0], "teacher")
    claims = [
        claim("recall@1 of the teacher", find(reports[0], METRIC, "teacher", **MEAN), 0.80),
        Claim("the student's share of the teacher's parameters", share, "ratio", None, 0.25, False, share <= 0.25),
        claim(
            "no teacher, random weights: points below the teacher",
            _mean(reports, f"drop.{METRIC}", "no_teacher_random"),
            0.05,
            better=True,
        ),
        claim("share of that gap that distilling from random weights recovers", _recovered(reports, "random"), 0.80),
        claim("share that the whole way recovers, with the teacher's weights", _recovered(reports, "distill"), 0.80),
        claim("recall@1 that the former keeps", _mean(reports, f"retention.{METRIC}", "random"), 0.97),
        claim("recall@1 that the latter keeps", _mean(reports, f"retention.{METRIC}", "distill"), 0.97),
    ]
    claims += [claim(f"recall@1: {what}", _mean(reports, METRIC, arm)) for arm, what in ARMS.items()]
    return claims, {f"scenes, seed {seed}": _scores(report) for seed, report in enumerate(reports)}


def drawings(quick: bool, data: Path, work: Path) -> tuple[Sequence[Claim], Mapping[str, Any]]:
    """The same arms on drawings of a style that training never saw, one seed, as they come out: intervals are over pairs."""
    recipe, teacher = RECIPES / "emoji.yaml", data.resolve().parent / "teachers" / "emoji-clip"
    overrides = places(teacher, data.resolve() / "emoji")
    if quick:
        return smoke(recipe, overrides), {}
    (report,) = reports_of(recipe, work, 1, overrides)
    trained = {row.name for row in report.rows}
    arms = {arm: what for arm, what in ARMS.items() if arm in trained}
    claims = []
    for metric in DRAWINGS:
        shown = metric.replace("_at_", "@")
        claims.append(claim(f"{shown}: the teacher", find(report, metric, "teacher", **MEAN)))
        claims += [claim(f"{shown}: {what}", find(report, metric, arm, **MEAN)) for arm, what in arms.items()]
    claims += [
        claim(f"recall@1 below the teacher, paired, points: {what}", find(report, f"drop.{METRIC}", arm, **MEAN))
        for arm, what in arms.items()
    ]
    return claims, {"emoji": _scores(report)}


def _scores(report: Report) -> dict[str, str]:
    """The score of each test pair by model, in the order of the pairs: the digits 0, 1, 2 for no, one or both ways right."""
    return {
        name.partition("/")[2]: "".join(str(round(2 * record["score"])) for record in read_samples(report, name))
        for name in report.samples
        if name.startswith(f"{METRIC}/")
    }


def _parameters(report: Report, name: str) -> float:
    row = find(report, "parameters", name, part="total")
    assert row.value is not None
    return row.value


def _mean(reports: Sequence[Report], metric: str, name: str) -> Row:
    """The mean over seeds, with Student's t interval."""
    rows = [find(report, metric, name, **MEAN) for report in reports]
    return mean_of(rows[0], [row.value for row in rows if row.value is not None], [row.artifact for row in rows])


def _recovered(reports: Sequence[Report], arm: str) -> Row:
    """(student - student without a teacher) / (teacher - student without a teacher), seed by seed."""
    shares = []
    for report in reports:
        names = ("teacher", arm, "no_teacher_random")
        teacher, own, alone = (find(report, METRIC, name, **MEAN).value or 0.0 for name in names)
        shares.append((own - alone) / (teacher - alone))
    return mean_of(find(reports[0], METRIC, arm, **MEAN), shares, [str(seed) for seed in range(len(shares))])
