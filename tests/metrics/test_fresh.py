"""Starts, memory and load of real processes, with models whose first answer and whose answers take known time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mmcompress.errors import InputError
from mmcompress.metrics import Bench, Subject
from mmcompress.metrics._statistics import process_estimate
from mmcompress.metrics.cold_start import ColdStart
from mmcompress.metrics.peak_memory import PeakMemory
from mmcompress.metrics.throughput import Throughput
from tests.metrics.test_latency import make_package, plain  # noqa: F401

BENCH = Bench(None, 1, 0, None)


def test_a_process_is_opened_and_then_answers(make_package: Callable[..., Subject]) -> None:  # noqa: F811
    measured = ColdStart(processes=2).measure([make_package("one", 10)], BENCH)
    rows = {row.metric: row for row in measured.rows}
    assert rows.keys() == ColdStart().gives()
    records = measured.samples["cold_start/one"]
    assert [record["process"] for record in records] == [0, 1]
    both = [record["load_ms"] + record["first_ms"] for record in records]
    assert rows["cold_start_ms"].value == pytest.approx(np.sqrt(both[0] * both[1]))
    assert rows["cold_start_ms"].value > rows["load_ms"].value > 1
    assert rows["load_ms"].ci95 is not None and rows["load_ms"].n == 2


def test_the_peak_of_a_process_holds_python_and_the_library(make_package: Callable[..., Subject]) -> None:  # noqa: F811
    (row,) = PeakMemory(processes=2).measure([make_package("one", 10)], BENCH).rows
    assert row.unit == "byte" and not row.higher_is_better
    assert 20e6 < row.value < 2e9


def test_a_rate_that_cannot_be_served_shows_in_the_slowest_responses(make_package: Callable[..., Subject]) -> None:  # noqa: F811
    side = make_package("one", 2000)
    metric = Throughput(concurrency=1, rates=(20.0, 4000.0), seconds=0.4, processes=2)
    measured = metric.measure([side], BENCH)
    (most,) = [row for row in measured.rows if row.metric == "requests_per_s"]
    assert most.value > 1 and most.higher_is_better
    few, flood = (row for row in measured.rows if row.metric == "response_ms_p99")
    assert (few.status, few.value) == ("too_few_samples", None)
    assert "459 bound this percentile" in few.reason
    by_rate = {
        rate: [record["ms"] for record in measured.samples["throughput/one"] if record["rate"] == rate]
        for rate in metric.rates
    }
    assert all(4 <= len(ms) <= 8 for ms in by_rate[20.0])  # every 50 ms for 0.4 s
    # Requests that queue wait for those before them: the last one answered waited for almost all of three times 0.4 s.
    assert all(ms[-1] > 500 for ms in by_rate[4000.0])
    assert flood.conditions["rate"] == 4000.0 and flood.value is None
    assert "of 1600 requests answered: more arrive than it serves" in flood.reason


def test_an_unknown_request_is_refused(make_package: Callable[..., Subject]) -> None:  # noqa: F811
    with pytest.raises(InputError, match="unknown request 'embed_sound'; there are"):
        ColdStart(request="embed_sound").measure([make_package("one", 10)], BENCH)


def test_an_interval_over_processes_by_hand() -> None:
    found = process_estimate(np.array([1.0, np.e**2]))
    # Logarithms 0 and 2: mean 1, standard error 1; t with one degree of freedom is 6.3138 and 12.7062.
    assert found.value == pytest.approx(np.e)
    assert np.log(found.one_sided95) == pytest.approx([1 - 6.3138, 1 + 6.3138], abs=1e-3)
    assert np.log(found.ci95) == pytest.approx([1 - 12.7062, 1 + 12.7062], abs=1e-3)
    with pytest.raises(ValueError, match="at least two"):
        process_estimate(np.array([1.0]))
