"""The gate as a command, on graphs and packages whose differences are planted; times are drawn, and once measured."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from mmcompress import cli
from mmcompress.errors import InputError, UsageError
from mmcompress.gate import _run as _gate_run
from mmcompress.gate import _show as show
from mmcompress.gate._accuracy import drop_of, judge_drop, paired_drop
from mmcompress.gate._decide import SIDES
from mmcompress.gate._graphs import changed_operators, differing, graph_facts, operator_times
from mmcompress.gate._selftest import write_graph
from mmcompress.gate._sides import check_comparable, open_side
from mmcompress.metrics._timing import Block, Job
from mmcompress.store import write_json


@pytest.fixture
def graphs(tmp_path: Path) -> Path:
    """``small`` and its ``copy``, and ``more`` with three layers for two."""
    for name, layers in (("small", 2), ("more", 3)):
        write_graph(tmp_path / f"{name}.onnx", layers, rows=2, width=16)
    shutil.copyfile(tmp_path / "small.onnx", tmp_path / "copy.onnx")
    return tmp_path


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """Times that are drawn: call it with the candidate's slowdown."""
    slowdown = [0.0]

    class Drawn:
        def __init__(self, baseline: Any, candidate: Any, jobs: list[Job], threads: int, seed: int) -> None:
            self.jobs, self.rounds, self.random = jobs, 0, np.random.default_rng(seed)

        def __call__(self) -> list[Block]:
            self.rounds += 1
            blocks = []
            for job in self.jobs:
                factors = np.exp(0.005 * self.random.standard_normal(3)) * [1.0, 1.0, 1.0 + slowdown[0]]
                for side, factor in zip(SIDES, factors, strict=True):
                    times = (2.0 * factor,) * 3
                    blocks.append(Block(self.rounds, 0, side, job, times, times, (0.0,) * 3, (0.0,) * 3))
            return blocks

    monkeypatch.setattr(_gate_run, "Recorder", Drawn)
    yield lambda change: slowdown.__setitem__(0, change)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in ("gate", *arguments)])
    return int(end.value.code or 0)


def test_a_copy_passes_and_everything_is_written(
    graphs: Path, drawn: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    out = graphs / "out"
    assert run(graphs / "copy.onnx", "--baseline", graphs / "small.onnx", "--out", out) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("gate passed: 3 passed")
    assert "quality: not compared: a bare graph has no task; lend it one with --like PACKAGE" in printed
    verdict = json.loads((out / "verdict.json").read_text())
    assert verdict["exit_code"] == 0 and len(verdict["verdicts"]) == 3
    assert verdict["environment"]["threads"] == 1
    suite = ElementTree.parse(out / "verdict.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "0", "0")
    assert "mmcompress gate passed" in (out / "verdict.md").read_text()
    assert len((out / "samples.jsonl").read_text().splitlines()) == 5 * 3


def test_a_slowdown_fails_and_says_why_in_three_lines(
    graphs: Path, drawn: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    drawn(0.2)
    assert run(graphs / "more.onnx", "--baseline", graphs / "small.onnx") == 1
    printed = capsys.readouterr().out.splitlines()
    assert any(
        "latency_ms_p50[graph, engine]" in line and "a rerun in fresh processes confirms it" in line for line in printed
    )
    why = [line for line in printed if line.startswith("  why: ")]
    assert len(why) == 3
    assert why[0] == "  why: operators: MatMul 4 -> 6; Tanh 2 -> 3"
    assert any("operators: demanded at most 0.00 %, measured 42.86 %" in line for line in printed)


def test_an_improvement_is_told(
    graphs: Path, drawn: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    drawn(-0.2)
    assert run(graphs / "copy.onnx", "--baseline", graphs / "small.onnx") == 0
    assert "improved: latency_ms_p50[graph, engine]: 20." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "code"), [((), 4), (("--inconclusive", "pass"), 0), (("--inconclusive", "fail"), 1)]
)
def test_an_open_verdict_counts_as_the_user_says(
    graphs: Path, drawn: Callable[[float], None], option: tuple[str, ...], code: int
) -> None:
    drawn(0.05)
    out = graphs / "out"
    assert run(graphs / "copy.onnx", "--baseline", graphs / "small.onnx", "--out", out, *option) == code
    suite = ElementTree.parse(out / "verdict.xml").getroot()
    assert (suite.get("errors"), suite.get("skipped")) == (("0", "1") if code == 0 else ("1", "0"))


def test_no_time_at_all_leaves_times_open_and_out_of_the_lock(graphs: Path, drawn: Callable[[float], None]) -> None:
    options = _gate_run.Options(limit_seconds=-1.0)
    side = open_side(graphs / "small.onnx", "side")
    outcome = _gate_run.run_gate(side, side, options)
    (verdict,) = [item for item in outcome.verdicts if item.metric.startswith("slowdown.")]
    assert (verdict.status, verdict.n, verdict.one_sided95) == ("inconclusive", 0, None)
    assert outcome.scores == []
    show.write(outcome, graphs / "out", 4)
    assert json.loads((graphs / "out" / "verdict.json").read_text())["exit_code"] == 4


def test_a_lock_is_written_and_gated_against(
    graphs: Path, drawn: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    lock = graphs / "mmcompress.lock"
    assert run(graphs / "small.onnx", "--accept", "--lock", lock, "--budget", "latency=8%") == 0
    written = json.loads(lock.read_text())
    assert written["baseline"] == "small.onnx" and written["budgets"]["latency"] == 0.08
    (score,) = written["scores"]
    assert score["n"] == 5 and score["ends"][0] < 2.0 < score["ends"][1]
    drawn(0.06)
    assert run(graphs / "copy.onnx", "--baseline", lock) == 0
    drawn(0.12)
    assert run(graphs / "copy.onnx", "--baseline", lock) == 1
    capsys.readouterr()
    (graphs / "small.onnx").write_bytes((graphs / "more.onnx").read_bytes())
    assert run(graphs / "copy.onnx", "--baseline", lock) == 2
    assert "is not the baseline that was accepted" in capsys.readouterr().err
    (graphs / "small.onnx").unlink()
    assert run(graphs / "copy.onnx", "--baseline", lock) == 2
    assert "its baseline is not at" in capsys.readouterr().err
    write_json(lock, {**written, "format": 99})
    assert run(graphs / "copy.onnx", "--baseline", lock) == 2
    assert "a lock of format 99; this version reads format 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["small.onnx"], "gate takes a baseline"),
        (["absent.onnx", "-b", "small.onnx"], "absent.onnx: no such file"),
        (["broken.onnx", "-b", "small.onnx"], "broken.onnx: not an ONNX graph"),
        (["wide.onnx", "-b", "small.onnx"], "these are different tasks"),
        (["text.txt", "-b", "small.onnx"], "neither a package"),
        (["copy.onnx", "-b", "small.onnx", "--budget", "latncy=5%"], "did you mean"),
        (["copy.onnx", "-b", "small.onnx", "--budget", "latency=500%"], "expected a share from 0 to 1"),
        (["copy.onnx", "-b", "small.onnx", "--budget", "latency=0.01%"], "cannot be resolved"),
        (["old.json", "-b", "small.onnx"], "a lock of format|neither a package"),
        (["run", "-b", "small.onnx"], "a report of format 99"),
    ],
)
def test_mistakes_end_with_two_and_say_what_to_do(
    graphs: Path,
    drawn: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    import re

    monkeypatch.chdir(graphs)
    write_graph(graphs / "wide.onnx", 1, rows=2, width=32)
    (graphs / "broken.onnx").write_bytes(b"\x00not a graph")
    (graphs / "text.txt").write_text("x")
    (graphs / "old.json").write_text("{}")
    (graphs / "run").mkdir()
    write_json(graphs / "run" / "report.json", {"format": 99, "rows": []})
    assert run(*arguments) == 2
    assert re.search(message, capsys.readouterr().err)


def test_weights_outside_of_the_folder_are_refused(graphs: Path) -> None:
    import onnx

    model = onnx.load(graphs / "small.onnx")
    (graphs / "inner").mkdir()
    onnx.save(model, graphs / "inner" / "net.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    facts = graph_facts({"net": graphs / "inner" / "net.onnx"})
    assert facts.bytes > 2 * 16 * 64 * 4
    (graphs / "inner" / "w.bin").unlink()
    with pytest.raises(InputError, match=r"its weights 'w\.bin' are missing"):
        graph_facts({"net": graphs / "inner" / "net.onnx"})


def test_coverage_counts_products_with_weights() -> None:
    from tests.deployed import package

    old, new = (open_side(package(precision), "side") for precision in ("int8", "fp32"))
    before, after = graph_facts(old.graphs), graph_facts(new.graphs)
    assert after.int8_coverage == 0.0
    assert before.int8_coverage is not None and before.int8_coverage > 0.9
    verdicts = {item.demand: item.status for item in _gate_run.exact_verdicts(after, before, _gate_run.BUDGETS, "x")}
    assert verdicts["int8_coverage"] == verdicts["size_bytes"] == "failed"
    assert changed_operators(before, after)[0].endswith("int8 -> float")


def test_operators_are_timed(graphs: Path) -> None:
    times = operator_times(graphs / "small.onnx", 1, 1)
    assert set(times) >= {"MatMul", "Tanh"} and all(ms > 0 for ms in times.values())


def test_manifests_differ_leaf_by_leaf() -> None:
    old = {"a": {"b": 1, "digest": "x"}, "c": [1]}
    assert differing(old, {"a": {"b": 2, "digest": "y"}, "c": [1, 2]}) == ["a.b: 1 -> 2", "c: [1 values] -> [2 values]"]


def test_packages_of_one_task_pair_on_their_probe_examples(drawn: Callable[[float], None], tmp_path: Path) -> None:
    from tests.deployed import package

    sides = [open_side(package(precision), name) for precision, name in (("int8", "candidate"), ("fp32", "baseline"))]
    loose = _gate_run.Options(budgets={**_gate_run.BUDGETS, "operators": 9.0, "quality": 0.2})
    outcome = _gate_run.run_gate(sides[0], sides[1], loose)
    found = {verdict.demand: verdict for verdict in outcome.verdicts}
    assert found["teacher_agreement[embed_image]"].status == "passed"
    assert found["teacher_agreement[embed_image]"].n == 16
    assert {name for name in found if name.startswith("latency")} == {
        "latency_ms_p50[embed_image, engine]",
        "latency_ms_p50[embed_text, engine]",
        "latency_ms_p50[embed_image, end_to_end]",
    }
    like = open_side(sides[1].graphs["text_model"], "candidate", like=package("fp32"), work=tmp_path)
    assert like.kind == "package" and like.subject is not None
    with pytest.raises(UsageError, match="Lend the graph a task with --like"):
        check_comparable(sides[1], open_side(sides[1].graphs["text_model"], "candidate"))


# --- quality -------------------------------------------------------------------------------------------------------


def scores(lost: int, gained: int, n: int) -> tuple[dict[str, float], dict[str, float]]:
    old = {str(index): float(index < lost or index >= lost + gained) for index in range(n)}
    new = {str(index): float(index >= lost) for index in range(n)}
    return old, new


@pytest.mark.parametrize(
    ("lost", "gained", "n", "status"),
    [(0, 0, 1000, "passed"), (40, 0, 1000, "failed"), (15, 5, 1000, "inconclusive"), (0, 0, 100, "inconclusive")],
)
def test_three_verdicts_on_quality(lost: int, gained: int, n: int, status: str) -> None:
    drop = paired_drop(*scores(lost, gained, n), 0.01)
    assert drop.value == pytest.approx((lost - gained) / n)
    assert len(drop.flips) == lost and drop.gained == gained
    found, reason, needed = judge_drop(drop, 0.01)
    assert found == status
    assert (needed is not None and needed > n) == (status == "inconclusive" and drop.value != 0.01)
    assert ("0, 1, 2" in reason) == (status == "failed")


def test_the_bound_of_a_share_by_hand() -> None:
    # 100 of 5,000 lost, none gained: 0.02 less 1.645 sqrt(0.02 0.98 / 5000) = 0.01674.
    drop = drop_of(np.repeat([1.0, 0.0], [100, 4900]), 0.01)
    assert drop.low == pytest.approx(0.01674, abs=3e-4)
    assert drop.high == pytest.approx(0.02326, abs=3e-4)


def test_several_qualities_are_corrected_for() -> None:
    drop = paired_drop(*scores(40, 0, 1000), 0.01)
    assert judge_drop(drop, 0.01, adjusted_p=0.06)[0] == "inconclusive"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ({}, {}, "no examples to compare"),
        ({"a": 1.0, "b": 0.0}, {"a": 1.0, "c": 0.0}, r"different examples \(2 and 2, 1 in common\)"),
        ({"a": 1.0, "b": 0.0}, {"a": float("nan"), "b": 0.0}, "NaN or infinity for 1 of 2 examples, the first is 'a'"),
    ],
)
def test_scores_that_cannot_be_compared(old: dict[str, float], new: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        paired_drop(old, new, 0.01)


# --- for real ------------------------------------------------------------------------------------------------------


def test_a_gate_measures_a_graph_against_itself(graphs: Path) -> None:
    write_graph(graphs / "real.onnx", 30)
    side = open_side(graphs / "real.onnx", "side")
    outcome = _gate_run.run_gate(side, side, _gate_run.Options(limit_seconds=60))
    (verdict,) = [item for item in outcome.verdicts if item.metric == "slowdown.latency_ms_p50"]
    assert verdict.status != "failed"
    assert verdict.n >= 5 and verdict.value is not None and abs(verdict.value) < 0.2
    assert {record["side"] for record in outcome.samples} == set(SIDES)
    assert all(len(record["engine"]) == len(record["waited"]) for record in outcome.samples)


GATE_IMPORTS = """
import sys
from mmcompress import cli
try:
    cli.main(["gate", sys.argv[1], "--baseline", sys.argv[2], "--limit", "1", "--inconclusive", "pass"])
except SystemExit as end:
    assert end.code == 0, end.code
heavy = {"torch", "transformers", "accelerate", "torch_pruning", "datasets"} & set(sys.modules)
assert not heavy, heavy
"""


def test_a_gate_of_packages_imports_neither_torch_nor_transformers() -> None:
    from tests.deployed import package

    command = [sys.executable, "-c", GATE_IMPORTS, str(package("int8")), str(package("int8"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
