"""OpenVINO on CPUs."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import field_validator

from mmcompress.component import JSON, library_versions, nearest
from mmcompress.errors import InputError, MissingExtra, StageError
from mmcompress.families import Feeds
from mmcompress.runtimes import Runtime, Scheme
from mmcompress.runtimes._machine import cpu_class

FloatPrecision = Literal["f32", "bf16"]
_CLASSES = ("x86-vnni", "x86-avx512", "x86-avx2", "x86", "arm64")


class OpenVino(Runtime):
    """Runs OpenVINO's own format (``.xml`` and ``.bin``): a float graph opens in half the time that its ONNX file takes."""

    extra = "openvino"
    float_precision: FloatPrecision = "f32"
    """Of what is not quantized. On a CPU with AMX or AVX512-BF16 OpenVINO would take bf16 by itself."""

    @field_validator("machine")
    @classmethod
    def _known_class(cls, value: str | None) -> str | None:
        if value is not None and value not in _CLASSES:
            raise ValueError(f"unknown machine class {value!r}{nearest(value, _CLASSES)}; known: {', '.join(_CLASSES)}")
        return value

    def machine_class(self) -> str:
        """The class in the recipe, or that of this machine."""
        return self.machine or cpu_class()

    def scheme(self) -> Scheme:
        """Signed symmetric INT8 for products with weights, which come out in float; biases stay float."""
        return Scheme(
            activations="int8",
            symmetric_activations=True,
            per_channel=True,
            reduce_range=self.machine_class() in ("x86-avx512", "x86-avx2", "x86"),
            operators=("MatMul", "Gemm", "Conv"),
            quantize_bias=False,
            float_outputs=("MatMul", "Gemm", "Conv"),
        )

    def floats(self) -> Mapping[str, Runtime]:
        """FP32, and bf16 where the processor computes in it."""
        found: dict[str, Runtime] = {"fp32": self.model_copy(update={"float_precision": "f32"})}
        if "BF16" in load_library().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            found["bf16"] = self.model_copy(update={"float_precision": "bf16"})
        return found

    def engine_precisions(self, folder: Path, graph: str) -> Mapping[str, str]:
        """What OpenVINO's own graph says of its layers."""
        from mmcompress.runtimes._coverage import openvino_engine

        core = load_library().Core()
        return openvino_engine(_compile(core, folder / f"{graph}.xml", 1, self.float_precision))

    def versions(self) -> Mapping[str, str]:
        """OpenVINO's version."""
        return library_versions("openvino")

    def compile(self, graphs: Mapping[str, Path], folder: Path) -> Mapping[str, JSON]:
        """Convert the graphs to ``<name>.xml`` and ``<name>.bin``, weights as they are, and open each once."""
        openvino = load_library()
        core = openvino.Core()
        files = {}
        for name, path in graphs.items():
            target = folder / f"{name}.xml"
            try:
                # Its default would store float weights in 16 bits.
                openvino.save_model(core.read_model(path), target, compress_to_fp16=False)
            except RuntimeError as error:
                raise StageError(f"{name}: OpenVINO cannot read the graph: {error}") from error
            files[name] = target.name
        try:
            self.open(folder, list(graphs), threads=1).close()
        except InputError as error:
            raise StageError(f"OpenVINO refuses the graphs: {error}") from error
        return {"files": files, "inference_precision": self.float_precision}

    def open(self, folder: Path, graphs: Sequence[str], threads: int | None) -> OpenVinoSession:
        """Compile each graph for this processor.

        Raises:
            MissingExtra: OpenVINO is not installed.
            InputError: a graph is missing or does not open, or OpenVINO computes in another precision than asked for.
        """
        return OpenVinoSession(folder, graphs, threads, self.float_precision)


class OpenVinoSession:
    """Compiled graphs of one folder. Each call that runs has an infer request of its own."""

    def __init__(self, folder: Path, graphs: Sequence[str], threads: int | None, precision: FloatPrecision) -> None:
        core = load_library().Core()
        self._graphs = {name: _compile(core, folder / f"{name}.xml", threads, precision) for name in graphs}
        self._idle: dict[str, deque[Any]] = {name: deque() for name in graphs}

    def run(self, graph: str, feeds: Feeds) -> Feeds:
        """Run a graph by name."""
        idle = self._idle[graph]
        try:
            request = idle.pop()
        except IndexError:
            request = self._graphs[graph].create_infer_request()
        outputs = request.infer(feeds, share_inputs=True)
        found = {port.get_any_name(): value for port, value in outputs.items()}
        idle.append(request)
        return found

    def close(self) -> None:
        """Free the engines."""
        self._idle.clear()
        self._graphs.clear()


def _compile(core: Any, path: Path, threads: int | None, precision: FloatPrecision) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such file\n  Copy the package again, or build it again.")
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        compiled = core.compile_model(core.read_model(path), "CPU", settings)
    except RuntimeError as error:
        raise InputError(f"{path}: OpenVINO cannot open it: {error}") from error
    taken = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if taken != precision:
        raise InputError(f"{path}: OpenVINO computes in {taken}, and {precision} was asked for")
    return compiled


def load_library() -> ModuleType:
    """Import OpenVINO, or say which extra brings it.

    Raises:
        MissingExtra: it is not installed.
        InputError: it is installed and does not load.
    """
    if library_versions("openvino")["openvino"] == "absent":
        raise MissingExtra("openvino", "openvino")
    try:
        import openvino
    except ImportError as error:
        raise InputError(f"openvino does not load: {error}\n  Install it again.") from error
    library: ModuleType = openvino
    return library
