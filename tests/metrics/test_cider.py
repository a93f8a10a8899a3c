"""CIDEr-D against scores that the official code (pycocoevalcap 1.2) gave, and by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_subject

from mmcompress.data import Example
from mmcompress.errors import InputError
from mmcompress.metrics import Bench
from mmcompress.metrics.cider import Cider, Scorer, split

pytestmark = pytest.mark.unit
OFFICIAL = json.loads((Path(__file__).parent / "cider_official.json").read_text())


def test_scores_are_those_of_the_official_code() -> None:
    scorer = Scorer([[text.split() for text in case["references"]] for case in OFFICIAL])
    found = [scorer.score(index, case["caption"].split()) for index, case in enumerate(OFFICIAL)]
    assert found == pytest.approx([case["score"] for case in OFFICIAL], abs=1e-6)
    assert len(found) == 24 and max(found) > 5 and min(found) == 0


def test_one_pair_by_hand() -> None:
    # Two pictures; "a" describes both and so tells nothing, "star" and "a star" tell log 2 each.
    scorer = Scorer([[["a", "star"]], [["a", "ring"]]])
    assert scorer.score(0, ["a", "star"]) == pytest.approx(10 * (1 + 1) / 4)
    # "star" alone: a cosine of 1 for single tokens, no bigram of one expected.
    assert scorer.score(0, ["star"]) == pytest.approx(10 * 1 / 4 * math.exp(-1 / 72))
    assert scorer.score(0, ["ring"]) == scorer.score(0, []) == 0.0


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ("words", ["a", "dog's", "ball", "2"]),
        ("spaces", ["A", "dog's", "ball,", "2!"]),
        ("characters", list("Adog'sball,2!")),
    ],
)
def test_texts_are_split_as_named(tokens: str, expected: list[str]) -> None:
    assert split("A dog's ball, 2!", tokens) == expected


class Captions:
    """Captions of two subjects over three pictures."""

    columns = {"texts": [("a red star",), ("a blue ring", "one ring"), ("two green crosses",)]}  # noqa: RUF012

    def texts(self, subject: Any, request: str) -> list[str]:
        assert request == "caption"
        return ["a red star", "a blue ring", "two green crosses" if subject.name == "teacher" else "a red star"]

    def values(self, name: str) -> Any:
        return self.columns[name]


class Pictures:
    ids = ("a", "b", "c")

    def __init__(self, count: int = 3) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        raise AssertionError("captions alone are read")


def test_rows_compare_with_the_teacher() -> None:
    subjects = [make_subject("teacher", "teacher"), make_subject("student")]
    measured = Cider().measure(subjects, Bench(Pictures(), 1, 0, Captions()))  # type: ignore[arg-type]
    values = {(row.name, row.metric): row.value for row in measured.rows}
    each = {name: [record["score"] for record in measured.samples[f"cider/{name}"]] for name in ("teacher", "student")}
    assert each["student"][:2] == each["teacher"][:2] and each["student"][2] == 0 < each["teacher"][2]
    assert values["teacher", "cider"] == pytest.approx(np.mean(each["teacher"]))
    assert values["student", "drop.cider"] == pytest.approx(each["teacher"][2] / 3)
    assert measured.samples["cider/student"][2]["answer"] == "a red star"


def test_one_picture_has_no_telling_words() -> None:
    with pytest.raises(InputError, match="two test examples"):
        Cider().measure([make_subject("one")], Bench(Pictures(1), 1, 0, Captions()))  # type: ignore[arg-type]
