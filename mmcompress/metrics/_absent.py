"""Rows of subjects that are made for another machine: everything that was measured of the others, without a value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mmcompress.metrics import Row, Subject


def absent_subjects(rows: Sequence[Row], subjects: Sequence[Subject], absent: Mapping[str, str]) -> list[Row]:
    """Rows without a value for subjects that do not run here: those that another subject has, and why (by name)."""
    counts = Counter(row.name for row in rows)
    if not counts:
        return []
    fullest = counts.most_common(1)[0][0]
    return [
        replace(
            row,
            artifact=subject.artifact,
            name=subject.name,
            role=subject.role,
            stage=subject.stage,
            target=subject.target,
            value=None,
            status="not_runnable_here",
            reason=absent[subject.name],
            n=0,
            ci95=None,
            one_sided95=None,
            interval_of=None,
            samples="",
        )
        for subject in subjects
        if subject.name in absent
        for row in rows
        if row.name == fullest
    ]
