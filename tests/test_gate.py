"""Verdicts on rows made by hand: every outcome, every way to name a condition."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest

from mmcompress import gate
from mmcompress.errors import RecipeError, UsageError
from mmcompress.gate import Demand, judge, judge_row, parse_demands, parse_number, split_name, unknown_names
from mmcompress.metrics import Row

pytestmark = pytest.mark.unit


def row(metric: str = "retention.recall_at_1", value: float | None = 0.98, **changes: Any) -> Row:
    fields: dict[str, Any] = {
        "artifact": "a1",
        "name": "onnxruntime int8",
        "role": "package",
        "stage": "package",
        "target": "onnxruntime",
        "metric": metric,
        "conditions": {"split": "test"},
        "value": value,
        "unit": "ratio",
        "higher_is_better": True,
        "n": 1000,
        "ci95": (0.968, 0.992),
        "one_sided95": (0.97, 0.99),
        "interval_of": "example",
    }
    return Row(**{**fields, **changes})


def exact(metric: str, value: float, **changes: Any) -> Row:
    plain = {"conditions": {}, "unit": "bytes", "higher_is_better": False, "n": 0}
    return row(metric, value, ci95=None, one_sided95=None, interval_of=None, **{**plain, **changes})


def timed(metric: str, value: float, request: str, batch: int = 1, scope: str = "engine", **changes: Any) -> Row:
    conditions = {"batch": batch, "threads": 2, "request": request, "scope": scope}
    ends = (value * 0.95, value * 1.05)
    return row(metric, value, conditions=conditions, one_sided95=ends, ci95=ends, interval_of="block", **changes)


def demand(goal: float, metric: str = "retention.recall_at_1") -> Demand:
    return Demand(metric, metric, "onnxruntime", goal)


@pytest.mark.parametrize(
    ("goal", "status"),
    [(0.96, "passed"), (0.97, "passed"), (0.975, "inconclusive"), (0.99, "inconclusive"), (0.991, "failed")],
)
def test_where_more_is_better(goal: float, status: str) -> None:
    verdict = judge_row(demand(goal), row())
    assert verdict.status == status
    assert verdict.holds is {"passed": True, "failed": False, "inconclusive": None}[status]


@pytest.mark.parametrize(
    ("goal", "status"),
    [(0.995, "passed"), (0.99, "passed"), (0.98, "inconclusive"), (0.97, "inconclusive"), (0.96, "failed")],
)
def test_where_less_is_better(goal: float, status: str) -> None:
    assert judge_row(demand(goal), row(higher_is_better=False)).status == status


def test_a_two_sided_interval_does_not_decide() -> None:
    assert judge_row(demand(0.969), row(ci95=(0.9, 1.0))).status == "passed"


@pytest.mark.parametrize(("goal", "status"), [(4e6, "passed"), (3_999_999, "failed"), (5e6, "passed")])
def test_exact_quantities_compare_exactly(goal: float, status: str) -> None:
    assert judge_row(demand(goal), exact("size_bytes", 4_000_000)).status == status


def test_the_sample_size_that_would_decide() -> None:
    # The point is 0.005 above the goal, its worse end 0.01 below the point: half the width needs four times the sample.
    verdict = judge_row(demand(0.975), row())
    assert verdict.needed_n == 4000
    assert "4,000 examples" in verdict.reason
    # A point that misses must bring its better end below the goal: 0.01 above it now, 0.004 to go.
    assert judge_row(demand(0.984), row()).needed_n == 6250
    assert judge_row(demand(0.98), row()).needed_n is None


def test_what_was_not_measured_never_passes() -> None:
    absent = row(value=None, status="not_runnable_here", reason="needs an NVIDIA GPU", one_sided95=None, ci95=None)
    verdict = judge_row(demand(0.0), absent)
    assert (verdict.status, verdict.holds) == ("not_measured", None)
    assert "needs an NVIDIA GPU" in verdict.reason
    assert judge_row(demand(0.0), replace(row(), status="too_few_samples", reason="3 calls")).status == "not_measured"
    assert judge_row(demand(0.0), row(one_sided95=None)).status == "not_measured"


def test_only_packages_of_the_target_are_judged() -> None:
    others = [row(role="student"), row(role="teacher"), row(target="openvino")]
    (verdict,) = judge([demand(0.5)], others, "embed_image")
    assert verdict.status == "not_measured"
    assert "onnxruntime" in verdict.reason


def test_a_demand_without_brackets_means_the_main_request_at_the_smallest_batch() -> None:
    metric = "speedup.latency_ms_p50"
    rows = [
        timed(metric, 2.0, "embed_text", reference="fp32"),
        timed(metric, 9.0, "embed_image", batch=16, reference="fp32"),
        timed(metric, 8.0, "embed_image", scope="end_to_end", reference="fp32"),
        timed(metric, 3.0, "embed_image", reference="best_float"),
        timed(metric, 5.0, "embed_image", reference="fp32"),
    ]

    def value(name: str) -> float | None:
        (verdict,) = judge(parse_demands({name: 1.0}, ["onnxruntime"]), rows, "embed_image")
        return verdict.value

    assert value(metric) == 5.0
    assert value(f"{metric}[embed_text]") == 2.0
    assert value(f"{metric}[request=embed_text, batch=1]") == 2.0
    assert value(f"{metric}[batch=16]") == 9.0
    assert value(f"{metric}[end_to_end]") == 8.0
    assert value(f"{metric}[reference=best_float]") == 3.0
    assert value(f"{metric}[batch=7]") is None


def test_conditions_that_nothing_meets_are_told() -> None:
    (verdict,) = judge(
        parse_demands({"latency_ms_p50[batch=7]": 1.0}, ["onnxruntime"]),
        [timed("latency_ms_p50", 5.0, "embed_image")],
        "embed_image",
    )
    assert verdict.status == "not_measured"
    assert "batch=7" in verdict.reason and "batch=1, threads=2, request=embed_image" in verdict.reason


def test_the_mean_of_both_directions_is_meant() -> None:
    rows = [
        row("recall_at_1", value, conditions={"split": "test", "direction": direction, "gallery": 1000})
        for direction, value in (("image_to_text", 0.9), ("mean", 0.98), ("text_to_image", 0.5))
    ]
    (verdict,) = judge([demand(0.97, "recall_at_1")], rows, "embed_image")
    assert verdict.value == 0.98


def test_of_several_rows_the_worst_counts() -> None:
    rows = [row(conditions={"seed": seed}, one_sided95=(low, 0.99)) for seed, low in ((0, 0.975), (1, 0.9), (2, 0.98))]
    (verdict,) = judge([demand(0.97)], rows, "embed_image")
    assert (verdict.status, verdict.conditions) == ("inconclusive", {"seed": 1})


def test_each_package_of_a_target_has_its_verdict() -> None:
    rows = [row(), row(artifact="a2", name="onnxruntime fp32", one_sided95=(0.1, 0.2))]
    assert [verdict.status for verdict in judge([demand(0.97)], rows, "embed_image")] == ["passed", "failed"]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("4 MB", 4e6),
        ("4MB", 4e6),
        ("512 KiB", 524288),
        ("1.5 GiB", 1.5 * 2**30),
        ("98.5 %", 0.985),
        ("40 M", 4e7),
        ("4e6", 4e6),
        (8, 8.0),
        (0.5, 0.5),
    ],
)
def test_numbers(text: Any, number: float) -> None:
    assert parse_number(text) == pytest.approx(number, rel=1e-12)


@pytest.mark.parametrize("text", ["4 mb", "four", "", "MB", True, float("nan"), float("inf"), "1 2", None])
def test_no_numbers(text: Any) -> None:
    with pytest.raises(UsageError, match="expected a number"):
        parse_number(text)


@pytest.mark.parametrize("name", ["a[", "a]b", "a[b][c]", "a[=1]", "a[batch=]", "a[batch=1,batch=2]", "", "a[]"])
def test_names_that_cannot_be_read(name: str) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        split_name(name)


def test_one_goal_for_all_targets_or_one_for_each() -> None:
    targets = ["onnxruntime", "openvino"]
    assert [(d.target, d.goal) for d in parse_demands({"size_bytes": "4 MB"}, targets)] == [
        ("onnxruntime", 4e6),
        ("openvino", 4e6),
    ]
    (only,) = parse_demands({"size_bytes": {"openvino": 1}}, targets)
    assert (only.target, only.goal) == ("openvino", 1.0)
    assert len(parse_demands({"size_bytes": 1}, ["onnxruntime", "onnxruntime"])) == 1


def test_all_mistakes_of_demands_are_told_at_once() -> None:
    given = {"size_bytes": "4 mb", "macs": {"onnxruntim": 1}, "a[": 1}
    with pytest.raises(RecipeError) as raised:
        parse_demands(given, ["onnxruntime"])
    assert len(raised.value.problems) == 3
    assert "did you mean 'onnxruntime'?" in raised.value.problems[1]


def test_unknown_names_are_found_before_anything_is_built() -> None:
    known = ["recall_at_1", "size_bytes"]
    problems = dict(
        unknown_names(
            {"recal_at_1": 0.5, "size_bytes[bacth=1]": "x", "recall_at_1": {"cpu": 1}, "size_bytes": "4 MB"},
            known,
            ["onnxruntime"],
        )
    )
    assert set(problems) == {"recal_at_1", "size_bytes[bacth=1]", "recall_at_1"}
    assert "did you mean 'recall_at_1'?" in problems["recal_at_1"]
    assert unknown_names({"recall_at_1[gallery=1000]": {"cpu": 1}}, known) == []
    ((_, message),) = unknown_names({"size_bytes[bacth=1]": 1}, known)
    assert "did you mean 'batch'?" in message


def test_exit_codes() -> None:
    passed = judge_row(demand(0.5), row())
    failed = judge_row(demand(1.0), row())
    inconclusive = judge_row(demand(0.98), row())
    absent = judge_row(demand(0.5), row(status="not_runnable_here", reason="x"))
    assert gate.exit_code([]) == 0
    assert gate.exit_code([passed, passed]) == 0
    assert gate.exit_code([passed, inconclusive]) == 4
    assert gate.exit_code([passed, absent]) == 4
    assert gate.exit_code([inconclusive, failed, absent]) == 1


def test_junit_shows_nothing_green_that_did_not_pass() -> None:
    verdicts = [judge_row(demand(goal), row()) for goal in (0.5, 0.98, 1.0)]
    root = ElementTree.fromstring(gate.junit_xml(verdicts, "clip <emoji>"))
    assert (root.get("name"), root.get("tests"), root.get("failures"), root.get("errors")) == (
        "clip <emoji>",
        "3",
        "1",
        "1",
    )
    cases = root.findall("testcase")
    assert [[child.tag for child in case] for case in cases] == [["system-out"], ["error"], ["failure"]]
    message = cases[2][0].get("message", "")
    assert "98.00 %" in message and "at least 100.00 %" in message


def test_markdown_puts_the_worst_first_and_escapes_brackets() -> None:
    verdicts = [judge_row(Demand("recall_at_1[a|b]", "recall_at_1", "t", goal), row()) for goal in (0.5, 1.0)]
    lines = gate.markdown(verdicts).splitlines()
    assert lines[2].startswith("| FAILED |") and lines[3].startswith("| passed |")
    assert r"recall\_at\_1\[a\|b\]" in lines[2]
