"""What the doctor says of installations that work, and of those that do not."""

from __future__ import annotations

import json
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

from mmcompress import doctor
from mmcompress.cli import main
from mmcompress.doctor import Check, healthy
from mmcompress.runtimes import onnxruntime as onnxruntime_module
from mmcompress.runtimes import openvino as openvino_module


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch):
    """Fake the versions of distributions that are asked for."""

    def pretend(**versions: str) -> None:
        found = {name.replace("_", "-"): told for name, told in versions.items()}

        def versions_of(*names: str) -> dict[str, str]:
            return {name: found.get(name, "absent") for name in names}

        monkeypatch.setattr(doctor, "library_versions", versions_of)
        monkeypatch.setattr(openvino_module, "library_versions", versions_of)
        monkeypatch.setattr(onnxruntime_module, "_installed", lambda: [name for name in found if "onnxruntime" in name])
        monkeypatch.setattr(onnxruntime_module, "version", found.get)

    return pretend


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch):
    def pretend(cuda: tuple[int, int] | None) -> None:
        monkeypatch.setattr(doctor._machine, "driver_cuda", lambda: cuda)
        monkeypatch.setattr(doctor._machine, "gpu_class", lambda: None if cuda is None else "sm86")

    return pretend


def test_what_is_installed_here_works(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--json"])
    checks = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert ended.value.code == 0
    assert {
        name for name in ("onnxruntime", "openvino", "tensorrt_rtx", "torch") if checks[name]["status"] == "ok"
    } == {
        "onnxruntime",
        "openvino",
        "tensorrt_rtx",
        "torch",
    }
    assert checks["tensorrt"]["status"] in ("absent", "ok") and checks["extra compress"]["status"] == "ok"
    assert "computes with CPUExecutionProvider" in checks["onnxruntime"]["detail"]


def test_a_runtime_that_is_broken_ends_with_1(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: [Check("openvino", "broken", "does not load", "Install it again.")])
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == 1
    assert capsys.readouterr().out.split() == "broken openvino does not load Install it again.".split()


@pytest.mark.unit
def test_both_wheels_of_onnx_runtime(installed, driver) -> None:
    installed(onnxruntime="1.31.1", onnxruntime_gpu="1.31.1")
    driver(None)
    found = doctor.onnxruntime()
    assert found.status == "broken" and not healthy([found])
    assert found.repair == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime"
    driver((13, 0))
    assert doctor.onnxruntime().repair.endswith("pip install onnxruntime-gpu")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("cuda", "repair"),
    [
        (None, "No NVIDIA driver is here: pip uninstall -y onnxruntime-gpu && pip install onnxruntime"),
        ((12, 6), "driver runs CUDA 12.6: update the driver, or pip install 'onnxruntime-gpu<1.27'"),
        ((13, 1), "pip install 'onnxruntime-gpu[cuda,cudnn]'"),
    ],
)
def test_a_gpu_wheel_whose_cuda_is_not_there(installed, driver, monkeypatch, cuda, repair) -> None:
    installed(onnxruntime_gpu="1.31.1")
    driver(cuda)

    class Absent:
        def find_spec(self, name: str, path=None, target=None):
            if name == "onnxruntime":
                raise ImportError("libcudart.so.13: cannot open shared object file")

    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    found = doctor.onnxruntime()
    assert found.status == "broken" and "libcudart.so.13" in found.detail and repair in found.repair


@pytest.mark.unit
def test_a_gpu_wheel_that_runs_on_the_cpu_is_broken(installed, driver) -> None:
    """The wheel that is here, under the other's name: it has no CUDA provider."""
    installed(onnxruntime_gpu="1.31.1")
    driver((13, 1))
    found = doctor.onnxruntime()
    assert found.status == "broken" and found.detail.startswith("CUDAExecutionProvider is not part")


@pytest.mark.unit
def test_what_is_not_installed_is_absent_and_nothing_worse(installed) -> None:
    installed()
    for found, extra in ((doctor.onnxruntime(), "cpu"), (doctor.openvino(), "openvino")):
        assert found.status == "absent" and found.repair == f"pip install 'mmcompress[{extra}]'" and healthy([found])
    assert doctor.extra("audio", ("soundfile",)) == Check(
        "extra audio", "absent", "not installed: soundfile", "pip install 'mmcompress[audio]'"
    )


@pytest.mark.unit
def test_no_vnni_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, status in (("x86-vnni", "ok"), ("arm64", "ok"), ("x86-avx2", "warning"), ("x86", "warning")):
        monkeypatch.setattr(doctor._machine, "cpu_class", lambda found=found: found)
        assert doctor.processor().status == status
    assert doctor.processor().repair == "Write `for: x86` at the target of packages that this machine runs."


@pytest.mark.unit
@pytest.mark.parametrize(
    ("built", "driver_runs", "available", "status", "words"),
    [
        ("13.0", (12, 4), False, "broken", "built for CUDA 13.0, and the driver runs CUDA 12.4"),
        ("13.0", None, False, "warning", "no NVIDIA driver is here"),
        ("13.0", (13, 0), True, "ok", "computes with CUDA 13.0"),
        (None, (13, 0), False, "warning", "an NVIDIA GPU is here"),
        (None, None, False, "ok", "computes on the CPU"),
    ],
)
def test_torch_and_the_driver(monkeypatch, driver, built, driver_runs, available, status, words) -> None:
    import numpy as np

    fake = ModuleType("torch")
    fake.version, fake.ones = SimpleNamespace(cuda=built), np.ones
    fake.cuda = SimpleNamespace(is_available=lambda: available)
    monkeypatch.setitem(sys.modules, "torch", fake)
    monkeypatch.setattr(doctor, "version", lambda name: "2.13.0")
    driver(driver_runs)
    found = doctor.torch()
    assert found.status == status and words in found.detail


@pytest.mark.unit
def test_a_library_that_computes_wrongly_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "FEED", doctor.FEED + 1)
    monkeypatch.setattr(doctor, "_right", lambda found: _raise())
    assert doctor.openvino().status == "broken"


def _raise() -> None:
    raise RuntimeError("the tiny graph gave 0")


@pytest.mark.unit
def test_the_doctor_needs_neither_onnx_nor_torch() -> None:
    script = "import sys; sys.modules['onnx'] = sys.modules['torch'] = None\n"
    script += "from mmcompress.doctor import onnxruntime, openvino, tensorrt\n"
    script += "print([c.status for c in (onnxruntime(), openvino())])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.strip() == "['ok', 'ok']", done.stderr
