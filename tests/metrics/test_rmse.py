from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_accuracy import Scores

from mmcompress._report_text import short
from mmcompress.errors import InputError
from mmcompress.gate import Demand, judge
from mmcompress.metrics.rmse import Rmse

pytestmark = pytest.mark.unit


class Numbers(Scores):
    def __call__(self, subject: Any, request: str) -> np.ndarray:
        assert request == "predict_number"
        return np.asarray(self.scores[subject.name], dtype=np.float32)


def measured(bench: Any, subjects: Any, scores: dict[str, Any], true: list[float]) -> Any:
    given = bench(Numbers(scores, {}, number=true), len(true))
    return Rmse(unit="m").measure(subjects, given)


def test_by_hand_with_retention_and_drop(subject: Any, bench: Any) -> None:
    true = [0.0, 0.0, 2.0, 6.0]
    scores = {"teacher": [[1], [-1], [3], [5]], "int8": [[2], [-2], [3], [3]]}
    subjects = [subject("teacher", "teacher"), subject("int8", "package", "onnxruntime")]
    found = measured(bench, subjects, scores, true)
    values = {row.metric: row.value for row in found.rows if row.name == "int8"}
    assert values["rmse"] == pytest.approx(((4 + 4 + 1 + 9) / 4) ** 0.5)
    assert values["mae"] == 2.0
    assert values["retention.mae"] == 0.5
    assert values["drop.mae"] == 1.0
    assert values["retention.rmse"] == pytest.approx((4 / 18) ** 0.5)
    assert {row.metric for row in found.rows} == Rmse().gives()
    by_name = {row.metric: row for row in found.rows if row.name == "int8"}
    assert by_name["rmse"].conditions["constant"] == pytest.approx(np.std(true), rel=1e-3)
    assert by_name["mae"].conditions["constant"] == pytest.approx((1 + 1 + 1 + 5) / 4)
    assert (by_name["rmse"].higher_is_better, by_name["retention.rmse"].higher_is_better) == (False, True)
    assert not by_name["drop.rmse"].higher_is_better
    assert short(by_name["mae"]).endswith(" m")


def test_the_interval_is_that_of_resampled_examples(subject: Any, bench: Any) -> None:
    errors = np.random.default_rng(0).normal(0.0, 3.0, 2000)
    found = measured(bench, [subject("teacher", "teacher")], {"teacher": errors[:, None]}, [0.0] * 2000)
    low, high = found.rows[0].ci95
    # The standard error of a root mean square of normal errors is sigma / sqrt(2 n).
    assert (high - low) / 2 == pytest.approx(1.96 * 3.0 / 4000**0.5, rel=0.1)


def test_demands_of_errors_are_upper_limits(subject: Any, bench: Any) -> None:
    scores = {"teacher": [[0.9], [1.1]] * 200, "int8": [[0.8], [1.2]] * 200}
    subjects = [subject("teacher", "teacher"), subject("int8", "package", "onnxruntime")]
    rows = measured(bench, subjects, scores, [1.0] * 400).rows
    verdicts = judge(
        [
            Demand("rmse", "rmse", "onnxruntime", 0.25),
            Demand("rmse", "rmse", "onnxruntime", 0.15),
            Demand("retention.rmse", "retention.rmse", "onnxruntime", 0.985),
        ],
        rows,
        "predict_number",
    )
    assert [verdict.status for verdict in verdicts] == ["passed", "failed", "failed"]


def test_what_is_no_number_is_told(subject: Any, bench: Any) -> None:
    with pytest.raises(InputError, match="number of e1 is no number"):
        measured(bench, [subject("teacher", "teacher")], {"teacher": [[1], [1]]}, [0.0, float("nan")])
    with pytest.raises(InputError, match=r"answers \[2, 2\]; expected one number"):
        measured(bench, [subject("teacher", "teacher")], {"teacher": [[1, 1], [1, 1]]}, [0.0, 1.0])
