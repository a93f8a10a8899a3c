from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmcompress.errors import InputError
from mmcompress.metrics._confusion import confusion, matches
from mmcompress.metrics._statistics import bootstrap_means
from mmcompress.metrics.accuracy import Accuracy

pytestmark = pytest.mark.unit

OFFICIAL = json.loads((Path(__file__).parent / "scikit_learn.json").read_text("utf-8"))
"""Classes drawn at random with what scikit-learn 1.9.1 makes of them (``zero_division=0``)."""
NAMES = ("cat", "dog", "hen")


class Scores:
    """Scores of classes and the truth: what a bench gives."""

    def __init__(
        self, scores: Mapping[str, Any], classes: Mapping[str, Sequence[str]], **columns: Sequence[Any]
    ) -> None:
        self.scores, self.names, self.columns = scores, classes, columns

    def __call__(self, subject: Any, request: str) -> np.ndarray:
        assert request == "classify"
        return np.asarray(self.scores[subject.name], dtype=np.float32)

    def classes(self, subject: Any) -> Sequence[str]:
        return self.names[subject.name]

    def values(self, name: str) -> Sequence[Any]:
        return self.columns[name]


def one_hot(classes: Sequence[int], c: int) -> np.ndarray:
    return np.eye(c)[list(classes)]


def measured(bench: Any, subjects: Sequence[Any], answers: Scores, names: Sequence[str], **fields: Any) -> Any:
    count = len(next(iter(answers.columns.values())))
    given = bench(answers, count, classes=names)
    given.test.columns = frozenset(answers.columns)
    return Accuracy(**fields).measure(subjects, given)


def values_of(found: Any, name: str) -> dict[str, float]:
    return {row.metric: row.value for row in found.rows if row.name == name and "class" not in row.conditions}


@pytest.mark.parametrize("case", OFFICIAL["one"], ids=range(len(OFFICIAL["one"])))
def test_one_class_per_example_equals_scikit_learn(case: dict[str, Any], subject: Any, bench: Any) -> None:
    names = [f"class {index}" for index in range(case["classes"])]
    answers = Scores({"teacher": one_hot(case["predicted"], len(names))}, {"teacher": names}, label=case["true"])
    found = measured(bench, [subject("teacher", "teacher")], answers, names)
    for metric in ("accuracy", "f1_macro", "f1_weighted", "precision_macro", "recall_macro"):
        assert values_of(found, "teacher")[metric] == pytest.approx(case[metric], abs=1e-12)
    for row in found.rows:
        if "class" in row.conditions:
            assert row.value == pytest.approx(case[row.metric][names.index(row.conditions["class"])], abs=1e-12)
    assert sum("class" in row.conditions for row in found.rows) == 3 * len(set(case["true"]))


@pytest.mark.parametrize("case", OFFICIAL["several"], ids=range(len(OFFICIAL["several"])))
def test_several_classes_per_example_equal_scikit_learn(case: dict[str, Any], subject: Any, bench: Any) -> None:
    names = [f"class {index}" for index in range(case["classes"])]
    scores = np.full((len(case["true"]), len(names)), -0.5)
    for row, predicted in zip(scores, case["predicted"], strict=True):
        row[predicted] = 0.5
    answers = Scores({"teacher": scores}, {"teacher": names}, labels=case["true"])
    found = values_of(measured(bench, [subject("teacher", "teacher")], answers, names), "teacher")
    for metric in ("accuracy", "f1_macro", "f1_weighted", "f1_micro", "precision_macro", "recall_macro"):
        assert found[metric] == pytest.approx(case[metric], abs=1e-12)


def test_f1_by_hand_with_retention_and_drop(subject: Any, bench: Any) -> None:
    true = [0, 0, 0, 1]
    answers = Scores(
        {"teacher": one_hot([0, 0, 0, 1], 3), "distill": one_hot([0, 0, 1, 1], 3)},
        {"teacher": NAMES, "distill": NAMES},
        label=true,
    )
    found = measured(bench, [subject("teacher", "teacher"), subject("distill")], answers, NAMES)
    values = values_of(found, "distill")
    assert values["accuracy"] == 0.75
    assert values["f1_macro"] == pytest.approx((0.8 + 2 / 3) / 2)  # cat: 4 / (2 + 3); dog: 2 / (2 + 1)
    assert values["f1_weighted"] == pytest.approx((3 * 0.8 + 2 / 3) / 4)
    assert values["retention.f1_macro"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert values["drop.accuracy"] == 0.25
    row = next(row for row in found.rows if row.metric == "accuracy")
    assert row.conditions == {"split": "test", "request": "classify", "majority": 0.75}
    assert found.samples["accuracy/distill"][2] == {"id": "e2", "score": 0.0, "answer": "dog", "true": "cat"}
    assert {row.metric for row in found.rows} <= Accuracy().gives()
    assert {row.samples for row in found.rows} == set(found.samples)


def test_resamples_of_classes_are_those_of_scores() -> None:
    rng = np.random.default_rng(0)
    true, said = rng.integers(0, 3, 60), rng.integers(0, 3, 60)
    parts = confusion(matches([(x,) for x in true], 3), matches([(x,) for x in said], 3))
    dense = np.hstack([(true == said)[:, None], *(np.stack([of == c for c in range(3)], 1) for of in (said, true))])
    means = bootstrap_means(parts, seed=2, resamples=20)
    wanted = bootstrap_means(dense.astype(float), seed=2, resamples=20)
    assert means[:, [0, *range(4, 10)]] == pytest.approx(wanted)


def test_classes_are_the_same_where_their_names_are(subject: Any, bench: Any) -> None:
    # The model's classes stand in another order, and it knows one more.
    answers = Scores(
        {"teacher": one_hot([2, 1, 0, 3], 4)}, {"teacher": ("hen", "dog", "cat", "ox")}, label=[0, 1, 2, 2]
    )
    found = measured(bench, [subject("teacher", "teacher")], answers, NAMES)
    assert values_of(found, "teacher")["accuracy"] == 0.75
    assert found.samples["accuracy/teacher"][3]["answer"] == "ox"


def test_classes_without_names_are_told_by_their_index(subject: Any, bench: Any) -> None:
    generic = ("LABEL_0", "LABEL_1", "LABEL_2")
    answers = Scores({"teacher": one_hot([0, 1, 2], 3)}, {"teacher": generic}, label=[0, 1, 1])
    found = measured(bench, [subject("teacher", "teacher")], answers, NAMES)
    assert values_of(found, "teacher")["accuracy"] == pytest.approx(2 / 3)
    assert found.samples["accuracy/teacher"][2]["answer"] == "hen"


@pytest.mark.parametrize(
    ("model", "data", "labels", "message"),
    [
        (("cat", "dogs", "hen"), NAMES, [0, 1, 2], "does not know 1 of the 3 classes .*'dog'.*'dogs'"),
        (("LABEL_0", "LABEL_1"), NAMES, [0, 1, 2], "scores 2 classes without names .* have 3: 'cat'"),
        (NAMES, NAMES, [0, 3], "label 3, and there are 3 classes"),
        (("hen", "cat"), ("cat", "cat", "hen"), [0, 1], "two classes called 'cat'"),
        (("cat", "dog"), ("cat", "dog"), [0, 1], r"\[2, 3\] are no scores of its 2 classes"),
    ],
)
def test_classes_that_do_not_match_are_named(
    model: Sequence[str], data: Sequence[str], labels: list[int], message: str, subject: Any, bench: Any
) -> None:
    answers = Scores({"teacher": np.ones((len(labels), 3))}, {"teacher": model}, label=labels)
    with pytest.raises(InputError, match=message):
        measured(bench, [subject("teacher", "teacher")], answers, data)


def test_data_need_one_column_with_the_truth(subject: Any, bench: Any) -> None:
    both = Scores({"teacher": np.ones((1, 3))}, {"teacher": NAMES}, label=[0], labels=[(0,)])
    with pytest.raises(InputError, match="name one in `column`"):
        measured(bench, [subject("teacher", "teacher")], both, NAMES)
    assert values_of(measured(bench, [subject("teacher", "teacher")], both, NAMES, column="label"), "teacher")
    with pytest.raises(InputError, match="no column label or labels"):
        measured(bench, [subject("teacher", "teacher")], Scores({}, {}, texts=[("a",)]), NAMES)
