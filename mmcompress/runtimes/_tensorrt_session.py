"""Runs engines of TensorRT and TensorRT for RTX on the first NVIDIA GPU, with numpy on both sides."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mmcompress.errors import InputError, StageError, require
from mmcompress.families import Feeds
from mmcompress.runtimes._tensorrt import make_logger

Profile = Mapping[str, Sequence[Sequence[int]]]
"""The smallest, the optimised and the largest shape of each input by name."""


class TensorRtSession:
    """Loaded engines by graph name. Each call that runs has an execution context and a stream of its own."""

    def __init__(self, trt: ModuleType, engines: Mapping[str, Path], profiles: Mapping[str, Profile]) -> None:
        self._trt = trt
        self._cuda = require("cuda.bindings.runtime", trt.__name__.replace("_", "-"))
        self._logger = make_logger(trt)
        self._runtime = trt.Runtime(self._logger)
        self._engines = {name: self._load(path, profiles[name]) for name, path in engines.items()}
        self._idle: dict[str, deque[tuple[Any, Any]]] = {name: deque() for name in engines}

    def _load(self, path: Path, profile: Profile) -> Any:
        if not path.is_file():
            raise InputError(f"{path}: no such file\n  Copy the package again, or build it again.")
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise InputError(
                f"{path}: {self._trt.__name__} {self._trt.__version__} cannot load the engine on this GPU:"
                f" {self._logger.last()}\n"
                "  Build the package again on this machine, or for its class and version."
            )
        for name, told in profile.items():
            built = [list(shape) for shape in engine.get_tensor_profile_shape(name, 0)]
            if built != [list(shape) for shape in told]:
                raise InputError(
                    f"{path}: the engine takes {name} of shapes {built}, and the package says {list(told)}\n"
                    "  Build the package again: engine and manifest are of different builds."
                )
        return engine

    def run(self, graph: str, feeds: Feeds) -> Feeds:
        """Run a graph by name.

        Raises:
            InputError: an input is of a shape that the engine was not built for.
            StageError: the GPU failed.
        """
        idle = self._idle[graph]
        try:
            context, stream = idle.pop()
        except IndexError:
            context = self._engines[graph].create_execution_context()
            stream = self._check(self._cuda.cudaStreamCreate())
        outputs = self._execute(self._engines[graph], context, stream, feeds)
        idle.append((context, stream))
        return outputs

    def close(self) -> None:
        """Free the engines."""
        for idle in self._idle.values():
            while idle:
                self._check(self._cuda.cudaStreamDestroy(idle.pop()[1]))
        self._engines.clear()

    def _execute(self, engine: Any, context: Any, stream: Any, feeds: Feeds) -> Feeds:
        memory: list[Any] = []
        inputs = {name: np.ascontiguousarray(value) for name, value in feeds.items()}
        try:
            for name, value in inputs.items():
                if not context.set_input_shape(name, value.shape):
                    ranges = [tuple(shape) for shape in engine.get_tensor_profile_shape(name, 0)]
                    raise InputError(
                        f"{name} has the shape {value.shape}; the engine takes {ranges[0]} to {ranges[2]}\n"
                        "  Ask for fewer or shorter inputs at a time, or build the package with other `shapes`."
                    )
                address = self._allocate(value.nbytes, stream, memory)
                kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
                self._check(self._cuda.cudaMemcpyAsync(address, value.ctypes.data, value.nbytes, kind, stream))
                context.set_tensor_address(name, address)
            addresses, outputs = {}, {}
            for name in self._outputs(engine):
                dtype = self._trt.nptype(engine.get_tensor_dtype(name))
                outputs[name] = np.empty(tuple(context.get_tensor_shape(name)), dtype)
                addresses[name] = self._allocate(outputs[name].nbytes, stream, memory)
                context.set_tensor_address(name, addresses[name])
            if not context.execute_async_v3(int(stream)):
                raise StageError("TensorRT could not run the engine")
            for name, value in outputs.items():
                kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
                self._check(self._cuda.cudaMemcpyAsync(value.ctypes.data, addresses[name], value.nbytes, kind, stream))
            self._check(self._cuda.cudaStreamSynchronize(stream))
        finally:
            for address in memory:
                self._check(self._cuda.cudaFreeAsync(address, stream))
        return outputs

    def _outputs(self, engine: Any) -> list[str]:
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        return [name for name in names if engine.get_tensor_mode(name) == self._trt.TensorIOMode.OUTPUT]

    def _allocate(self, size: int, stream: Any, memory: list[Any]) -> int:
        """Memory on the GPU; tensors without elements have an address too."""
        address = self._check(self._cuda.cudaMallocAsync(max(1, size), stream))
        memory.append(address)
        return int(address)

    def _check(self, result: tuple[Any, ...]) -> Any:
        """The value that a call of CUDA's runtime gives beside its error code."""
        if result[0] != self._cuda.cudaError_t.cudaSuccess:
            raise StageError(f"CUDA failed: {result[0].name}")
        return result[1] if len(result) > 1 else None
