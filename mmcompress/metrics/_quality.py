"""Rows of quality metrics: scores per example to values, retention and drop, each with a paired interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from pydantic import Field

from mmcompress.errors import InputError
from mmcompress.metrics import Bench, Measured, Metric, Row, Scores, Subject
from mmcompress.metrics._damage import Damage
from mmcompress.metrics._statistics import (
    Estimate,
    Floats,
    Hits,
    bootstrap_means,
    drop_estimate,
    quantity_estimate,
    ratio_estimate,
)
from mmcompress.metrics._views import damaged, large_slices, part_of

TIE = 1e-6
"""Cosines of float32 embeddings that are nearer than this are equal up to rounding."""


class Quality(Metric):
    """Base of the metrics that judge answers: of all test examples, by slice, under damage, with inputs missing.

    A metric inherits from it and writes :meth:`judge` instead of ``measure``, as if there were one bench only::

        class ExactMatch(Quality):
            def needs(self) -> frozenset[str]:
                return frozenset({"answer"})

            def gives(self) -> frozenset[str]:
                return derived_names(["exact_match"])

            def judge(self, subjects: Sequence[Subject], bench: Bench) -> Measured:
                wanted = bench.answers.values("texts")
                scores, samples = {}, {}  # [n, 1] and one record per example, by subject
                for subject in subjects:
                    said = bench.answers.texts(subject, "answer")
                    hits = [float(text in texts) for text, texts in zip(said, wanted, strict=True)]
                    scores[subject.name] = np.array(hits)[:, None]
                    samples[f"exact_match/{subject.name}"] = [{"id": ..., "score": ..., "answer": ...}, ...]
                return Measured(quality_rows(subjects, [Column("exact_match")], scores, bench.seed), samples)

    What is no mean of scores (F1, an error rate, a root) is a :class:`Statistic` and goes to :func:`statistic_rows`.

    It is called once for the whole test split, and again with a bench whose ``test`` and ``answers`` (and what
    ``answers.values`` and ``answers.texts`` give) are those of a slice, or of damaged inputs. What its rows are about
    (``subset``, ``damage``, ``masked``) is added to their conditions here; a demand that names none of these means the
    row without them. It reads ``bench.test`` and ``bench.answers`` and keeps nothing between calls.
    """

    slices: tuple[str, ...] = ()
    """Columns of the test data: a row for the examples of each value, ``subset: <column>=<value>``."""
    slice_least: int = Field(30, ge=1)
    """Examples that a value needs for a row."""
    damage: tuple[Damage, ...] = ()
    """Stated damage to the inputs, each on its own: ``[{noise: 0.1}, {blur: 0.02}, {dark: 0.5}, {missing: image}]``."""
    masked: bool = True
    """Whether each input that may be missing is left out in turn."""

    def judge(self, subjects: Sequence[Subject], bench: Bench) -> Measured:
        """Rows and samples of all subjects on one bench."""
        raise NotImplementedError

    def columns(self) -> frozenset[str]:
        """The slices."""
        return frozenset(self.slices)

    def damages(self, subjects: Sequence[Subject]) -> dict[Damage, dict[str, str]]:
        """What the inputs suffer, with the condition that says so."""
        requests = [request for request in subjects[0].family.requests if request.name in self.needs()]
        optional = sorted({name for request in requests for name in request.optional}) if self.masked else []
        masks = {Damage(missing=name): {"masked": name} for name in optional}
        return {**{damage: {"damage": str(damage)} for damage in self.damage}, **masks}

    def measure(self, subjects: Sequence[Subject], bench: Bench) -> Measured:
        """Judge the whole test split, then each slice, then each damage; see :meth:`judge`.

        Raises:
            InputError: a slice that the data lack, or damage that touches nothing of what the requests take.
        """
        whole = self.judge(subjects, bench)
        rows, samples = list(whole.rows), dict(whole.samples)
        for subset, members, note in large_slices(bench, self.slices, self.slice_least):
            found = self.judge(subjects, part_of(bench, members)).rows if members else _emptied(whole.rows, note)
            rows += [
                replace(row, samples="", reason=row.reason or note, conditions={**row.conditions, "subset": subset})
                for row in _of_all_classes(found)
            ]
        for damage, condition in self.damages(subjects).items():
            if not any(bench.answers.touches(damage, subjects[0], request) for request in self.needs()):
                raise InputError(
                    f"{self.component_name()}: the damage `{damage}` touches none of the inputs of "
                    f"{', '.join(sorted(self.needs()))}\n  Leave it out of measure.metrics."
                )
            judged = self.judge(subjects, damaged(bench, damage))
            bench.answers.release(damage)
            ((key, value),) = condition.items()
            suffix = f" [{value}]" if key == "damage" else f" [without {value}]"
            rows += [
                replace(row, samples=row.samples and row.samples + suffix, conditions={**row.conditions, **condition})
                for row in _of_all_classes(judged.rows)
            ]
            samples |= {name + suffix: records for name, records in judged.samples.items()}
        return Measured(rows, samples)


def _of_all_classes(rows: Sequence[Row]) -> list[Row]:
    """Without the rows of single classes, which would be too many beside each slice and damage."""
    return [row for row in rows if "class" not in row.conditions]


def _emptied(rows: Sequence[Row], reason: str) -> list[Row]:
    return [
        replace(
            row,
            value=None,
            status="too_few_samples",
            reason=reason,
            n=0,
            ci95=None,
            one_sided95=None,
            interval_of=None,
        )
        for row in rows
    ]


@dataclass(frozen=True)
class Column:
    """One score per example, 0 to 1, of every subject; the quantity is its mean."""

    metric: str
    conditions: Mapping[str, Any] = field(default_factory=dict)
    derived: bool = True
    """Whether retention and drop are told too: of one column per metric, so that a demand means one row."""


@dataclass(frozen=True)
class Statistic(Column):
    """A quantity that follows from means over the examples, and need be no mean itself: F1, a rate, a root.

    Its interval comes from computing it anew for every resample of the examples.
    """

    of: Callable[[Floats], Floats] = lambda means: means[..., 0]
    """Means of the parts [..., k] to the quantity [...]."""
    samples: str = ""
    """The samples that it is made of; those of its own name where this is empty."""
    unit: str = "ratio"
    higher_is_better: bool = True
    bounds: tuple[float, float] = (0.0, 1.0)
    span: float = 1.0
    """What one example can change at most, were it all; 0 where nothing bounds it."""


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
    statistics = [
        Statistic(column.metric, column.conditions, column.derived, of=partial(_column, index=index))
        for index, column in enumerate(columns)
    ]
    return statistic_rows(subjects, statistics, scores, seed, note)


def _column(means: Floats, index: int) -> Floats:
    return means[..., index]


def statistic_rows(
    subjects: Sequence[Subject],
    statistics: Sequence[Statistic],
    parts: Mapping[str, Floats | Hits],
    seed: int,
    note: str = "",
) -> list[Row]:
    """Rows of all subjects, one per statistic, with retention and drop of those that are derived.

    ``parts`` are what the statistics are computed from, [n, k] by subject name, over the same examples in the same order.
    """
    teacher = teacher_of(subjects)
    quantities: dict[str, tuple[list[float], list[Floats]]] = {}
    for subject in subjects:
        # The same seed gives every subject the same resamples: what stands side by side is paired.
        own, means = parts[subject.name], bootstrap_means(parts[subject.name], seed)
        point = own.means() if isinstance(own, Hits) else own.mean(axis=0)
        values = [float(statistic.of(point)) for statistic in statistics]
        quantities[subject.name] = values, [statistic.of(means) for statistic in statistics]
    rows = []
    for subject in subjects:
        values, replicates = quantities[subject.name]
        for index, statistic in enumerate(statistics):
            n = len(parts[subject.name])
            value = quantity_estimate(values[index], n, replicates[index], statistic.span, statistic.bounds)
            rows.append(_row(subject, statistic, statistic.metric, value, reason=note))
            if teacher is None or subject is teacher or not statistic.derived:
                continue
            base = quantities[teacher.name]
            pair = ((values[index], base[0][index]), (replicates[index], base[1][index]))
            rows += _derived_rows(subject, statistic, teacher, n, *pair, note)
    return rows


def _derived_rows(
    subject: Subject,
    statistic: Statistic,
    teacher: Subject,
    n: int,
    values: tuple[float, float],
    replicates: tuple[Floats, Floats],
    note: str,
) -> list[Row]:
    """What is kept of the teacher's quantity, and what is lost of it; of errors, how much they grew.

    Where less is better, retention is the teacher's error over the subject's, so that 1 is the same there too.
    """
    worse = (values[::-1], replicates[::-1])
    kept = (values, replicates) if statistic.higher_is_better else worse
    lost = worse if statistic.higher_is_better else (values, replicates)
    width = statistic.bounds[1] - statistic.bounds[0]
    retention = ratio_estimate(kept[0], n, kept[1], statistic.span)
    drop = drop_estimate(lost[0], n, lost[1], statistic.span, (-width, width))
    near_zero = f"{teacher.name if statistic.higher_is_better else subject.name} scores too near zero for a ratio"
    return [
        _row(
            subject,
            replace(statistic, unit="ratio", higher_is_better=True),
            f"retention.{statistic.metric}",
            retention,
            reference=teacher.name,
            reason=note if retention else near_zero,
        ),
        _row(
            subject,
            replace(statistic, higher_is_better=False),
            f"drop.{statistic.metric}",
            drop,
            reference=teacher.name,
            reason=note,
        ),
    ]


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
    subject: Subject, statistic: Statistic, metric: str, estimate: Estimate | None, *, reason: str, reference: str = ""
) -> Row:
    return Row(
        **_who(subject),
        metric=metric,
        conditions={"split": "test", **statistic.conditions},
        value=estimate.value if estimate else None,
        unit=statistic.unit,
        higher_is_better=statistic.higher_is_better,
        status="measured" if estimate else "too_few_samples",
        reason=reason,
        n=estimate.n if estimate else 0,
        ci95=estimate.ci95 if estimate else None,
        one_sided95=estimate.one_sided95 if estimate else None,
        interval_of="example" if estimate else None,
        reference=reference,
        samples=f"{statistic.samples or statistic.metric}/{subject.name}",
    )


def _who(subject: Subject) -> dict[str, Any]:
    return {
        "artifact": subject.artifact,
        "name": subject.name,
        "role": subject.role,
        "stage": subject.stage,
        "target": subject.target,
    }
