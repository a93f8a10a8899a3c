"""What distillation is worth on scenes: one student, trained with and without the teacher's weights and outputs, three seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _claims import Claim, claim, find

from mmcompress import runs
from mmcompress.compare import mean_of
from mmcompress.metrics import Row
from mmcompress.report import Report, load_report, read_samples

RECIPE = Path(__file__).parent / "distillation" / "scenes.yaml"
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


def quality(quick: bool, work: Path) -> tuple[Sequence[Claim], Mapping[str, Any]]:
    """Train all arms with every seed (what is built is found) and read the claims off the reports."""
    if quick:
        outcome = runs.run(RECIPE, smoke=True)
        passed = not outcome.failures
        return [Claim("every arm trains on 64 examples", float(passed), "", None, 1.0, True, passed)], {}
    made = runs.run_seeds(RECIPE, SEEDS, store=work / "store", runs=work / "runs")
    reports = [load_report(outcome.folder) for outcome in made]
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
        claim("recall@1 that it keeps", _mean(reports, f"retention.{METRIC}", "distill"), 0.97),
    ]
    claims += [claim(f"recall@1: {what}", _mean(reports, METRIC, arm)) for arm, what in ARMS.items()]
    return claims, {f"seed {seed}": _scores(report) for seed, report in enumerate(reports)}


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
        teacher, alone, own = (
            find(report, METRIC, name, **MEAN).value or 0.0 for name in ("teacher", "no_teacher_random", arm)
        )
        shares.append((own - alone) / (teacher - alone))
    return mean_of(find(reports[0], METRIC, arm, **MEAN), shares, [str(seed) for seed in range(len(shares))])
