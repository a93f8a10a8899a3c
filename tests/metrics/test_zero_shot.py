from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from mmcompress.errors import InputError
from mmcompress.families._class_table import class_embeddings
from mmcompress.metrics.zero_shot import ZeroShot, classify

pytestmark = pytest.mark.unit


def test_prompts_are_normalised_averaged_and_normalised_again() -> None:
    prompts = np.array([[2, 0], [0, 3], [-1, 0], [-5, 0]], dtype=np.float32)
    assert class_embeddings(prompts, 2) == pytest.approx(np.array([[0.5**0.5, 0.5**0.5], [-1, 0]]))


def test_a_tie_between_classes_is_wrong() -> None:
    heads = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    images = np.array([[1, 0], [0, 1], [0, 1]], dtype=np.float32)
    correct, answers = classify(images, heads, np.array([0, 2, 1]))
    assert correct.tolist() == [0, 1, 0]
    assert answers.tolist() == [0, 2, 2]


def _axis(word: str) -> list[float]:
    return [1.0, 0.2] if "cat" in word else [0.1, 1.0]


def test_rows_and_samples(subject: Any, bench: Any, given: Any) -> None:
    asked: list[Sequence[str]] = []

    def prompts(name: str, texts: Sequence[str]) -> np.ndarray:
        asked.append(texts)
        return np.array([_axis(text) for text in texts], dtype=np.float32)

    subjects = [subject("teacher", "teacher"), subject("distill")]
    good = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], dtype=np.float32)
    answers = {("teacher", "embed_image"): good, ("distill", "embed_image"): good[[0, 0, 2, 3]]}
    metric = ZeroShot(templates=("a picture of {}", "my {}"))
    measured = metric.measure(
        subjects, bench(given(answers, {"label": [0, 1, 0, 1]}, prompts), 4, classes=["cat", "dog"])
    )
    assert asked[0] == ["a picture of cat", "my cat", "a picture of dog", "my dog"]
    values = {(row.name, row.metric): row.value for row in measured.rows}
    assert values == {
        ("teacher", "zero_shot_top1"): 1.0,
        ("distill", "zero_shot_top1"): 0.75,
        ("distill", "retention.zero_shot_top1"): 0.75,
        ("distill", "drop.zero_shot_top1"): 0.25,
    }
    assert measured.samples["zero_shot_top1/distill"][1] == {"id": "e1", "score": 0.0, "answer": "cat"}
    assert {row.metric for row in measured.rows} == metric.gives()


def test_data_without_classes_are_refused(subject: Any, bench: Any, given: Any) -> None:
    with pytest.raises(InputError, match="label"):
        ZeroShot().measure([subject("teacher", "teacher")], bench(given({}, {}), 4))


@pytest.mark.parametrize("templates", [(), ("no place",), ("{} and {}",)])
def test_templates_need_one_place(templates: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError):
        ZeroShot(templates=templates)
