"""Classification: accuracy, precision, recall and F1, per class and averaged as scikit-learn averages them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from mmcompress.errors import InputError
from mmcompress.metrics import Bench, Measured, Subject
from mmcompress.metrics._classes import ClassSpace, class_space
from mmcompress.metrics._confusion import AVERAGES, PER_CLASS, averages, confusion, matches, per_class
from mmcompress.metrics._quality import Quality, Statistic, derived_names, statistic_rows

Whole = NDArray[np.int64]


class Accuracy(Quality):
    """The share of examples whose class is right, with precision, recall and F1: macro, weighted and of each class.

    Classes of the data are those of the model by name. Averages are scikit-learn's: over the classes that occur among
    what is true and what is predicted, and a class that is never predicted has a precision of 0. Where an example has
    several classes (``labels``) a score above 0 says that one applies; accuracy is then the share of examples with
    exactly the right ones, averages go over all classes, and ``f1_micro`` is over all decisions.

    ``majority``, among the conditions of accuracy, is what the most frequent answer scores: what a model has that knows
    nothing.
    """

    request: str = "classify"
    """Whose answers are judged: a request that answers with scores of classes."""
    column: Literal["label", "labels"] | None = None
    """Where the truth stands; None takes the one of both that the data have."""
    per_class: int = Field(32, ge=0)
    """Rows of each class where there are at most this many classes."""

    def needs(self) -> frozenset[str]:
        """The request."""
        return frozenset({self.request})

    def gives(self) -> frozenset[str]:
        """``accuracy`` and the averages with retention and drop; ``precision``, ``recall`` and ``f1`` of each class."""
        return derived_names(["accuracy", *AVERAGES]) | frozenset(PER_CLASS)

    def judge(self, subjects: Sequence[Subject], bench: Bench) -> Measured:
        """Judge every answer, and compare with the teacher on the same examples.

        Raises:
            InputError: no column with the truth, or classes that are not the model's.
        """
        assert bench.test is not None
        column = self._column(bench.test.columns)
        truth = [(value,) if column == "label" else tuple(value) for value in bench.answers.values(column)]
        space = class_space(bench.test.classes(), {item.name: bench.answers.classes(item) for item in subjects}, truth)
        true = matches(truth, len(space.names))
        parts, samples = {}, {}
        for subject in subjects:
            said = _decide(bench.answers(subject, self.request), space, subject, several=column == "labels")
            found = matches(said, len(space.names))
            parts[subject.name] = confusion(true, found)
            samples[f"accuracy/{subject.name}"] = _samples(bench.test.ids, truth, said, space)
        statistics = self._statistics(truth, space, several=column == "labels")
        rows = statistic_rows(subjects, statistics, parts, bench.seed)
        return Measured(rows, samples)

    def _column(self, columns: frozenset[str]) -> str:
        found = [name for name in ("label", "labels") if name in columns and self.column in (None, name)]
        if len(found) != 1:
            wanted = self.column or "label or labels"
            problem = "have label and labels; name one in `column`" if found else f"have no column {wanted}"
            raise InputError(f"accuracy compares classes, and the test data {problem}")
        return found[0]

    def _statistics(self, truth: Sequence[tuple[int, ...]], space: ClassSpace, *, several: bool) -> list[Statistic]:
        about = {"request": self.request}
        most = Counter(truth).most_common(1)[0][1] / len(truth)
        accuracy = Statistic("accuracy", {**about, "majority": round(most, 4)}, of=lambda means: means[..., 0])
        found = [accuracy, *averages(len(space.names), about, several=several)]
        if len(space.names) <= self.per_class:
            present = sorted({index for classes in truth for index in classes})
            found += [item for index in present for item in per_class(index, space.names, about)]
        return found


def _decide(scores: NDArray[Any], space: ClassSpace, subject: Subject, *, several: bool) -> list[tuple[int, ...]]:
    """The classes that the model gives each example, as indices of the common space."""
    places = space.places[subject.name]
    if scores.ndim != 2 or scores.shape[1] != len(places):
        raise InputError(f"{subject.name}: answers {list(scores.shape)} are no scores of its {len(places)} classes")
    if several:
        return [tuple(sorted({int(places[index]) for index in np.flatnonzero(row > 0)})) for row in scores]
    return [(int(index),) for index in places[scores.argmax(axis=1)]]


def _samples(
    ids: Sequence[str], truth: Sequence[tuple[int, ...]], said: Sequence[tuple[int, ...]], space: ClassSpace
) -> list[dict[str, Any]]:
    def name(classes: tuple[int, ...]) -> str:
        return ", ".join(space.names[index] for index in classes)

    return [
        {"id": example, "score": float(set(true) == set(answer)), "answer": name(answer), "true": name(true)}
        for example, true, answer in zip(ids, truth, said, strict=True)
    ]
