from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmcompress import component
from mmcompress.errors import InputError
from mmcompress.metrics.alignment import Alignment, alignment
from mmcompress.metrics.recall_at_k import RecallAtK
from mmcompress.metrics.zero_shot import ZeroShot

pytestmark = pytest.mark.unit
IMAGES = np.array([[1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32)
TEXTS = np.array([[0.8, 0.6], [0, 1], [1, 0]], dtype=np.float32)
# cosines: picture 0: .8, 0, 1   picture 1: .6, 1, 0   picture 2: .96, .8, .6


def test_matching_pairs_less_all_others_by_hand() -> None:
    found = alignment(IMAGES, TEXTS, [np.eye(3, dtype=np.bool_)], 3)
    assert found == pytest.approx([0.8 - (0 + 1) / 2, 1 - (0.6 + 0) / 2, 0.6 - (0.96 + 0.8) / 2])
    both = np.array([[True, True, False], [False, True, False], [False, False, True]])
    assert alignment(IMAGES, TEXTS, [both], 3)[0] == pytest.approx((0.8 + 0) / 2 - 1)
    assert alignment(IMAGES[:1], TEXTS[:1], [np.ones((1, 1), np.bool_)], 1).tolist() == [0.0]


@pytest.mark.parametrize(("request_name", "column"), [("embed_image", "picture"), ("embed_audio", "sound")])
def test_rows_of_pictures_and_of_sounds(subject: Any, bench: Any, given: Any, request_name: Any, column: str) -> None:
    count = 40
    inputs, texts = np.tile(IMAGES, (count, 1))[:count], np.tile(TEXTS, (count, 1))[:count]
    subjects = [subject("teacher", "teacher"), subject("int8", "package", "onnxruntime")]
    answers = {
        (item.name, name): values
        for item in subjects
        for name, values in ((request_name, inputs), ("embed_text", texts))
    }
    columns = {"texts": [(str(index),) for index in range(count)], column: list(range(count))}
    metric = Alignment(gallery_size=2, request=request_name)
    measured = metric.measure(subjects, bench(given(answers, columns), count))
    rows = {(row.name, row.metric): row for row in measured.rows}
    own = alignment(inputs, texts, [np.eye(2, dtype=np.bool_)] * (count // 2), 2)
    assert rows["teacher", "alignment"].value == pytest.approx(own.mean())
    gap = np.linalg.norm(inputs.mean(axis=0) - texts.mean(axis=0))
    assert rows["teacher", "modality_gap"].value == pytest.approx(gap, rel=1e-4)
    assert rows["int8", "drop.alignment"].value == 0.0
    assert rows["int8", "alignment"].conditions["between"] == f"{request_name.partition('_')[2]} and text"
    assert {row.metric for row in measured.rows} == metric.gives()
    recall = RecallAtK(k=(1,), request=request_name).measure(subjects, bench(given(answers, columns), count))
    directions = {row.conditions["direction"] for row in recall.rows}
    part = request_name.partition("_")[2]
    assert directions == {"mean", f"{part}_to_text", f"text_to_{part}"}


def test_one_example_is_no_gallery(subject: Any, bench: Any, given: Any) -> None:
    with pytest.raises(InputError, match="one alone"):
        Alignment().judge([subject("teacher", "teacher")], bench(given({}, {"texts": [("a",)]}), 1))


@pytest.mark.parametrize("metric", [RecallAtK(), ZeroShot(), Alignment()])
def test_what_is_compared_is_what_the_model_embeds(metric: Any) -> None:
    assert metric.needs() == {"embed_image", "embed_text"}
    sounds = metric.fitted(frozenset({"embed_audio", "embed_text"}))
    assert sounds.needs() == {"embed_audio", "embed_text"}
    assert metric.fitted(frozenset({"embed_image", "embed_audio", "embed_text"})).needs() == metric.needs()
    # What the user says stays.
    named = type(metric)(request="embed_image")
    assert named.fitted(frozenset({"embed_audio", "embed_text"})).needs() == metric.needs()
    assert component.parse("metrics", component.dump(sounds)) == sounds
