from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmcompress._vqa import accuracy, normalise, soft_score
from mmcompress.errors import InputError
from mmcompress.metrics.vqa_accuracy import VqaAccuracy

pytestmark = pytest.mark.unit

OFFICIAL = json.loads((Path(__file__).parent / "vqa_official.json").read_text("utf-8"))
"""Answers made by hand, with what the official ``vqaEval.py`` (commit a013f00) makes of them and says they score."""


@pytest.mark.parametrize("case", OFFICIAL, ids=lambda case: repr(case["answer"]))
def test_equals_the_official_evaluation(case: dict[str, Any]) -> None:
    assert normalise(case["answer"]) == case["normalised"]
    assert accuracy(case["answer"], case["annotators"]) == pytest.approx(case["accuracy"], abs=1e-9)


def test_leaves_each_annotator_out_once() -> None:
    # Two of ten agree: left out themselves one is left (1/3), twice; otherwise both (2/3), eight times.
    assert accuracy("no", ["yes"] * 8 + ["no"] * 2) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    assert accuracy("no", ["yes"] * 7 + ["no"] * 3) == pytest.approx((3 * 2 / 3 + 7 * 1) / 10)
    assert [soft_score(count) for count in (0, 1, 3, 9)] == pytest.approx([0, 1 / 3, 1, 1])


class Texts:
    """Answers as texts: what a bench gives, whether a model chose or wrote them."""

    def __init__(self, texts: dict[str, list[str]], answers: list[tuple[str, ...]]) -> None:
        self._texts, self._answers = texts, answers

    def texts(self, subject: Any, request: str) -> list[str]:
        assert request == "answer"
        return self._texts[subject.name]

    def values(self, name: str) -> list[tuple[str, ...]]:
        assert name == "answers"
        return self._answers


def test_rows_and_samples(subject: Any, bench: Any) -> None:
    said = [("yes",) * 10, ("2",) * 8 + ("3",) * 2]
    given = Texts({"teacher": ["yes", "two"], "distill": ["no", "three"]}, said)
    metric = VqaAccuracy()
    measured = metric.measure([subject("teacher", "teacher"), subject("distill")], bench(given, 2))
    values = {(row.name, row.metric): row.value for row in measured.rows}
    assert values["teacher", "vqa_accuracy"] == 1.0
    assert values["distill", "vqa_accuracy"] == pytest.approx(0.3)
    assert values["distill", "retention.vqa_accuracy"] == pytest.approx(0.3)
    assert {row.metric for row in measured.rows} == metric.gives()
    assert measured.samples["vqa_accuracy/distill"][1]["answer"] == "three"
    assert not any(row.reason for row in measured.rows)
    assert np.isclose(measured.samples["vqa_accuracy/distill"][1]["score"], 0.6)


def test_a_question_without_an_answer_is_named(subject: Any, bench: Any) -> None:
    given = Texts({"teacher": ["yes", "two"]}, [("yes",), ()])
    with pytest.raises(InputError, match="e1: a question without an answer"):
        VqaAccuracy().measure([subject("teacher", "teacher")], bench(given, 2))
