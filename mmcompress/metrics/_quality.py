"""Rows of quality metrics: scores per example to values, retention and drop, each with a paired interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmcompress.metrics import Row, Scores, Subject
from mmcompress.metrics._statistics import Estimate, bootstrap_means, drop_estimate, mean_estimate, ratio_estimate

TIE = 1e-6
"""Cosines of float32 embeddings that are nearer than this are equal up to rounding."""


@dataclass(frozen=True)
class Column:
    """One score per example, 0 to 1, of every subject."""

    metric: str
    conditions: Mapping[str, Any] = field(default_factory=dict)
    derived: bool = True
    """Whether retention and drop are told too: of one column per metric, so that a demand means one row."""


def teacher_of(subjects: Sequence[Subject]) -> Subject | None:
    """The teacher as the user had it, in torch; what retention and drop are relative to."""
    return next((item for item in subjects if item.role == "teacher" and item.target == "torch"), None)


def derived_names(metrics: Sequence[str]) -> frozenset[str]:
    """Names of the rows that come of quality metrics."""
    return frozenset(prefix + name for name in metrics for prefix in ("", "retention.", "drop."))


def quality_rows(
    subjects: Sequence[Subject],
    columns: Sequence[Column],
    scores: Mapping[str, Scores],
    seed: int,
    note: str = "",
) -> list[Row]:
    """Rows of all subjects; ``scores`` holds [n, c] by subject name, over the same examples in the same order."""
    width = len(columns)
    means = bootstrap_means(np.hstack([scores[subject.name] for subject in subjects]), seed)
    replicates = {subject.name: means[:, index * width : (index + 1) * width] for index, subject in enumerate(subjects)}
    teacher = teacher_of(subjects)
    rows = []
    for subject in subjects:
        for index, column in enumerate(columns):
            own, own_means = scores[subject.name][:, index], replicates[subject.name][:, index]
            sample_name = f"{column.metric}/{subject.name}"
            estimate = mean_estimate(own, own_means, (0.0, 1.0))
            rows.append(_row(subject, column, column.metric, estimate, samples=sample_name, reason=note))
            if teacher is None or subject is teacher or not column.derived:
                continue
            base, base_means = scores[teacher.name][:, index], replicates[teacher.name][:, index]
            retention = ratio_estimate(own, base, (own_means, base_means))
            rows += [
                _row(
                    subject,
                    column,
                    f"retention.{column.metric}",
                    retention,
                    reference=teacher.name,
                    samples=sample_name,
                    reason=note if retention else f"{teacher.name} scores too near zero for a ratio",
                ),
                _row(
                    subject,
                    column,
                    f"drop.{column.metric}",
                    drop_estimate(base, own, (base_means, own_means)),
                    reference=teacher.name,
                    samples=sample_name,
                    reason=note,
                ),
            ]
    return rows


def absent_rows(subjects: Sequence[Subject], columns: Sequence[Column], n: int, reason: str) -> list[Row]:
    """Rows without a value, for test data that are too few."""
    return [
        Row(
            **_who(subject),
            metric=column.metric,
            conditions={"split": "test", **column.conditions},
            value=None,
            unit="ratio",
            higher_is_better=True,
            status="too_few_samples",
            reason=reason,
            n=n,
        )
        for subject in subjects
        for column in columns
    ]


def _row(
    subject: Subject,
    column: Column,
    metric: str,
    estimate: Estimate | None,
    *,
    samples: str,
    reason: str,
    reference: str = "",
) -> Row:
    return Row(
        **_who(subject),
        metric=metric,
        conditions={"split": "test", **column.conditions},
        value=estimate.value if estimate else None,
        unit="ratio",
        higher_is_better=not metric.startswith("drop."),
        status="measured" if estimate else "too_few_samples",
        reason=reason,
        n=estimate.n if estimate else 0,
        ci95=estimate.ci95 if estimate else None,
        one_sided95=estimate.one_sided95 if estimate else None,
        interval_of="example" if estimate else None,
        reference=reference,
        samples=samples,
    )


def _who(subject: Subject) -> dict[str, Any]:
    return {
        "artifact": subject.artifact,
        "name": subject.name,
        "role": subject.role,
        "stage": subject.stage,
        "target": subject.target,
    }
