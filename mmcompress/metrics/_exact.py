"""Rows of quantities that are known exactly: they have no interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmcompress.metrics import Row, Subject


def exact_row(
    subject: Subject,
    metric: str,
    value: float | None,
    unit: str,
    *,
    conditions: Mapping[str, Any] | None = None,
    higher_is_better: bool = False,
    reference: str = "",
    reason: str = "",
) -> Row:
    """A row of one subject; without a value it is ``not_runnable_here`` and tells the reason."""
    return Row(
        artifact=subject.artifact,
        name=subject.name,
        role=subject.role,
        stage=subject.stage,
        target=subject.target,
        metric=metric,
        conditions=dict(conditions or {}),
        value=value,
        unit=unit,
        higher_is_better=higher_is_better,
        status="measured" if value is not None else "not_runnable_here",
        reason=reason,
        n=1 if value is not None else 0,
        reference=reference,
    )


def float_package_of(subject: Subject, subjects: Sequence[Subject]) -> Subject | None:
    """The teacher's own FP32 package in the runtime of ``subject``: what its speed-up and its size compare with."""
    return next(
        (s for s in subjects if s.role == "teacher" and s.target == subject.target and s.precision == "fp32"), None
    )
