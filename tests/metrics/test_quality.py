"""What every quality metric has: slices, damage, inputs left out; and what a demand then means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from test_accuracy import NAMES, Scores, one_hot

from mmcompress._report_rows import choose, columns
from mmcompress.errors import InputError
from mmcompress.gate import Demand, judge
from mmcompress.metrics._damage import Damage
from mmcompress.metrics.accuracy import Accuracy

pytestmark = pytest.mark.unit

TRUE = [0, 1, 2, 0, 1, 2]
KINDS = ["day", "day", "day", "day", "night", None]


class Damaged(Scores):
    """Under damage every answer is the first class."""

    released: tuple[Damage, ...] = ()

    def __call__(self, subject: Any, request: str, damage: Damage | None = None) -> np.ndarray:
        found = super().__call__(subject, request)
        return found if damage is None else one_hot([0] * len(found), 3)

    def touches(self, damage: Damage, subject: Any, request: str) -> bool:
        return damage.blur is None

    def release(self, damage: Damage) -> None:
        self.released += (damage,)


def measured(subject: Any, bench: Any, optional: Sequence[str] = (), **fields: Any) -> tuple[Any, Damaged]:
    subjects = [subject("teacher", "teacher"), subject("onnxruntime int8", "package", "onnxruntime")]
    subjects[0].family.__dict__["optional"] = tuple(optional)
    scores = {"teacher": one_hot(TRUE, 3), "onnxruntime int8": one_hot([0, 1, 2, 1, 1, 2], 3)}
    answers = Damaged(scores, dict.fromkeys(scores, NAMES), label=TRUE, kind=KINDS)
    given = bench(answers, len(TRUE), classes=NAMES)
    given.test.columns = frozenset(answers.columns)
    metric = Accuracy(per_class=3, **fields)
    return metric.measure(subjects, given), answers


def rows_at(found: Any, name: str, metric: str, **conditions: Any) -> list[Any]:
    rows = [row for row in found.rows if row.name == name and row.metric == metric]
    return [row for row in rows if all(row.conditions.get(key) == value for key, value in conditions.items())]


def test_slices_by_hand(subject: Any, bench: Any) -> None:
    found, _ = measured(subject, bench, slices=("kind",), slice_least=1)
    by_kind = {row.conditions.get("subset"): row for row in rows_at(found, "onnxruntime int8", "accuracy")}
    assert list(by_kind) == [None, "kind=day", "kind=night", "kind=none"]
    assert by_kind["kind=day"].value == 0.75
    assert by_kind["kind=day"].n == 4
    assert by_kind["kind=day"].conditions["majority"] == 0.5
    (drop,) = rows_at(found, "onnxruntime int8", "drop.accuracy", subset="kind=day")
    assert drop.value == 0.25
    assert drop.reference == "teacher"
    assert not rows_at(found, "teacher", "f1", subset="kind=day")
    assert rows_at(found, "teacher", "f1", **{"class": "cat"})


def test_small_slices_are_told(subject: Any, bench: Any) -> None:
    found, _ = measured(subject, bench, slices=("kind",), slice_least=2)
    (row,) = [row for row in rows_at(found, "teacher", "accuracy") if "subset" in row.conditions]
    assert row.reason == "of 3 values of kind 2 have fewer than 2 examples, and no row"
    none, _ = measured(subject, bench, slices=("kind",), slice_least=30)
    (row,) = [row for row in rows_at(none, "teacher", "accuracy") if "subset" in row.conditions]
    assert (row.value, row.status, row.conditions["subset"]) == (None, "too_few_samples", "kind")


def test_the_classes_of_labels_are_slices_by_name(subject: Any, bench: Any) -> None:
    found, _ = measured(subject, bench, slices=("label",), slice_least=1)
    assert rows_at(found, "onnxruntime int8", "accuracy", subset="label=cat")[0].value == 0.5


def test_damage_and_missing_inputs_stand_beside_the_whole(subject: Any, bench: Any) -> None:
    noise = Damage(noise=0.1)
    found, answers = measured(subject, bench, optional=["image", "table"], damage=(noise,))
    assert rows_at(found, "onnxruntime int8", "accuracy", damage="noise 0.1")[0].value == pytest.approx(1 / 3)
    assert rows_at(found, "onnxruntime int8", "drop.accuracy", damage="noise 0.1")[0].value == 0.0
    assert {row.conditions.get("masked") for row in rows_at(found, "teacher", "accuracy")} == {None, "image", "table"}
    assert answers.released == (noise, Damage(missing="image"), Damage(missing="table"))
    assert {row.samples for row in found.rows} == set(found.samples)
    assert found.samples["accuracy/teacher [noise 0.1]"][1]["answer"] == "cat"
    unmasked, _ = measured(subject, bench, optional=["image"], masked=False)
    assert not [row for row in unmasked.rows if "masked" in row.conditions]


def test_damage_that_touches_nothing_is_refused(subject: Any, bench: Any) -> None:
    with pytest.raises(InputError, match=r"`blur 0\.1` touches none of the inputs of classify"):
        measured(subject, bench, damage=(Damage(blur=0.1),))


def test_a_demand_means_the_whole_unless_it_says_otherwise(subject: Any, bench: Any) -> None:
    fields = {"slices": ("kind",), "slice_least": 1, "damage": (Damage(noise=0.1),)}
    found, _ = measured(subject, bench, optional=["image"], **fields)
    rows = [row for row in found.rows if row.name == "onnxruntime int8" and row.metric == "accuracy"]
    (whole,) = choose(rows, {}, "classify")
    assert whole.value == pytest.approx(5 / 6)
    for conditions, value in (
        ({"subset": "kind=day"}, 0.75),
        ({"damage": "noise 0.1"}, 1 / 3),
        ({"masked": "image"}, 1 / 3),
    ):
        (row,) = choose(rows, conditions, "classify")
        assert row.value == pytest.approx(value)
    (verdict,) = judge([Demand("accuracy", "accuracy", "onnxruntime", 0.1)], found.rows, "classify")
    assert verdict.value == pytest.approx(5 / 6)
    shown = [column.metric for column in columns(found.rows)]
    assert shown.count("accuracy") == 1
    assert "f1" not in shown  # of single classes alone
