"""One recipe for three targets, one of which cannot run here: its package is made, and its rows say why they are empty."""

from __future__ import annotations

import pytest
import torch

import mmcompress
from mmcompress import runs
from mmcompress.data.scenes import Scenes
from mmcompress.errors import InputError, NotRunnableHere
from mmcompress.families.clip import Clip
from mmcompress.measure import measure
from mmcompress.metrics import Subject
from mmcompress.metrics.latency import Latency
from mmcompress.metrics.recall_at_k import RecallAtK
from mmcompress.package import read_manifest
from mmcompress.report import load_report
from mmcompress.runtimes.tensorrt_rtx import TensorRtRtx
from tests.small_recipe import RECIPE, write_project

TARGETS = "targets: [onnxruntime, openvino, {tensorrt_rtx: {for: sm86}}]"
pytestmark = pytest.mark.skipif(TensorRtRtx().runs_here(), reason="this machine runs all three")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> runs.Outcome:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("targets")
    before, after = RECIPE[: RECIPE.index("stages:")], RECIPE[RECIPE.index("quantize:") :]
    text = before + after.replace("targets: [onnxruntime]", TARGETS).replace("{size_ratio: 1.5}", "{recall_at_1: 0.0}")
    return runs.run(write_project(folder / "project", text), store=folder / "store", runs=folder / "runs")


def test_every_target_has_its_package(outcome: runs.Outcome) -> None:
    assert not outcome.failures
    packages = outcome.folder / "packages"
    assert {path.name for path in packages.iterdir()} == {"onnxruntime", "openvino", "tensorrt_rtx"}
    for target in ("onnxruntime", "openvino"):
        with mmcompress.load_package(packages / target, threads=1) as package:
            assert all((check.lowest or 0.0) > 0.99 for check in package.check_probe().values())
    rtx = packages / "tensorrt_rtx"
    assert read_manifest(rtx)["target"]["machine"] == "sm86"
    assert (rtx / "text_model.engine").is_file() and (rtx / "graphs" / "text_model.onnx").is_file()
    assert not list((rtx / "probe").glob("*.package.npy"))
    with pytest.raises(NotRunnableHere, match="class sm86"):
        mmcompress.load_package(rtx)


def test_what_cannot_run_here_has_rows_that_say_so(outcome: runs.Outcome) -> None:
    rows = load_report(outcome.folder).rows
    measured = {
        target: {row.metric: row for row in rows if row.target == target and row.role == "package"}
        for target in ("onnxruntime", "openvino", "tensorrt_rtx")
    }
    quality = {"recall_at_1", "retention.recall_at_1", "drop.recall_at_5", "mrr"}
    for target in ("onnxruntime", "openvino"):
        assert all(measured[target][name].value is not None for name in quality - {"retention.recall_at_1"})
    for name in quality:
        row = measured["tensorrt_rtx"][name]
        assert row.value is None and row.status == "not_runnable_here" and row.n == 0
        assert "class sm86" in row.reason
    assert measured["tensorrt_rtx"]["size_bytes"].value > 0
    conditions = {
        target: {str(row.conditions) for row in rows if row.target == target and row.metric == "recall_at_1"}
        for target in measured
    }
    assert conditions["tensorrt_rtx"] == conditions["openvino"] == conditions["onnxruntime"]
    assert "not runnable here: " in (outcome.folder / "report.md").read_text()


def test_a_demand_on_it_is_not_measured(outcome: runs.Outcome) -> None:
    verdicts = {verdict.target: verdict.status for verdict in load_report(outcome.folder).verdicts}
    assert verdicts == {"onnxruntime": "passed", "openvino": "passed", "tensorrt_rtx": "not_measured"}
    assert outcome.exit_code == 4


def test_openvinos_int8_finds_what_onnxruntimes_float_finds(outcome: runs.Outcome) -> None:
    packages = outcome.folder / "packages"
    texts = ["a red star", "a blue ring", "a green square above a red star", "two rings"]
    with (
        mmcompress.load_package(packages / "onnxruntime") as one,
        mmcompress.load_package(packages / "openvino") as two,
    ):
        assert (one.embed_texts(texts) * two.embed_texts(texts)).sum(1).min() > 0.98


def test_its_times_are_not_runnable_here(outcome: runs.Outcome) -> None:
    latency = Latency(processes=1, seconds=0.05, block_seconds=0.01, requests=("embed_text",))
    subjects = [subject(outcome, "openvino"), subject(outcome, "tensorrt_rtx")]
    rows, _, _ = measure(subjects, [latency], None, threads=1, seed=0)
    values = {row.target: row for row in rows if row.metric == "latency_ms_p50" and row.conditions["scope"] == "engine"}
    assert values["openvino"].value > 0
    assert values["tensorrt_rtx"].value is None and "class sm86" in values["tensorrt_rtx"].reason


def test_nothing_that_runs_here_is_an_error(outcome: runs.Outcome) -> None:
    examples = Scenes(split="test", size=4, image_size=24).read()
    with pytest.raises(InputError, match="nothing that was named runs here"):
        measure([subject(outcome, "tensorrt_rtx")], [RecallAtK()], examples, threads=1, seed=0)


def subject(outcome: runs.Outcome, target: str) -> Subject:
    folder = outcome.folder / "packages" / target
    return Subject(target, f"{target} int8", "package", "package", target, Clip(path=folder), folder, "int8")
