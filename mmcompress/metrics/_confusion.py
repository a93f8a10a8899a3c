"""Precision, recall and F1 from what is true and what is predicted, averaged as scikit-learn does.

Definitions: scikit-learn 1.x, ``sklearn.metrics.precision_recall_fscore_support`` with ``zero_division=0``.

Shapes, with n: examples, c: classes. The parts that everything follows from are [n, 1 + 3 c]: whether the example is
right altogether, then per class whether it is found (true and predicted), predicted, and true.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.metrics._quality import Statistic
from mmcompress.metrics._statistics import Floats, Hits

AVERAGES = ("f1_macro", "f1_weighted", "f1_micro", "precision_macro", "recall_macro")
PER_CLASS = ("precision", "recall", "f1")


@dataclass(frozen=True)
class Matches:
    """Which classes each of ``n`` examples has, as pairs of example and class in rising order."""

    n: int
    c: int
    codes: NDArray[np.int64]
    """``example * c + class``, each once."""


def matches(classes: Sequence[tuple[int, ...]], c: int) -> Matches:
    """Classes of each example as :class:`Matches`."""
    codes = [row * c + index for row, own in enumerate(classes) for index in sorted(set(own))]
    return Matches(len(classes), c, np.array(codes, dtype=np.int64))


def confusion(true: Matches, predicted: Matches) -> Hits:
    """The parts of every example: see the head of this file."""
    n, c = true.n, true.c
    found = np.intersect1d(true.codes, predicted.codes, assume_unique=True)
    differ = np.setxor1d(true.codes, predicted.codes, assume_unique=True)
    right = np.setdiff1d(np.arange(n), differ // c)
    groups = (found, predicted.codes, true.codes)
    rows = np.concatenate([right, *(codes // c for codes in groups)])
    columns = [1 + place * c + codes % c for place, codes in enumerate(groups)]
    return Hits(n, 1 + 3 * c, rows, np.concatenate([np.zeros_like(right), *columns]))


def averages(c: int, conditions: Mapping[str, Any], *, several: bool) -> list[Statistic]:
    """Macro and weighted averages; with ``several`` classes per example over all classes, and F1 over all decisions."""
    among = partial(macro, c=c, every=several)
    made: dict[str, Callable[[Floats], Floats]] = {
        "f1_macro": partial(among, what="f1"),
        "f1_weighted": partial(weighted_f1, c=c),
        "precision_macro": partial(among, what="precision"),
        "recall_macro": partial(among, what="recall"),
    }
    if several:  # of one class per example it is the accuracy
        made["f1_micro"] = partial(micro, c=c, what="f1")
    return [Statistic(name, conditions, of=of, samples="accuracy") for name, of in made.items()]


def per_class(index: int, names: Sequence[str], conditions: Mapping[str, Any]) -> list[Statistic]:
    """Precision, recall and F1 of one class."""
    about = {**conditions, "class": names[index]}
    return [
        Statistic(
            what, about, derived=False, of=partial(of_class, c=len(names), index=index, what=what), samples="accuracy"
        )
        for what in PER_CLASS
    ]


def of_class(means: Floats, c: int, index: int, what: str) -> Floats:
    """Precision, recall or F1 (``what``) of one class."""
    return _scores(means, c, what)[..., index]


def macro(means: Floats, c: int, what: str, every: bool = False) -> Floats:
    """The mean over the classes that occur among what is true and what is predicted, or over every class."""
    scores = _scores(means, c, what)
    if every:
        return np.asarray(scores.mean(axis=-1))
    _, predicted, true = _groups(means, c)
    occurs = (predicted + true) > 0
    return _ratio((scores * occurs).sum(axis=-1), occurs.sum(axis=-1).astype(np.float64))


def weighted_f1(means: Floats, c: int) -> Floats:
    """The mean of F1 over the classes, each weighted with how often it is true."""
    true = _groups(means, c)[2]
    return _ratio((_scores(means, c, "f1") * true).sum(axis=-1), true.sum(axis=-1))


def micro(means: Floats, c: int, what: str) -> Floats:
    """Precision, recall or F1 of all classes' decisions together."""
    found, predicted, true = (group.sum(axis=-1) for group in _groups(means, c))
    return _score(found, predicted, true, what)


def _scores(means: Floats, c: int, what: str) -> Floats:
    """Precision, recall or F1 of every class, [..., c]; 0 where nothing was predicted or nothing is true."""
    return _score(*_groups(means, c), what)


def _groups(means: Floats, c: int) -> tuple[Floats, Floats, Floats]:
    found, predicted, true = (means[..., 1 + place * c : 1 + (place + 1) * c] for place in range(3))
    return found, predicted, true


def _score(found: Floats, predicted: Floats, true: Floats, what: str) -> Floats:
    if what == "f1":
        return _ratio(2 * found, predicted + true)
    return _ratio(found, predicted if what == "precision" else true)


def _ratio(above: Floats, below: Floats) -> Floats:
    """Above / below, and 0 where below is."""
    return np.asarray(np.divide(above, below, out=np.zeros_like(below), where=below > 0), dtype=np.float64)
