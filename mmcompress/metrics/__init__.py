"""Metrics: one file each. A metric measures subjects (torch models and packages) on the same examples, paired."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mmcompress.component import Component, Slot
from mmcompress.data import Examples
from mmcompress.families import Family

if TYPE_CHECKING:
    from typing import Self  # not in the Python 3.10 of some devices

Role = Literal["teacher", "baseline", "student", "package"]


@dataclass(frozen=True)
class Subject:
    """Something that is measured: a model folder (in torch) or a package (in its runtime)."""

    artifact: str
    """The artifact's key."""
    name: str
    """For people and for rows: ``teacher``, ``distill``, ``onnxruntime int8``, ..."""
    role: Role
    stage: str
    """The stage that made it, ``teacher`` or ``package``."""
    target: str
    """``torch`` for model folders, otherwise the runtime."""
    family: Family
    folder: Path
    precision: str = "fp32"


@dataclass(frozen=True)
class Row:
    """One measurement, as the report holds it. ``samples`` names a column of the raw samples beside the report."""

    artifact: str
    name: str
    role: Role
    stage: str
    target: str
    metric: str
    conditions: Mapping[str, Any]
    value: float | None
    unit: str
    higher_is_better: bool
    status: Literal["measured", "not_runnable_here", "too_few_samples"] = "measured"
    reason: str = ""
    n: int = 0
    ci95: tuple[float, float] | None = None
    """Two-sided 95 % interval; None for exact quantities."""
    one_sided95: tuple[float, float] | None = None
    """One-sided 95 % bounds below and above: what verdicts are made of."""
    interval_of: Literal["example", "block", "seed"] | None = None
    reference: str = ""
    samples: str = ""


@dataclass(frozen=True)
class Measured:
    """What a metric found of all subjects: rows, and the raw samples behind them by name."""

    rows: Sequence[Row]
    samples: Mapping[str, Sequence[Mapping[str, Any]]]
    """Name (``recall_at_1/<subject>``) to one record per example (id, score, answer) or per call (process, block, side)."""


@dataclass(frozen=True)
class Bench:
    """What metrics measure with: the test split, and answers that are computed once per subject and request."""

    test: Examples | None
    threads: int
    seed: int
    answers: Any
    """``answers(subject, request) -> NDArray`` over the whole test split; kept, so that metrics share them.

    Also ``answers.ask(subject, request, values)`` for other inputs and ``answers.values(name)`` for columns of the test
    examples: see :class:`mmcompress._answers.Answers`.
    """
    progress: Callable[[str, int, int], None] = field(default=lambda message, done, total: None)
    """Called with a message, what is done and how much there is."""


class Metric(Component):
    """Measures every subject under the same conditions."""

    kind: ClassVar[str] = "metrics"

    def fitted(self, offered: frozenset[str]) -> Self:
        """This metric for models that answer ``offered`` requests, with what it chooses by them filled in."""
        return self

    def needs(self) -> frozenset[str]:
        """Requests whose answers it reads; a family without them is refused when the recipe is read."""
        return frozenset()

    def columns(self) -> frozenset[str]:
        """Columns that the test data must have for it, beyond what requests take."""
        return frozenset()

    def gives(self) -> frozenset[str]:
        """Names of the metrics of its rows (``recall_at_1``, ...), for demands."""
        raise NotImplementedError

    def measure(self, subjects: Sequence[Subject], bench: Bench) -> Measured:
        """Measure; rows of ratios to the teacher (``retention.*``, ``speedup.*``) included."""
        raise NotImplementedError


AnyMetric = Annotated[Metric, Slot("metrics")]
Scores = NDArray[np.float64]
