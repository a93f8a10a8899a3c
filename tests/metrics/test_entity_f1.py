from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_accuracy import Scores

from mmcompress.errors import InputError
from mmcompress.families import PADDING
from mmcompress.metrics.entity_f1 import EntityF1, entities

pytestmark = pytest.mark.unit

OFFICIAL = json.loads((Path(__file__).parent / "seqeval.json").read_text("utf-8"))
"""Tags drawn at random, with their entities and scores by seqeval 1.2.2."""
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


class Tagged(Scores):
    def __call__(self, subject: Any, request: str) -> np.ndarray:
        assert request == "tag"
        return np.asarray(self.scores[subject.name], dtype=np.int32)


def rows_of(tags: Sequence[Sequence[str]], names: Sequence[str] = TAGS) -> list[list[int]]:
    width = max(map(len, tags))
    return [[names.index(tag) for tag in own] + [PADDING] * (width - len(own)) for own in tags]


def measured(bench: Any, subjects: Any, answers: Tagged, names: Sequence[str] = TAGS) -> Any:
    given = bench(answers, len(answers.columns["tags"]))
    given.test.columns = frozenset(answers.columns)
    given.test.tag_classes = lambda: names
    return EntityF1().measure(subjects, given)


@pytest.mark.parametrize("sentence", OFFICIAL["sentences"], ids=lambda one: " ".join(one["true"]))
def test_entities_are_seqevals(sentence: dict[str, Any]) -> None:
    for which in ("true", "predicted"):
        assert entities(sentence[which]) == [tuple(one) for one in sentence[f"{which}_entities"]]


def test_scores_are_seqevals(subject: Any, bench: Any) -> None:
    true = rows_of([one["true"] for one in OFFICIAL["sentences"]])
    said = rows_of([one["predicted"] for one in OFFICIAL["sentences"]])
    tags = [tuple(tag for tag in row if tag != PADDING) for row in true]
    found = measured(bench, [subject("teacher", "teacher")], Tagged({"teacher": said}, {"teacher": TAGS}, tags=tags))
    values = {row.metric: row.value for row in found.rows if "class" not in row.conditions}
    for name in ("precision", "recall", "f1", "f1_macro", "f1_weighted"):
        assert values[f"entity_{name}"] == pytest.approx(OFFICIAL[name], abs=1e-12)
    kinds = {
        row.conditions["class"]: row.value
        for row in found.rows
        if row.metric == "entity_f1" and "class" in row.conditions
    }
    assert np.mean([kinds["PER"], kinds["LOC"]]) == pytest.approx(OFFICIAL["f1_macro"], abs=1e-12)
    assert {row.metric for row in found.rows} <= EntityF1().gives()


def test_by_hand_with_retention_names_in_another_order_and_words_cut_off(subject: Any, bench: Any) -> None:
    true = [("B-PER", "I-PER", "O", "B-LOC"), ("B-LOC",)]
    other = ("I-LOC", "B-LOC", "I-PER", "B-PER", "O")
    answers = Tagged(
        {
            "teacher": rows_of(true),
            # The last word of the first text was not read, and Paris was found.
            "distill": rows_of([("B-PER", "I-PER", "O"), ("B-LOC",)], other),
        },
        {"teacher": TAGS, "distill": other},
        tags=[tuple(TAGS.index(tag) for tag in own) for own in true],
    )
    found = measured(bench, [subject("teacher", "teacher"), subject("distill")], answers)
    values = {row.metric: row.value for row in found.rows if row.name == "distill" and "class" not in row.conditions}
    assert values["entity_precision"] == 1.0
    assert values["entity_recall"] == pytest.approx(2 / 3)
    assert values["entity_f1"] == values["retention.entity_f1"] == pytest.approx(0.8)
    assert found.samples["entity_f1/distill"][0] == {"id": "e0", "score": 0.0, "answer": "B-PER I-PER O O"}


@pytest.mark.parametrize(
    ("tags", "said", "names", "message"),
    [
        ([(0,)], [[0, 0]], TAGS, "e0: 2 tags were answered to 1 words"),
        ([(0, 0)], [[0, 0]], TAGS, "no entity"),
        ([(1,)], [[0]], ("O", "name"), "BIO tags .* there is 'name'"),
    ],
)
def test_what_cannot_be_compared_is_told(
    tags: Any, said: Any, names: Sequence[str], message: str, subject: Any, bench: Any
) -> None:
    tags = [(1,)] if message.startswith("e0") else tags
    with pytest.raises(InputError, match=message):
        measured(
            bench, [subject("teacher", "teacher")], Tagged({"teacher": said}, {"teacher": names}, tags=tags), names
        )
