"""ONNX Runtime on CPUs, and on GPUs where the CUDA provider loads."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import field_validator

from mmcompress.component import JSON, nearest
from mmcompress.errors import InputError, MissingExtra, StageError
from mmcompress.families import Feeds
from mmcompress.runtimes import Runtime, Scheme
from mmcompress.runtimes._machine import cpu_class

_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_CLASSES = ("x86-vnni", "x86-avx512", "x86-avx2", "x86", "arm64", "cuda")


class OnnxRuntime(Runtime):
    """Runs the ONNX graphs as they are: its own optimizer fuses them when a session opens, in well under a second.

    A graph stored after that optimization loads no faster than the time of one request and is tied to one version.
    """

    extra = "cpu"
    provider: Literal["cpu", "cuda"] = "cpu"

    @field_validator("machine")
    @classmethod
    def _known_class(cls, value: str | None) -> str | None:
        if value is not None and value not in _CLASSES:
            raise ValueError(f"unknown machine class {value!r}{nearest(value, _CLASSES)}; known: {', '.join(_CLASSES)}")
        return value

    def machine_class(self) -> str:
        """The class in the recipe, or that of this machine."""
        return self.machine or ("cuda" if self.provider == "cuda" else cpu_class())

    def scheme(self) -> Scheme:
        """INT8 for products with weights; UINT8 activations on x86 (signed ones are slower than FP32 there).

        Products come out in FP32: their INT8 kernels write it at once, and nothing is rounded between them and the
        float operators that follow.
        """
        machine = self.machine_class()
        return Scheme(
            activations="uint8" if machine.startswith("x86") else "int8",
            symmetric_activations=machine == "cuda",
            per_channel=True,
            reduce_range=machine in ("x86-avx512", "x86-avx2", "x86"),
            operators=("MatMul", "Gemm", "Conv"),
            float_outputs=("MatMul", "Gemm"),
            fused_products=machine.startswith("x86"),
        )

    def engine_precisions(self, folder: Path, graph: str) -> Mapping[str, str]:
        """What ONNX Runtime's optimized graph holds."""
        from mmcompress.runtimes._coverage import onnxruntime_engine

        return onnxruntime_engine(folder / f"{graph}.onnx", _PROVIDERS[self.provider])

    def versions(self) -> Mapping[str, str]:
        """The version of the one ONNX Runtime that is installed."""
        return {name: version(name) for name in _installed()}

    def compile(self, graphs: Mapping[str, Path], folder: Path) -> Mapping[str, JSON]:
        """Copy the graphs and open each once."""
        files = {}
        for name, path in graphs.items():
            target = folder / f"{name}.onnx"
            shutil.copyfile(path, target)
            data = path.with_name(f"{path.name}.data")
            if data.is_file():
                shutil.copyfile(data, folder / data.name)
            files[name] = target.name
        try:
            self.open(folder, list(graphs), threads=1).close()
        except InputError as error:
            raise StageError(f"onnxruntime refuses the graphs: {error}") from error
        return {"files": files}

    def open(self, folder: Path, graphs: Sequence[str], threads: int | None) -> OnnxSession:
        """One session per graph.

        Raises:
            MissingExtra: ONNX Runtime is not installed.
            InputError: two of it are installed, it does not load, a graph does not open, or a provider did not load.
        """
        return OnnxSession(folder, graphs, _PROVIDERS[self.provider], threads)


class OnnxSession:
    """Opened graphs of one folder. ONNX Runtime's sessions are safe to call from several threads."""

    def __init__(self, folder: Path, graphs: Sequence[str], provider: str, threads: int | None) -> None:
        onnxruntime = load_library()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._sessions: dict[str, Any] = {}
        for name in graphs:
            self._sessions[name] = _open(onnxruntime, folder / f"{name}.onnx", options, provider)
        self._outputs = {
            name: [output.name for output in session.get_outputs()] for name, session in self._sessions.items()
        }

    def run(self, graph: str, feeds: Feeds) -> Feeds:
        """Run a graph by name."""
        outputs = self._outputs[graph]
        return dict(zip(outputs, self._sessions[graph].run(outputs, feeds), strict=True))

    def inputs(self, graph: str) -> dict[str, tuple[str, tuple[int | str | None, ...]]]:
        """A graph's inputs by name: the type (``tensor(float)``) and the shape, with names for axes that vary."""
        return {item.name: (item.type, tuple(item.shape)) for item in self._sessions[graph].get_inputs()}

    def close(self) -> None:
        """Free the engines."""
        self._sessions.clear()


def _open(onnxruntime: ModuleType, path: Path, options: Any, provider: str) -> Any:
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf, NoSuchFile
    from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NotSupported

    if provider not in onnxruntime.get_available_providers():
        raise InputError(
            f"{provider} is not part of the onnxruntime that is installed ({', '.join(_installed())})\n"
            "  Install onnxruntime-gpu in place of onnxruntime, or use `provider: cpu`."
        )
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except (Fail, InvalidGraph, InvalidProtobuf, NoSuchFile, NotSupported) as error:
        raise InputError(f"{path}: onnxruntime cannot open it: {error}") from error
    if session.get_providers()[0] != provider:
        raise InputError(
            f"{path}: {provider} was asked for and did not load; onnxruntime would run on {session.get_providers()[0]}\n"
            "  Its CUDA libraries or the GPU driver are missing."
        )
    return session


def _installed() -> list[str]:
    found = []
    for name in _DISTRIBUTIONS:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        found.append(name)
    return found


def load_library() -> ModuleType:
    """Import ONNX Runtime, or say what is wrong with the installation.

    Raises:
        MissingExtra: it is not installed.
        InputError: both of its distributions are installed, or it needs CUDA libraries that are not there.
    """
    installed = _installed()
    if len(installed) > 1:
        raise InputError(
            "onnxruntime and onnxruntime-gpu are both installed; they overwrite each other's files\n"
            "  Run: pip uninstall onnxruntime onnxruntime-gpu, then install the one you want."
        )
    if not installed:
        raise MissingExtra("onnxruntime", "cpu")
    try:
        import onnxruntime
    except ImportError as error:
        hint = "  Install onnxruntime in its place, or CUDA." if "gpu" in installed[0] else "  Install it again."
        raise InputError(f"{installed[0]} {version(installed[0])} does not load: {error}\n{hint}") from error
    onnxruntime.disable_telemetry_events()
    library: ModuleType = onnxruntime
    return library
