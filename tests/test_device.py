"""Packages compiled on the device: what is taken, what is told, and what runs on Python 3.10 without torch."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from mmcompress import _power, deploy, device
from mmcompress._device_report import add_report
from mmcompress.cli import main
from mmcompress.device import compile_package, saturates, target_of
from mmcompress.errors import InputError, StageError, UsageError
from mmcompress.metrics import Row
from mmcompress.package import check_digests, load_package, read_manifest
from mmcompress.report import load_report, read_samples, write_report
from mmcompress.runtimes._float_twin import write_float_twin
from mmcompress.runtimes.onnxruntime import OnnxRuntime
from tests import deployed

BLOCKED = ("torch", "transformers", "onnx", "onnxscript", "safetensors", "accelerate", "torch_pruning")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    shutil.copytree(deployed.package(), tmp_path / "package")
    return tmp_path / "package"


def row(name: str, value: float) -> Row:
    conditions = {"batch": 1, "threads": 1, "request": "embed_text", "scope": "engine"}
    return Row("x", name, "package", "device", "onnxruntime", "latency_ms_p50", conditions, value, "ms", False)


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Median times by precision that are taken for measured."""
    given = {"int8": 1.0, "fp32": 2.0, "fp16": 2.0}

    def measure(work, sound, name, threads, seconds, listen):
        runtime = work.runtime.component_name()
        return [row(f"{runtime} {item.precision} on {name}", given[item.precision]) for item in sound], {}, {}

    monkeypatch.setattr(device, "_measure", measure)
    monkeypatch.setattr(device, "_write", lambda *values: None)
    return given


def test_the_whole_way_on_a_device(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built, answered, timed and told; the report joins a run's, once however often it is added."""
    monkeypatch.setattr(device, "power_facts", lambda: {"power_mode": "15W"})
    arguments = ["compile", str(package), "--seconds", "0.2", "--threads", "1", "--device", "board", "-q"]
    main([*arguments, "--out", str(tmp_path / "new")])
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "new")
    taken = read_manifest(tmp_path / "new")["precision"]
    report = load_report(tmp_path / "new-report")
    assert {entry.name for entry in report.rows} == {"onnxruntime int8 on board", "onnxruntime fp32 on board"}
    assert all(entry.conditions["device"] == "board" for entry in report.rows)
    assert report.environment["power"] == {"power_mode": "15W"} and report.environment["device"] == "board"
    agreement = [r.value for r in report.rows if r.metric == "probe_agreement" and f" {taken} " in r.name]
    assert len(agreement) == 4 and min(agreement) > 0.99
    assert any(f"{'int8' if taken == 'fp32' else 'fp32'} not taken" in note for note in report.notes)
    with load_package(tmp_path / "new", threads=1) as made, load_package(package, threads=1) as old:
        assert all(check.lowest > 0.9999 for check in made.check_probe().values())
        assert (made.embed_texts("a red star") * old.embed_texts("a red star")).sum() > 0.99
        assert made.manifest["provenance"]["compiled_from"]["precision"] == "int8"

    teacher = row("teacher", 5.0)
    run = write_report(
        tmp_path / "run",
        title="run",
        rows=[teacher],
        samples={},
        environment={"cpu": "x"},
        recipe_text="name: run\n",
        verdicts=[],
        notes=["one"],
    )
    main(["report", str(tmp_path / "run"), "--add", str(tmp_path / "new-report")])
    main(["report", str(tmp_path / "run"), "--add", str(tmp_path / "new-report")])
    joined = load_report(tmp_path / "run")
    assert len(joined.rows) == 1 + len(report.rows) and joined.rows[0].name == "teacher"
    assert joined.environment["devices"]["board"]["power"] == {"power_mode": "15W"}
    assert joined.notes[0] == "one" and joined.notes[1].startswith("board: ")
    name = next(entry.samples for entry in joined.rows if entry.samples)
    assert read_samples(joined, name) == read_samples(report, name)
    assert "onnxruntime int8 on board" in (tmp_path / "run" / "report.html").read_text()
    with pytest.raises(InputError, match="itself"):
        add_report(joined, joined)
    with pytest.raises(InputError, match="not the report of a device"):
        add_report(report, run)


def test_int8_that_is_slower_is_not_taken(package: Path, times: dict[str, float]) -> None:
    times["int8"] = 3.0
    made = compile_package(package)
    assert made.precision == "fp32" and made.notes == (
        "int8 not taken: 3 ms for one of each request, and 2 ms in fp32",
    )
    manifest = read_manifest(made.package)
    check_digests(made.package, manifest)
    assert manifest["precision"] == "fp32" and made.package.name.startswith("package-onnxruntime-")
    with pytest.raises(UsageError, match="is there already"):
        compile_package(package)


def test_int8_that_does_not_answer_as_it_did_is_not_taken(package: Path, times: dict[str, float]) -> None:
    """The engine of another graph: the probe examples find it."""
    from onnx import numpy_helper

    model = onnx.load(package / "text_model.onnx")
    for tensor in model.graph.initializer:
        if tensor.data_type == 3 and tensor.dims and np.prod(tensor.dims) > 1000:
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor)[::-1], tensor.name))
    onnx.save(model, package / "text_model.onnx")
    device._seal(package)
    with pytest.raises(StageError, match=r"(?s)int8: embed_text agrees with the teacher by .*fp32: embed_text agrees"):
        compile_package(package)


def test_openvino_and_tensorrt_rtx_compile_a_package_of_onnx_runtime(package: Path, times: dict[str, float]) -> None:
    made = compile_package(package, "openvino")
    assert read_manifest(made.package)["graphs"]["text_model"]["file"] == "text_model.xml"
    with load_package(made.package, threads=1) as opened:
        assert all(check.teacher > 0.99 for check in opened.check_probe().values())
    again = compile_package(made.package)
    assert again.precision == made.precision
    with pytest.raises(InputError, match=r"openvino's own format.*no ONNX graph for onnxruntime"):
        compile_package(made.package, "onnxruntime")


def test_rtx_takes_float_by_name_where_it_refuses_the_int8_graph(package: Path, times: dict[str, float]) -> None:
    made = compile_package(package, "tensorrt_rtx")
    assert made.precision == "fp16"
    assert "int8 not taken: does not build: " in made.notes[0] and "neither answered nor timed" in made.notes[-1]
    manifest = read_manifest(made.package)
    check_digests(made.package, manifest)
    assert (made.package / manifest["graphs"]["text_model"]["file"]).suffix == ".engine"


def test_an_int8_graph_in_float_again_computes_what_its_weights_say(tmp_path: Path) -> None:
    with load_package(deployed.package("fp32"), threads=1) as exact:
        feeds = exact.processor.encode({"text": ["a red star", "a ring on w1 w2 w3"]})
        want = exact.run("text_model", feeds)["text_embeds"]
    write_float_twin(deployed.package() / "text_model.onnx", tmp_path / "text_model.onnx")
    found = OnnxRuntime().open(tmp_path, ["text_model"], 1).run("text_model", feeds)["text_embeds"]
    assert 1e-7 < float(1 - (found * want).sum(1).min()) < 1e-3  # weights alone are rounded
    left = onnx.load(tmp_path / "text_model.onnx")
    assert not [node.op_type for node in left.graph.node if "Quantize" in node.op_type or node.domain]
    assert not [tensor.name for tensor in left.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    assert deploy.graph_signature(tmp_path / "text_model.onnx") == deploy.graph_signature(
        deployed.package() / "text_model.onnx"
    )


@pytest.mark.unit
def test_where_products_of_int8_saturate() -> None:
    assert saturates("x86-vnni", "x86-avx2") and saturates("sm86", "x86")
    assert not any((saturates("x86-avx2", "x86-avx2"), saturates("x86-avx2", "x86-vnni"), saturates("arm64", "arm64")))
    assert not saturates("x86-vnni", "sm86") and not saturates("x86-vnni", None)


@pytest.mark.unit
def test_targets_that_are_none() -> None:
    manifest = {"target": {"runtime": "onnxruntime", "fields": {"provider": "cpu", "for": "arm64"}}}
    assert target_of(manifest, None).machine_class() == OnnxRuntime().machine_class()
    with pytest.raises(UsageError, match="did you mean 'openvino'"):
        target_of(manifest, "openvno")
    with pytest.raises(UsageError, match="compiles nothing"):
        target_of(manifest, "torch")


@pytest.mark.unit
def test_power_mode_and_clocks_come_from_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano\0",
        "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "schedutil\n",
        "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1510400\n",
        "sys/class/devfreq/17000000.gpu/cur_freq": "624750000\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "48531\n",
        "sys/class/power_supply/ac/online": "1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    tool = tmp_path / "nvpmodel"
    tool.write_text("#!/bin/sh\necho 'NV Power Mode: 15W'\necho 0\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert _power.device_name(tmp_path) == "NVIDIA Jetson Orin Nano"
    assert _power.power_facts(tmp_path) == {
        "power_mode": "15W",
        "cpu_clocks": {"policy0": {"scaling_governor": "schedutil", "cur_mhz": 1510.4}},
        "device_clocks": {"17000000.gpu": {"cur_mhz": 624.75}},
        "mains": True,
        "temperatures": {"cpu-thermal": 48.531},
    }
    monkeypatch.setenv("PATH", "")
    assert _power.power_facts(tmp_path / "nothing") == {}


LOADED = """
import json, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in set(json.loads(sys.argv[1])):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
from mmcompress import component, device, doctor, package, report
import mmcompress.cli, mmcompress.measure, mmcompress.metrics.latency, mmcompress.metrics._timing_worker
component.find("families", "clip")
for kind in ("families", "runtimes", "metrics"):
    list(component.every(kind))
print(json.dumps([module.__file__ for name, module in sys.modules.items() if name.startswith("mmcompress")]))
"""
NEWER = {
    "typing": {"Self", "LiteralString", "Never", "Required", "NotRequired", "Unpack", "TypeVarTuple", "assert_never"},
    "enum": {"StrEnum", "ReprEnum", "verify", "member", "nonmember"},
    "datetime": {"UTC"},
    "hashlib": {"file_digest"},
    "contextlib": {"chdir"},
}
"""What the standard library has since 3.11 alone, as far as one would reach for it."""


@pytest.mark.unit
def test_what_a_device_loads_is_python_3_10_without_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED, json.dumps(BLOCKED)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    files = [Path(file) for file in json.loads(done.stdout)]
    assert len(files) > 60
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"), str(file), feature_version=(3, 10))
        for node in tree.body:
            names = {name.name for name in node.names} if isinstance(node, ast.Import | ast.ImportFrom) else set()
            module = node.module if isinstance(node, ast.ImportFrom) else ""
            assert not names & (NEWER.get(module or "", set()) | {"tomllib"}), f"{file}: {ast.unparse(node)}"
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert node.attr not in NEWER.get(node.value.id, ()), f"{file}:{node.lineno}: {ast.unparse(node)}"
            assert type(node).__name__ != "TryStar", f"{file}:{node.lineno}"
