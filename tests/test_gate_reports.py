"""Gates of reports: hand-made rows and samples of one machine and of two, of one data set and of two."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mmcompress import cli
from mmcompress.errors import InputError, UsageError
from mmcompress.gate._run import Options, Outcome, run_gate
from mmcompress.gate._sides import open_side
from mmcompress.metrics import Row
from mmcompress.report import write_report

MACHINE = {
    "cpu": "one",
    "architecture": "x86_64",
    "cores_usable": 2,
    "memory_bytes": 2**33,
    "libraries": {"onnxruntime": "1.0"},
}
TIMED = {"batch": 1, "threads": 1, "request": "classify", "scope": "engine"}


def row(metric: str, value: float, samples: str = "", **fields: Any) -> Row:
    names = {"artifact": "k", "name": "onnxruntime int8", "role": "package", "stage": "package"}
    about: dict[str, Any] = {"target": "onnxruntime", "conditions": {"split": "test"}, "higher_is_better": True}
    ends = (0.0, 1e9)
    counted = {"n": 9, "ci95": ends, "one_sided95": ends, "interval_of": "example", "unit": "ratio"}
    return Row(**{**names, **about, **counted, "metric": metric, "value": value, "samples": samples, **fields})


def report(
    folder: Path,
    answers: Mapping[str, float],
    ms: Sequence[float] = (2.0, 2.02, 1.98, 2.01, 1.99),
    machine: Mapping[str, Any] = MACHINE,
    metric: str = "accuracy",
    size: float = 1000.0,
) -> Path:
    """A run's report: a quality with one score per example, a p50 with one block per process, a size."""
    exact = {"n": 0, "ci95": None, "one_sided95": None, "interval_of": None}
    rows = [
        row(metric, sum(answers.values()) / len(answers), f"{metric}/package"),
        row(
            "latency_ms_p50",
            ms[0],
            "latency/package",
            conditions=TIMED,
            unit="ms",
            higher_is_better=False,
            interval_of="block",
        ),
        row("size_bytes", size, unit="byte", higher_is_better=False, conditions={}, **exact),
    ]
    timed = {key: value for key, value in TIMED.items() if key != "threads"}
    samples = {
        f"{metric}/package": [{"id": name, "score": score, "answer": "a"} for name, score in answers.items()],
        "latency/package": [{"process": index, "block": 0, "ms": [time], **timed} for index, time in enumerate(ms)],
    }
    write_report(
        folder,
        title="r",
        rows=rows,
        samples=samples,
        environment=dict(machine),
        recipe_text="",
        verdicts=[],
        notes=[],
    )
    return folder


def right(count: int, of: int = 1000) -> dict[str, float]:
    return {f"e{index}": float(index < count) for index in range(of)}


def judge(candidate: Path, baseline: Path) -> Outcome:
    return run_gate(open_side(candidate, "candidate"), open_side(baseline, "baseline"), Options())


def test_one_machine_compares_everything(tmp_path: Path) -> None:
    old = report(tmp_path / "old", right(900))
    outcome = judge(report(tmp_path / "new", right(900), size=1005.0), old)
    assert {verdict.demand: verdict.status for verdict in outcome.verdicts} == {
        "accuracy": "passed",
        "latency_ms_p50[classify, engine]": "passed",
        "size_bytes": "passed",
    }
    newer = {**MACHINE, "libraries": {"onnxruntime": "1.1"}}
    lost = judge(report(tmp_path / "lost", right(850), size=1020.0, machine=newer), old)
    assert {verdict.demand: verdict.status for verdict in lost.verdicts}["accuracy"] == "failed"
    assert {verdict.demand: verdict.status for verdict in lost.verdicts}["size_bytes"] == "failed"
    assert lost.flips["accuracy"] == [f"e{index}" for index in range(850, 900)]
    assert lost.why == ["steps: nothing differs", "recipe: nothing differs", "libraries: onnxruntime: 1.0 -> 1.1"]
    better = judge(report(tmp_path / "better", right(960)), old)
    (improved,) = better.improvements  # 6 less 1.645 sqrt(0.06 0.94 / 1000) = 4.76
    assert re.fullmatch(r"accuracy: 6\.0 points better \(at least 4\.[78]\)", improved)


def test_what_looks_slower_in_reports_cannot_be_confirmed(tmp_path: Path) -> None:
    old = report(tmp_path / "old", right(900))
    outcome = judge(report(tmp_path / "new", right(900), ms=(2.4, 2.42, 2.38, 2.41, 2.39)), old)
    (verdict,) = [item for item in outcome.verdicts if item.metric.startswith("slowdown.")]
    assert verdict.status == "inconclusive" and verdict.value == pytest.approx(0.2, abs=0.001)
    assert verdict.reason == "slower in these reports, and reports cannot be measured again: gate the packages"


def test_two_machines_compare_quality_and_refuse_times_by_name(tmp_path: Path) -> None:
    old = report(tmp_path / "old", right(900))
    outcome = judge(report(tmp_path / "new", right(900), machine={**MACHINE, "cpu": "two"}), old)
    assert {verdict.demand for verdict in outcome.verdicts} == {"accuracy", "size_bytes"}
    assert outcome.notes == ["latency_ms_p50 (onnxruntime): refused: two machines (cpu: one and two)"]


def test_errors_count_the_other_way_round(tmp_path: Path) -> None:
    def made(name: str, wrong: int) -> Path:
        folder = report(tmp_path / name, right(wrong), metric="wer")
        text = (folder / "report.json").read_text()
        value = json.loads(text)
        value["rows"][0]["higher_is_better"] = False
        (folder / "report.json").write_text(json.dumps(value))
        return folder

    outcome = judge(made("new", 160), made("old", 100))
    assert {verdict.demand: verdict.status for verdict in outcome.verdicts}["wer"] == "failed"


def test_another_data_set_and_another_task_are_refused(tmp_path: Path) -> None:
    old = report(tmp_path / "old", right(900))
    other = {f"other{index}": 1.0 for index in range(1000)}
    with pytest.raises(
        InputError, match=r"accuracy: the sides answered different examples \(1000 and 1000, 0 in common"
    ):
        judge(report(tmp_path / "data", other), old)
    with pytest.raises(InputError, match="accuracy: the baseline measured it and the candidate did not: another task"):
        judge(report(tmp_path / "task", right(900), metric="recall_at_1"), old)


def test_samples_that_were_changed_are_refused(tmp_path: Path) -> None:
    old, new = (report(tmp_path / name, right(900)) for name in ("old", "new"))
    file = new / "samples" / "accuracy.package.jsonl"
    file.write_text(file.read_text().replace('"score": 1.0', '"score": NaN', 1))
    with pytest.raises(InputError, match="changed after the report was written"):
        judge(new, old)


def test_a_report_and_something_else_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mmcompress.gate._selftest import write_graph

    old = report(tmp_path / "old", right(900))
    write_graph(tmp_path / "net.onnx", 1, rows=2, width=16)
    with pytest.raises(UsageError, match="a graph against a report"):
        judge(tmp_path / "net.onnx", old)
    with pytest.raises(SystemExit) as end:
        cli.main(["gate", str(old), "--baseline", str(old)])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("gate passed: 3 passed")
