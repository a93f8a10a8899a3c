"""Parts of a bench that look like the whole: some of the test examples, or all of them with their inputs damaged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.data._splits import Selected
from mmcompress.metrics import Bench, Subject
from mmcompress.metrics._damage import Damage


class PartAnswers:
    """The answers to some of the test examples, in the order of ``rows``."""

    def __init__(self, whole: Any, rows: Sequence[int]) -> None:
        self.whole = whole
        self.rows = np.asarray(rows, dtype=np.int64)

    def __call__(self, subject: Subject, request: str) -> NDArray[Any]:
        answers: NDArray[Any] = self.whole(subject, request)[self.rows]
        return answers

    def values(self, name: str) -> Sequence[Any]:
        """A column of the part."""
        column = self.whole.values(name)
        return [column[row] for row in self.rows]

    def texts(self, subject: Subject, request: str) -> list[str]:
        """Answers of the part as texts."""
        texts = self.whole.texts(subject, request)
        return [texts[row] for row in self.rows]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)


class DamagedAnswers:
    """Answers to the test examples with their inputs damaged; columns are what the data hold, undamaged."""

    def __init__(self, whole: Any, damage: Damage) -> None:
        self.whole = whole
        self.damage = damage

    def __call__(self, subject: Subject, request: str) -> NDArray[Any]:
        answers: NDArray[Any] = self.whole(subject, request, self.damage)
        return answers

    def texts(self, subject: Subject, request: str) -> list[str]:
        """Answers as texts."""
        texts: list[str] = self.whole.texts(subject, request, self.damage)
        return texts

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)


def part_of(bench: Bench, rows: Sequence[int]) -> Bench:
    """The bench with some of its test examples alone."""
    assert bench.test is not None
    return replace(bench, test=Selected(bench.test, rows), answers=PartAnswers(bench.answers, rows))


def damaged(bench: Bench, damage: Damage) -> Bench:
    """The bench with damaged inputs."""
    return replace(bench, answers=DamagedAnswers(bench.answers, damage))


def slice_rows(bench: Bench, column: str) -> Mapping[str, list[int]]:
    """The examples of each value of a column, by the value as text; ``label`` by the names of its classes."""
    assert bench.test is not None
    classes = bench.test.classes() if column == "label" else ()
    found: dict[str, list[int]] = {}
    for row, value in enumerate(bench.answers.values(column)):
        text = classes[value] if classes else "none" if value is None else str(value)
        found.setdefault(text, []).append(row)
    return dict(sorted(found.items()))


def large_slices(bench: Bench, columns: Sequence[str], least: int) -> Iterator[tuple[str, list[int], str]]:
    """``column=value`` with its examples, for every value that has enough; the last is a note on those that have not.

    Of a column that has none of them it gives the column's name, and no examples.
    """
    for column in columns:
        rows = slice_rows(bench, column)
        small = [value for value, own in rows.items() if len(own) < least]
        note = (
            f"of {len(rows)} values of {column} {len(small)} have fewer than {least} examples, and no row"
            if small
            else ""
        )
        if len(small) == len(rows):
            yield column, [], note
        for value, own in rows.items():
            if len(own) >= least:
                yield f"{column}={value}", own, note
