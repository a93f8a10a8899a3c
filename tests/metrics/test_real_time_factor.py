"""Seconds of computing per second of sound, from times that are given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmcompress._sound import Sound
from mmcompress.metrics._timing import Block, Job
from mmcompress.metrics.latency import Latency, _rows, _seconds

pytestmark = pytest.mark.unit


def test_by_hand(subject: Any, bench: Any) -> None:
    job, side = Job("transcribe", 2), subject("onnxruntime", "package", "onnxruntime")
    blocks = [
        Block(process, block, side.name, job, (30.0, 50.0), (90.0, 110.0)) for process in range(3) for block in (0, 1)
    ]
    for scope, milliseconds in (("engine", 40.0), ("end_to_end", 100.0)):
        rows = _rows([side], blocks, {}, job, scope, bench(None, 1), 5.0)
        (row,) = [row for row in rows if row.metric == "real_time_factor"]
        # Two sounds of five seconds at a time.
        assert row.value == pytest.approx(milliseconds / 1000 / 10)
        assert row.unit == "s/s" and not row.higher_is_better and row.metric in Latency().gives()
        assert row.conditions["scope"] == scope and row.n == 12
    assert not [r for r in _rows([side], blocks, {}, job, "engine", bench(None, 1), None) if r.unit == "s/s"]


def test_the_seconds_are_those_of_the_sounds() -> None:
    sounds = [Sound(np.zeros(count, np.float32), rate) for count, rate in ((4000, 4000), (24_000, 8000))]
    assert _seconds({"audio": sounds, "text": ["", ""]}, ("audio",)) == 2.0
    assert _seconds({"audio": [sounds[1], None]}, ("audio",)) == 3.0
    assert _seconds({"text": [""]}, ("text",)) is None
