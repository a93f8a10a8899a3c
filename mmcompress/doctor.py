"""What works on this machine: each runtime is loaded and runs a tiny graph, and what does not comes with its repair."""

from __future__ import annotations

import base64
import platform
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmcompress.component import library_versions
from mmcompress.errors import MissingExtra, MmcompressError
from mmcompress.runtimes import _machine

Status = Literal["ok", "absent", "warning", "broken"]
GRAPH = base64.b64decode(
    "CAgSADo9Cg4KAXgKAXgSAXkiA0FkZBIBZ1oTCgF4Eg4KDAgBEggKAggBCgIIBGITCgF5Eg4KDAgBEggKAggBCgIIBEIECgAQEQ=="
)
"""An ONNX graph, ``y = x + x`` for float32 [1, 4], opset 17: devices have no library that would write it."""
FEED = np.arange(4, dtype=np.float32).reshape(1, 4)
EXTRAS = {
    "compress": ("torch", "transformers", "accelerate", "torch-pruning", "onnx", "onnxscript", "safetensors"),
    "cpu": ("onnxruntime", "Pillow", "tokenizers"),
    "audio": ("soundfile", "soxr"),
    "data": ("datasets",),
}
"""What is told as absent where any of it is; runtimes have checks of their own."""


@dataclass(frozen=True)
class Check:
    """One thing that was tried."""

    name: str
    status: Status
    detail: str
    repair: str = ""
    """The command that repairs it, or what to do; empty where nothing is wrong."""


def examine() -> list[Check]:
    """Try everything that is installed."""
    return [
        python(),
        processor(),
        *(extra(name, libraries) for name, libraries in EXTRAS.items()),
        onnxruntime(),
        openvino(),
        tensorrt("tensorrt_rtx"),
        tensorrt("tensorrt"),
        torch(),
    ]


def healthy(checks: Sequence[Check]) -> bool:
    """Whether all that is installed works: nothing is broken."""
    return all(check.status != "broken" for check in checks)


# --- the machine ---------------------------------------------------------------------------------------------------


def python() -> Check:
    """The interpreter: packages run on 3.10, what compresses needs 3.11."""
    told = f"{platform.python_version()} on {platform.machine()}"
    if tuple(map(int, platform.python_version_tuple()[:2])) < (3, 11):
        return Check(
            "python", "warning", f"{told}: runs packages, cannot compress", "Compress with Python 3.11 or later."
        )
    return Check("python", "ok", told)


def processor() -> Check:
    """Whether INT8 products of the CPU are exact and fast."""
    found = _machine.cpu_class()
    if found in ("x86-avx512", "x86-avx2", "x86"):
        return Check(
            "processor",
            "warning",
            f"{found}: no VNNI, so UINT8 x INT8 products saturate; INT8 graphs for it keep weights to 7 bits and gain less",
            f"Write `for: {found}` at the target of packages that this machine runs.",
        )
    return Check("processor", "ok", found)


def extra(name: str, libraries: Sequence[str]) -> Check:
    """Whether all libraries of an extra are installed; none is imported."""
    if name == "cpu" and library_versions("onnxruntime-gpu")["onnxruntime-gpu"] != "absent":
        libraries = [library for library in libraries if library != "onnxruntime"]
    found = library_versions(*libraries)
    missing = [library for library, told in found.items() if told == "absent"]
    if missing:
        return Check(
            f"extra {name}", "absent", f"not installed: {', '.join(missing)}", f"pip install 'mmcompress[{name}]'"
        )
    return Check(f"extra {name}", "ok", ", ".join(f"{library} {told}" for library, told in found.items()))


# --- runtimes ------------------------------------------------------------------------------------------------------


def onnxruntime() -> Check:
    """ONNX Runtime: one of its two distributions, and the provider that it was installed for."""

    def run() -> str:
        from mmcompress.runtimes.onnxruntime import OnnxSession, load_library

        library = load_library()
        gpu = library_versions("onnxruntime-gpu")["onnxruntime-gpu"] != "absent"
        providers = ["CPUExecutionProvider", *(["CUDAExecutionProvider"] if gpu else [])]
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "tiny.onnx").write_bytes(GRAPH)
            for provider in providers:
                session = OnnxSession(Path(folder), ["tiny"], provider, 1)
                _right(session.run("tiny", {"x": FEED})["y"])
                session.close()
        return f"{library.__version__} computes with {', '.join(providers)}"

    installed = library_versions("onnxruntime", "onnxruntime-gpu")
    if "absent" not in installed.values():
        return Check(
            "onnxruntime",
            "broken",
            "onnxruntime and onnxruntime-gpu are both installed; they overwrite each other's files",
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install "
            + ("onnxruntime" if _machine.gpu_class() is None else "onnxruntime-gpu"),
        )
    found = _try("onnxruntime", run)
    if found.status == "broken" and installed["onnxruntime-gpu"] != "absent":
        return Check("onnxruntime", "broken", found.detail, _cuda_repair(found.detail))
    return found


def _cuda_repair(detail: str) -> str:
    """What makes ONNX Runtime's GPU wheel load: a driver, its CUDA libraries, or the other wheel."""
    driver = _machine.driver_cuda()
    cpu = "pip uninstall -y onnxruntime-gpu && pip install onnxruntime"
    if driver is None:
        return f"No NVIDIA driver is here: {cpu}"
    wanted = re.search(r"\.so\.(\d+)", detail)
    if wanted and driver[0] < int(wanted[1]):
        return (
            f"It needs CUDA {wanted[1]}, and the driver runs CUDA {driver[0]}.{driver[1]}: update the driver, or"
            " pip install 'onnxruntime-gpu<1.27'"
        )
    return "pip install 'onnxruntime-gpu[cuda,cudnn]'"


def openvino() -> Check:
    """OpenVINO on the CPU."""

    def run() -> str:
        from mmcompress.runtimes.openvino import load_library

        library = load_library()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tiny.onnx"
            path.write_bytes(GRAPH)
            core = library.Core()
            compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            _right(next(iter(compiled({"x": FEED}).values())))
        return f"{version('openvino')} computes on {', '.join(core.available_devices)}"

    return _try("openvino", run)


def tensorrt(name: str) -> Check:
    """TensorRT or TensorRT for RTX: an engine is built, and run where its GPU is."""

    def run() -> str:
        from mmcompress import component
        from mmcompress.runtimes._tensorrt_runtime import TensorRtRuntime

        runtime = component.parse("runtimes", name)
        assert isinstance(runtime, TensorRtRuntime)
        library = runtime.library()
        if not runtime.ahead_of_time and runtime.here() is None:
            return f"{library.__version__} loads; it builds nothing without a GPU that it knows"
        with tempfile.TemporaryDirectory() as text:
            folder = Path(text)
            (folder / "tiny.onnx").write_bytes(GRAPH)
            runtime.compile({"tiny": folder / "tiny.onnx"}, folder)
            if not runtime.runs_here():
                return (
                    f"{library.__version__} builds for {runtime.machine_class()}; no GPU of its kind is here to run on"
                )
            session = runtime.open(folder, ["tiny"], None)
            _right(session.run("tiny", {"x": FEED})["y"])
            session.close()
        return f"{library.__version__} builds and computes on {runtime.here()}"

    return _try(name, run)


def torch() -> Check:
    """PyTorch, and whether its CUDA is one that the driver runs."""
    try:
        installed = version("torch")
    except PackageNotFoundError:
        return Check("torch", "absent", "not installed; packages need none", "pip install 'mmcompress[compress]'")
    try:
        library: Any = import_module("torch")
    except (ImportError, OSError) as error:
        return Check(
            "torch", "broken", f"torch {installed} does not load: {error}", "pip install --force-reinstall torch"
        )
    driver, cuda = _machine.driver_cuda(), library.version.cuda
    if float((library.ones(2) + library.ones(2)).sum()) != 4.0:
        return Check("torch", "broken", f"torch {installed} adds wrongly", "pip install --force-reinstall torch")
    if cuda is None:
        if driver is not None:
            told = f"torch {installed} computes on the CPU alone, and an NVIDIA GPU is here"
            return Check(
                "torch", "warning", told, "pip install torch, with the CUDA that pytorch.org names for the driver"
            )
        return Check("torch", "ok", f"{installed} computes on the CPU")
    if driver is None:
        told = f"torch {installed} is built for CUDA {cuda}, and no NVIDIA driver is here; it computes on the CPU"
        return Check("torch", "warning", told, "A wheel for CPUs alone is gigabytes smaller.")
    if not library.cuda.is_available():
        told = f"torch {installed} is built for CUDA {cuda}, and the driver runs CUDA {driver[0]}.{driver[1]}"
        return Check("torch", "broken", told, "Update the driver, or install the torch that pytorch.org names for it.")
    return Check("torch", "ok", f"{installed} computes with CUDA {cuda}")


# --- trying --------------------------------------------------------------------------------------------------------


def _try(name: str, run: Callable[[], str]) -> Check:
    """Run a check. What is not installed is absent; an error of ours says in its first line what, then what to do."""
    try:
        return Check(name, "ok", run())
    except MissingExtra as error:
        what, _, repair = str(error).partition("\n  ")
        return Check(name, "absent", what, repair.replace("Install it with: ", ""))
    except MmcompressError as error:
        what, _, repair = str(error).partition("\n  ")
        return Check(name, "broken", what, repair)
    except (ImportError, OSError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        library = name.replace("_", "-")
        return Check(name, "broken", first, f"pip install --force-reinstall {library}")


def _right(found: Any) -> None:
    if not np.array_equal(np.asarray(found), FEED + FEED):
        raise RuntimeError(f"the tiny graph gave {np.asarray(found).tolist()} for {FEED.tolist()} twice")
