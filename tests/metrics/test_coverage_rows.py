from __future__ import annotations

import deployed

from mmcompress.metrics import Bench, Subject
from mmcompress.metrics.coverage import Coverage


def test_int8_packages_tell_their_share_of_float():
    family = deployed.model().family
    subjects = [
        Subject("a", "teacher", "teacher", "teacher", "torch", family, deployed.model().folder),
        Subject("b", "fp32", "teacher", "package", "onnxruntime", family, deployed.package("fp32")),
        Subject("c", "int8", "package", "package", "onnxruntime", family, deployed.package(), "int8"),
    ]
    rows = Coverage().measure(subjects, Bench(None, 1, 0, None)).rows
    assert {(row.name, row.conditions["part"], row.value) for row in rows} == {
        ("int8", "vision_model", 0.0),
        ("int8", "text_model", 0.0),
    }
    assert {row.metric for row in rows} == Coverage().gives()
