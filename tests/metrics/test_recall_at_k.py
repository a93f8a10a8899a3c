from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest
from conftest import GivenFamily
from pydantic import ValidationError

from mmcompress.data import Example
from mmcompress.errors import InputError
from mmcompress.families import Request
from mmcompress.metrics import Bench
from mmcompress.metrics.recall_at_k import RecallAtK, cosines, positive_galleries, rank_galleries, score_columns

pytestmark = pytest.mark.unit


def test_ranks_and_scores_by_hand() -> None:
    images = np.array([[1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32)
    texts = np.array([[1, 0], [0.8, 0.6], [0.1, 0.9]], dtype=np.float32)
    # similarities: picture 0: 1, .8, .1   picture 1: 0, .6, .9   picture 2: .6, .96, .78
    positives = [np.eye(3, dtype=np.bool_)]
    ranks, answers = rank_galleries(cosines((images, texts), (texts, images), 3), positives, 3)
    assert ranks.tolist() == [[1, 1], [2, 3], [2, 2]]  # text 1 likes pictures 2 (.96), 0 (.8), 1 (.6)
    assert answers.tolist() == [[0, 0], [2, 2], [1, 1]]
    scores = score_columns(ranks, (1, 2))
    assert scores[:, :3].tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert scores[:, 3:6].tolist() == [[1, 1, 1], [0.5, 1, 0], [1, 1, 1]]
    assert scores[1, 6:].tolist() == pytest.approx([(1 / 2 + 1 / 3) / 2, 1 / 2, 1 / 3])


def test_a_tie_is_no_hit() -> None:
    same = np.tile(np.array([[0.6, 0.8]], dtype=np.float32), (100, 1))
    ranks, _ = rank_galleries(cosines((same, same), (same, same), 100), [np.eye(100, dtype=np.bool_)], 100)
    assert (ranks == 100).all()


def test_any_positive_counts() -> None:
    texts = [("a", "b"), ("b",), ("c",), ("c", "d"), ("e",), ("f",)]
    pictures = ["p", "q", "r", "s", "t", "t"]
    first, second = positive_galleries(texts, pictures, 3)
    assert first.tolist() == [[True, True, False], [False, True, False], [False, False, True]]
    assert second.tolist() == [[True, False, False], [False, True, True], [False, True, True]]
    (whole,) = positive_galleries(texts, pictures, 6)
    assert np.flatnonzero(whole[2]).tolist() == [2, 3]  # equal texts
    assert np.flatnonzero(whole[3]).tolist() == [2, 3]


def _embeddings(count: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(count, 16))
    texts = images + noise * np.random.default_rng(seed).normal(size=(count, 16))
    images, texts = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (images, texts))
    return images.astype(np.float32), texts.astype(np.float32)


@pytest.fixture
def setup(subject: Any, bench: Any, given: Any) -> Any:
    def make(count: int) -> Any:
        subjects = [subject("teacher", "teacher"), subject("int8", "package", "onnxruntime")]
        answers = {}
        for item, noise in zip(subjects, (0.3, 0.8), strict=True):
            images, texts = _embeddings(count, noise, seed=1)
            answers[item.name, "embed_image"], answers[item.name, "embed_text"] = images, texts
        columns = {"texts": [(f"t{i}",) for i in range(count)], "picture": list(range(count))}
        return subjects, bench(given(answers, columns), count)

    return make


def test_equal_films_count_for_each_other(subject: Any, bench: Any, given: Any) -> None:
    class Films(GivenFamily):
        @property
        def requests(self) -> tuple[Request, ...]:
            return (Request("embed_image", ("frames",), ("vision_model",)),)

    teacher = replace(subject("teacher", "teacher"), family=Films.model_construct(path=Path("nowhere")))
    # Picture 0 lies nearest to text 1, whose film is the same one; picture 2 to text 0, whose film is another.
    images = np.array([[0.6, 0.8, 0], [0, 1, 0], [1, 0, 0]], dtype=np.float32)
    answers = {("teacher", "embed_image"): images, ("teacher", "embed_text"): np.eye(3, dtype=np.float32)}
    columns = {"texts": [("a",), ("b",), ("c",)], "film": [b"x", b"x", b"y"], "picture": [b"p"] * 3}
    measured = RecallAtK(k=(1,)).measure([teacher], bench(given(answers, columns), 3))
    found = _find(measured.rows, "teacher", "recall_at_1", "image_to_text")
    assert found.value == pytest.approx(2 / 3)


def _find(rows: Any, name: str, metric: str, direction: str = "mean") -> Any:
    (row,) = [r for r in rows if (r.name, r.metric, r.conditions["direction"]) == (name, metric, direction)]
    return row


def test_rows_of_teacher_and_package(setup: Any) -> None:
    subjects, bench = setup(130)
    metric = RecallAtK(k=(1, 5), gallery_size=50)
    measured = metric.measure(subjects, bench)
    teacher, package = (_find(measured.rows, name, "recall_at_1") for name in ("teacher", "int8"))
    assert teacher.n == package.n == 100
    assert "30 test examples" in teacher.reason
    assert teacher.conditions["gallery"] == 50
    assert teacher.value > package.value
    assert teacher.ci95[0] < teacher.value <= teacher.ci95[1] <= 1
    both = [_find(measured.rows, "int8", "recall_at_1", d).value for d in ("image_to_text", "text_to_image")]
    assert package.value == pytest.approx(sum(both) / 2)
    assert _find(measured.rows, "int8", "retention.recall_at_1").value == pytest.approx(package.value / teacher.value)
    drop = _find(measured.rows, "int8", "drop.recall_at_1")
    assert drop.value == pytest.approx(teacher.value - package.value)
    assert not drop.higher_is_better
    assert drop.reference == "teacher"
    records = measured.samples["recall_at_1/int8"]
    assert [record["id"] for record in records] == [f"e{i}" for i in range(100)]
    assert np.mean([record["score"] for record in records]) == pytest.approx(package.value)
    assert {row.metric for row in measured.rows} == metric.gives()
    assert {row.samples for row in measured.rows} == set(measured.samples)


def test_the_teachers_gallery(setup: Any) -> None:
    subjects, bench = setup(100)
    rows = RecallAtK(k=(1,), gallery="teacher").measure(subjects, bench).rows
    own = RecallAtK(k=(1,)).measure(subjects, bench).rows
    assert _find(rows, "teacher", "recall_at_1_teacher_gallery").value == _find(own, "teacher", "recall_at_1").value
    # The pictures' embeddings are the same here: against the teacher's texts the package is as good as the teacher.
    assert (
        _find(rows, "int8", "recall_at_1_teacher_gallery", "image_to_text").value
        == _find(own, "teacher", "recall_at_1", "image_to_text").value
    )
    with pytest.raises(InputError, match="needs the teacher"):
        RecallAtK(gallery="teacher").measure(subjects[1:], bench)


def test_a_model_that_scores_pairs_is_asked_for_every_pair_of_a_gallery(subject: Any) -> None:
    fits = {("p0", "a"): 0.9, ("p0", "b"): 0.1, ("p1", "a"): 0.8, ("p1", "b"): 0.7}
    asked: list[int] = []

    class Scored:
        columns: ClassVar[dict[str, Any]] = {"texts": [("a",), ("b",)] * 2, "picture": ["p0", "p1"] * 2}

        def values(self, name: str) -> Any:
            return self.columns[name]

        def ask(self, subject: Any, request: str, values: Any) -> np.ndarray:
            asked.append(len(values["image"]))
            yes = np.array([fits[pair] for pair in zip(values["image"], values["text"], strict=True)], np.float32)
            return np.stack([1 - yes, yes], axis=1)

    class Test:
        ids = ("e0", "e1", "e2", "e3")
        columns = frozenset({"image", "texts"})

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> Example:
            return Example(self.ids[index], {"image": f"p{index % 2}", "texts": (["a", "b"][index % 2],)})

    metric = RecallAtK(k=(1,), gallery_size=2).fitted(frozenset({"match"}))
    assert (metric.by, metric.needs()) == ("match", {"match"})
    assert RecallAtK().fitted(frozenset({"match"})).gallery_size == 20
    bench = Bench(test=cast("Any", Test()), threads=1, seed=0, answers=Scored())
    rows = metric.measure([subject("teacher", "teacher")], bench).rows
    assert asked == [4, 4]
    # Picture p0 likes a best, p1 likes a better than its own b; text a likes p0, text b likes p1.
    assert _find(rows, "teacher", "recall_at_1", "image_to_text").value == pytest.approx(0.5)
    assert _find(rows, "teacher", "recall_at_1", "text_to_image").value == pytest.approx(1.0)


def test_fewer_examples_than_a_gallery_are_no_measurement(setup: Any) -> None:
    subjects, bench = setup(20)
    measured = RecallAtK(gallery_size=1000).measure(subjects, bench)
    assert {(row.status, row.value) for row in measured.rows} == {("too_few_samples", None)}
    assert "fewer than one gallery of 1000" in measured.rows[0].reason


@pytest.mark.parametrize("fields", [{"k": []}, {"k": [0]}, {"k": [1, 1]}, {"gallery": "others"}, {"gallery_size": 1}])
def test_fields_that_cannot_be(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RecallAtK.model_validate(fields)
