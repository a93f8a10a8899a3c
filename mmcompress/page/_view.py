"""What the sections of the report's page share: the models in their order, the first quality, numbers as people read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mmcompress._report_rows import Column, Model, as_text, cell, choose, columns, models
from mmcompress._report_text import number, title
from mmcompress.errors import InputError
from mmcompress.metrics import Row
from mmcompress.page._html import Html, tag
from mmcompress.page._svg import SHAPES, mark

if TYPE_CHECKING:
    from mmcompress.report import Report

POSITIVE = ("latency_ms_", "speedup", "throughput")
"""Quantities above zero, whose interval says nothing once it is wider than the value itself."""


@dataclass(frozen=True)
class Side:
    """A model of the report, with the colour and the mark that it has in every drawing."""

    model: Model
    colour: int
    label: str

    @property
    def role(self) -> str:
        """``teacher``, ``baseline``, ``student`` or ``package``."""
        return self.model.rows[0].role

    @property
    def target(self) -> str:
        """``torch`` or a runtime."""
        return self.model.rows[0].target

    @property
    def shape(self) -> str:
        """Of its mark: packages of the teacher are hollow."""
        return "hollow" if self.role == "teacher" and self.target != "torch" else SHAPES[self.role]


@dataclass
class View:
    """A report as the page's sections read it."""

    report: Report
    problems: list[str] = field(default_factory=list)
    """What could not be shown, and why."""
    read: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Samples that were read already."""

    @cached_property
    def sides(self) -> list[Side]:
        """All models: teacher, its packages, baselines, students, packages."""
        found = models(self.report.rows)
        names = [model.name for model in found]
        return [
            Side(model, index, model.name if names.count(model.name) == 1 else f"{model.name} ({model.rows[0].target})")
            for index, model in enumerate(found)
        ]

    @cached_property
    def columns(self) -> list[Column]:
        """The quantities that stand side by side."""
        return columns(self.report.rows)

    @cached_property
    def quality(self) -> list[Column]:
        """Quality as it was measured: the first is the one that drawings show."""
        return [
            column
            for column in self.columns
            if column.quality and not column.metric.startswith(("retention.", "drop.", "difference."))
        ]

    @cached_property
    def teacher(self) -> Side | None:
        """The teacher in torch; a teacher's package where there are packages only."""
        teachers = [side for side in self.sides if side.role == "teacher"]
        return next((side for side in teachers if side.target == "torch"), teachers[0] if teachers else None)

    @cached_property
    def packages(self) -> list[Side]:
        """The recipe's packages."""
        return [side for side in self.sides if side.role == "package"]

    @cached_property
    def chain(self) -> list[Side]:
        """What the stages made of the teacher, in their order: teacher, students."""
        students = [side for side in self.sides if side.role == "student"]
        return [*([self.teacher] if self.teacher else []), *students]

    @cached_property
    def compared(self) -> list[Side]:
        """Teacher, packages and the teacher's own packages; everything where there is no package."""
        if not self.packages:
            return self.sides
        teachers = [side for side in self.sides if side.role == "teacher"]
        first = [side for side in teachers if side is self.teacher]
        return [*first, *self.packages, *(side for side in teachers if side is not self.teacher)]

    def samples(self, name: str) -> list[dict[str, Any]]:
        """Raw samples; none, and a note on the page, where their file is missing or was changed."""
        from mmcompress.report import read_samples

        if name and name not in self.read:
            try:
                self.read[name] = read_samples(self.report, name)
            except InputError as error:
                self.problems.append(f"not drawn: samples {name}: {error}")
                self.read[name] = []
        return self.read.get(name, [])


def measured(row: Row | None) -> float | None:
    """A row's value, where it has one that was measured, or one process gave."""
    return None if row is None or row.status == "not_runnable_here" else row.value


def row_of(side: Side, column: Column) -> Row | None:
    """A model's row of a quantity."""
    return cell(side.model, column)


def about(side: Side, metric: str, key: str) -> Mapping[str, Row]:
    """A model's rows of one metric that are about a part (``subset``, ``damage``, ``masked``, ``class``), by the part."""
    rows = [row for row in side.model.rows if row.metric == metric and row.conditions.get(key) is not None]
    parts = dict.fromkeys(as_text(row.conditions[key]) for row in rows)
    found = {part: choose(rows, {key: part}, None) for part in parts}
    return {part: some[0] for part, some in found.items() if some}


def value_text(row: Row | None) -> str:
    """A row's value with its unit."""
    if row is None or row.value is None:
        return "-" if row is None else "not measured"
    return number(row.metric, row.value, row.unit)


def interval_text(row: Row | None) -> str:
    """``± 0.8`` behind a value; empty where there is none."""
    if row is None or row.value is None or row.ci95 is None:
        return ""
    half = max(row.value - row.ci95[0], row.ci95[1] - row.value)
    if row.metric.startswith(POSITIVE) and half > abs(row.value):
        return "± > 100 %"
    return f"± {number(row.metric, half, row.unit, like=row.value).partition(' ')[0]}"


def metric_title(metric: str, *, higher_is_better: bool | None = None) -> str:
    """A metric for people, with which way is better."""
    words = title(metric)
    if higher_is_better is None:
        return words
    return f"{words} ({'higher' if higher_is_better else 'lower'} is better)"


def axis_text(metric: str, unit: str) -> Callable[[float], str]:
    """How values of a metric are written on an axis."""
    if unit == "ratio" and not metric.startswith(("speedup", "size_ratio")):
        return lambda value: f"{value * 100:.4g} %"
    if unit == "ratio":
        return lambda value: f"{value:g}x"
    if unit in ("byte", "bytes", "B", "", "1", "count", "parameters", "macs", "MACs"):
        return lambda value: _prefixed(value, "B" if unit in ("byte", "bytes", "B") else "")
    return lambda value: f"{value:.4g} {unit}"


def _prefixed(value: float, unit: str) -> str:
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.4g} {prefix}{unit}"
    return f"{value:.4g} {unit}".rstrip()


def legend(sides: Sequence[Side]) -> Html:
    """The marks of models, with their names."""
    items = [
        tag("li", tag("svg", mark(side.shape, 6, 6, side.colour), viewBox="0 0 12 12", aria_hidden="true"), side.label)
        for side in sides
    ]
    return tag("ul", *items, class_="legend")
