"""Reports written and read again, what is refused, and what people see."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mmcompress import _report_rows, _report_text, gate
from mmcompress.errors import InputError
from mmcompress.metrics import Row
from mmcompress.report import Report, load_report, print_report, print_rows, read_samples, row_as_json, write_report

pytestmark = pytest.mark.unit

CONTRACT = {
    *("artifact", "name", "role", "stage", "target", "metric", "conditions", "value", "status", "reason", "unit"),
    *("higher_is_better", "n", "ci95", "one_sided95", "interval_of", "reference", "samples"),
}


def quality(name: str, role: Any, target: str, value: float, metric: str = "recall_at_1", **changes: Any) -> Row:
    fields: dict[str, Any] = {
        "artifact": f"key of {name}",
        "name": name,
        "role": role,
        "stage": "distill",
        "target": target,
        "metric": metric,
        "conditions": {"split": "test", "direction": "mean"},
        "value": value,
        "unit": "ratio",
        "higher_is_better": True,
        "n": 5000,
        "ci95": (value - 0.01, value + 0.01),
        "one_sided95": (value - 0.008, value + 0.008),
        "interval_of": "example",
        "samples": f"recall_at_1/{name}",
    }
    return Row(**{**fields, **changes})


def cost(name: str, role: Any, target: str, metric: str, value: float | None, unit: str, **changes: Any) -> Row:
    plain: dict[str, Any] = {"ci95": None, "one_sided95": None, "interval_of": None, "samples": "", "n": 0}
    base = quality(name, role, target, 0.5, metric, conditions={}, unit=unit, higher_is_better=False)
    return replace(base, **{**plain, "value": value, **changes})


def some_rows() -> list[Row]:
    package = ("onnxruntime int8", "package", "onnxruntime")
    timing = {"conditions": {"batch": 1, "threads": 2, "request": "embed_text", "scope": "engine"}, "n": 900}
    return [
        quality(*package, 0.81),
        quality(*package, 0.98, "retention.recall_at_1", reference="teacher"),
        quality("stages.0 distill", "student", "torch", 0.82),
        quality("no | teacher", "baseline", "torch", 0.7),
        quality("teacher onnxruntime fp32", "teacher", "onnxruntime", 0.83),
        quality("teacher", "teacher", "torch", 0.83),
        cost("teacher", "teacher", "torch", "macs", 123_456_789, "macs"),
        cost(*package, "size_bytes", 1_234_567, "bytes"),
        cost(*package, "latency_ms_p50", 0.4567, "ms", ci95=(0.44, 0.48), one_sided95=(0.44, 0.48), **timing),
        cost(
            *package,
            "speedup.latency_ms_p50",
            4.3,
            "ratio",
            ci95=(4.1, 4.5),
            one_sided95=(4.1, 4.5),
            reference="fp32",
            **timing,
        ),
        cost(
            "openvino int8",
            "package",
            "openvino",
            "latency_ms_p50",
            None,
            "ms",
            status="not_runnable_here",
            reason="openvino is not installed",
            conditions=timing["conditions"],
        ),
    ]


def write(folder: Path, rows: list[Row], **changes: Any) -> Report:
    names = dict.fromkeys(row.samples for row in rows if row.samples)
    samples = {name: [{"id": "ex ä", "score": 1.0, "answer": "b"}] for name in names}
    verdicts = gate.judge(
        gate.parse_demands({"retention.recall_at_1": 0.985, "size_bytes": "4 MB"}, ["onnxruntime"]),
        rows,
        "embed_image",
    )
    given: dict[str, Any] = {
        "title": "clip-<emoji>",
        "rows": rows,
        "samples": samples,
        "environment": {"cpu": "A processor", "libraries": {"numpy": "2.4.6"}, "load": [0.1, 0.2], "governor": None},
        "recipe_text": "name: clip\nnote: '```'\n",
        "verdicts": verdicts,
        "notes": ["train: 3 pictures could not be decoded"],
    }
    return write_report(folder, **{**given, **changes})


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = write(tmp_path / "run", some_rows())
    for path in (tmp_path / "run", tmp_path / "run" / "report.json"):
        read = load_report(path)
        assert read.rows == written.rows
        assert read.verdicts == written.verdicts
        assert asdict(read) == asdict(written)


def test_json_holds_the_rows_of_the_contract(tmp_path: Path) -> None:
    write(tmp_path, some_rows())
    value = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert value["format"] == 1
    assert value["exit_code"] == 4
    assert [verdict["holds"] for verdict in value["verdicts"]] == [None, True]
    assert len(value["rows"]) == len(some_rows())
    assert all(set(row) == CONTRACT for row in value["rows"])
    assert value["rows"][0]["ci95"] == pytest.approx([0.80, 0.82])
    assert value["rows"][-1]["value"] is None
    assert not list(tmp_path.rglob("*.part"))


def test_samples_lie_beside_the_report(tmp_path: Path) -> None:
    names = ["recall_at_1/a b", "recall_at_1/a-b", "recall_at_1/A B", "../../evil", "//"]
    samples = {name: [{"id": name}] for name in names}
    rows = [quality("a b", "package", "onnxruntime", 0.5)]
    report = write(tmp_path, rows, samples=samples)
    files = [path.relative_to(tmp_path).as_posix() for path in sorted((tmp_path / "samples").iterdir())]
    assert sorted(entry.file for entry in report.samples.values()) == files
    assert len({file.lower() for file in files}) == len(names)
    for name in names:
        assert read_samples(load_report(tmp_path), name) == [{"id": name}]


def test_changed_or_missing_samples_are_refused(tmp_path: Path) -> None:
    report = write(tmp_path, some_rows())
    with pytest.raises(InputError, match="has no samples 'nothing'"):
        read_samples(report, "nothing")
    entry = report.samples["recall_at_1/teacher"]
    (tmp_path / entry.file).write_text("{}\n")
    with pytest.raises(InputError, match="changed after"):
        read_samples(report, "recall_at_1/teacher")
    outside = replace(report, samples={"x": replace(entry, file="../secret.jsonl")})
    with pytest.raises(InputError, match="outside"):
        read_samples(outside, "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": None}, "has no value"),
        ({"status": "not_runnable_here"}, "no reason"),
        ({"one_sided95": None}, "no interval"),
        ({"ci95": (0.9, 0.1)}, "interval from 0.9 to 0.1"),
        ({"samples": "nothing"}, "not there"),
        ({"value": float("nan")}, "Out of range float"),
    ],
)
def test_rows_that_break_the_contract_are_not_written(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    good = quality("teacher", "teacher", "torch", 0.8)
    with pytest.raises(ValueError, match=message):
        write(tmp_path, [replace(good, **change)], samples={"recall_at_1/teacher": []}, verdicts=[])
    assert not (tmp_path / "report.json").exists()


def test_the_same_measurement_twice_is_refused(tmp_path: Path) -> None:
    row = quality("teacher", "teacher", "torch", 0.8)
    with pytest.raises(ValueError, match="twice"):
        write(tmp_path, [row, replace(row, value=0.9)])
    write(tmp_path, [row, replace(row, conditions={"split": "test", "direction": "image_to_text"})])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda value: value.update(format=99), "format 99"),
        (lambda value: value.pop("rows"), "not a report"),
        (lambda value: value.pop("environment"), "environment missing"),
        (lambda value: value["rows"][1].update(role="boss"), r"1\.role: .*got 'boss'"),
        (lambda value: value["rows"][0].pop("metric"), r"0\.metric"),
        (lambda value: value["rows"].append(value["rows"][0]), "twice"),
    ],
)
def test_a_damaged_report_is_refused_with_the_place(tmp_path: Path, edit: Any, message: str) -> None:
    write(tmp_path, some_rows())
    file = tmp_path / "report.json"
    value = json.loads(file.read_text(encoding="utf-8"))
    edit(value)
    file.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_report(tmp_path)


def test_no_report(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_report(tmp_path)
    (tmp_path / "report.json").write_text("[1", encoding="utf-8")
    with pytest.raises(InputError, match="not valid JSON"):
        load_report(tmp_path)


def test_models_stand_in_the_order_of_the_work() -> None:
    assert [model.name for model in _report_rows.models(some_rows())] == [
        "teacher",
        "teacher onnxruntime fp32",
        "no | teacher",
        "stages.0 distill",
        "onnxruntime int8",
        "openvino int8",
    ]


def test_markdown_has_the_verdict_first_and_all_models_side_by_side(tmp_path: Path) -> None:
    write(tmp_path, some_rows())
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert lines[0] == "# clip-&lt;emoji&gt;"
    assert lines[2] == "**Undecided: of 2 demands 1 passed, 1 inconclusive.**"
    head = next(line for line in lines if line.startswith("| model | recall@1"))
    assert [cell.strip().replace("\\", "") for cell in head.strip("|").split("|")] == [
        *("model", "recall@1", "retention", "MACs", "size", "embed_text p50", "embed_text speed-up")
    ]
    package = next(line for line in lines if line.startswith("| onnxruntime int8 | 81"))
    assert [cell.strip() for cell in package.strip("|").split("|")] == [
        *("onnxruntime int8", "81.0 ± 1.0 %", "98.0 ± 1.0 %", "-", "1.23 MB", "0.457 ± 0.023 ms", "4.30x ± 0.20x")
    ]
    assert "- openvino int8: latency\\_ms\\_p50: not runnable here: openvino is not installed" in lines
    assert "- train: 3 pictures could not be decoded" in lines
    assert r"| no \| teacher |" in text
    assert text.rstrip().endswith("````") and "````yaml" in text


def shown(report: Report, *, terminal: bool, width: int = 200) -> str:
    file = io.StringIO()
    print_report(report, Console(file=file, force_terminal=terminal, width=width, no_color=True))
    return file.getvalue()


def test_a_terminal_gets_tables_and_a_log_gets_plain_lines(tmp_path: Path) -> None:
    report = write(tmp_path, some_rows())
    terminal, log = shown(report, terminal=True), shown(report, terminal=False, width=20)
    assert "Quality" in terminal and "Cost" in terminal and "┃" in terminal
    assert "onnxruntime int8: recall@1 81.0 ± 1.0 %; retention 98.0 ± 1.0 %; size 1.23 MB;" in log
    assert not set(log) & set("┃│━")
    last = "clip-<emoji>: Undecided: of 2 demands 1 passed, 1 inconclusive."
    assert last in terminal
    assert log.splitlines()[-1] == last
    assert "openvino is not installed" in log


def test_names_with_brackets_are_no_markup(tmp_path: Path) -> None:
    rows = [quality("[red]x[/red] [bold", "package", "onnxruntime", 0.5)]
    for terminal in (True, False):
        file = io.StringIO()
        print_rows(rows, Console(file=file, force_terminal=terminal, width=200))
        assert "[red]x[/red] [bold" in file.getvalue()


@pytest.mark.parametrize(
    ("metric", "value", "unit", "text"),
    [
        ("recall_at_1", 0.8213, "ratio", "82.1 %"),
        ("drop.recall_at_1", 0.0123, "ratio", "1.2 points"),
        ("speedup.latency_ms_p50", 4.312, "ratio", "4.31x"),
        ("size_ratio", 8.0, "ratio", "8.00x"),
        ("size_bytes", 999, "bytes", "999 B"),
        ("size_bytes", 4_000_000, "bytes", "4.00 MB"),
        ("parameters", 2_512_345, "count", "2.51 M"),
        ("parameters", 12, "count", "12"),
        ("latency_ms_p50", 12.345, "ms", "12.3 ms"),
        ("latency_ms_p50", 1234.5, "ms", "1,234 ms"),
        ("latency_ms_p50", 0.01234, "ms", "0.0123 ms"),
        ("throughput_per_s", 0.0, "1/s", "0 per s"),
    ],
)
def test_numbers_have_units_and_no_needless_digits(metric: str, value: float, unit: str, text: str) -> None:
    assert _report_text.number(metric, value, unit) == text


def test_a_row_is_plain_json() -> None:
    assert set(row_as_json(some_rows()[0])) == CONTRACT
    with pytest.raises(ValueError, match="Out of range"):
        row_as_json(replace(some_rows()[0], value=float("inf")))


def test_a_report_without_rows_or_demands(tmp_path: Path) -> None:
    report = write(tmp_path, [], verdicts=[], notes=[])
    assert load_report(tmp_path).rows == []
    assert "No demands were made." in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "No demands were made." in shown(report, terminal=True)
