"""Runtimes: one file each. A target is a runtime and a machine class; the file knows which INT8 scheme runs fast there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mmcompress.component import JSON, Component, Slot
from mmcompress.families import Feeds

Precision = Literal["fp32", "bf16", "int8"]
AskedPrecision = Literal["fp32", "int8", "auto"]
TableForm = Literal["cast", "dequantize"]


@dataclass(frozen=True)
class Scheme:
    """How a graph is quantized for a runtime on a machine class."""

    activations: Literal["uint8", "int8"]
    symmetric_activations: bool
    per_channel: bool
    reduce_range: bool
    """Seven-bit weights, where UINT8 x INT8 products saturate (AVX2 without VNNI)."""
    operators: tuple[str, ...]
    """ONNX operator types that run in INT8."""
    quantize_bias: bool = True
    """INT32 biases; TensorRT refuses them."""
    float_outputs: tuple[str, ...] = ()
    """Operator types whose outputs stay float: no rounding, and no kernel to undo it before a float operator."""
    fused_products: bool = False
    """Products with their bias as one operator of ONNX Runtime's own, in place of Q/DQ around a standard one."""
    tables: TableForm = "cast"
    """How INT8 embedding tables are read: rows, then ``Cast`` and ``Mul``, or ``DequantizeLinear`` before ``Gather``."""


class Session(Protocol):
    """Opened engines of a package. Thread-safe."""

    def run(self, graph: str, feeds: Feeds) -> Feeds:
        """Run a graph by name."""
        ...

    def close(self) -> None:
        """Free the engines."""
        ...


class Quantize(BaseModel):
    """How graphs are brought to INT8, and what that may cost."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    precision: AskedPrecision = "int8"
    """``auto`` times what the target can run, on this machine, and takes the fastest that keeps within ``max_drop``."""
    calibration_samples: int = Field(512, ge=1)
    """Training examples that the ranges of activations are taken from."""
    calibrator: Literal["minmax", "percentile", "entropy", "mse"] = "minmax"
    """How a range is read from what was seen."""
    smoothing: float | None = Field(None, gt=0, lt=1)
    """SmoothQuant's alpha: how much of the activations' outliers moves into the weights."""
    bias_correction: bool = False
    """Whether biases make up for what rounding the weights takes from the mean output."""
    max_drop: Mapping[str, float] = Field(default_factory=dict)
    """By metric of ``measure.metrics``, what INT8 may lose against FP32 on validation data.

    Calibrator, smoothing and the operators that stay float are then chosen by these metrics."""
    proof: Literal["interval", "point"] = "interval"
    """What keeps within ``max_drop``: the upper end of the drop's one-sided 95 % paired interval, or its point estimate."""

    @model_validator(mode="after")
    def _chosen_once(self) -> Quantize:
        wrong = [name for name, limit in self.max_drop.items() if limit < 0]
        if wrong:
            raise ValueError(f"max_drop: expected numbers from 0; got {self.max_drop[wrong[0]]:g} for {wrong[0]}")
        usual = {"calibrator": "minmax", "smoothing": None, "bias_correction": False}
        given = [name for name, value in usual.items() if getattr(self, name) != value]
        if self.max_drop and given:
            raise ValueError(f"max_drop chooses by measurement, and {', '.join(given)} is given too; leave one out")
        if self.proof == "point" and not self.max_drop:
            raise ValueError("proof says how max_drop is held to, and there is no max_drop")
        if self.precision == "auto" and not self.max_drop:
            raise ValueError("auto takes the fastest precision that loses little; expected max_drop to say how much")
        if self.precision == "fp32" and self.max_drop:
            raise ValueError("fp32 loses nothing, and max_drop is given; leave one out")
        return self


class Runtime(Component):
    """Compiles graphs for a machine class, opens them and runs them."""

    kind: ClassVar[str] = "runtimes"
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, populate_by_name=True)
    extra: ClassVar[str]
    """The extra of ours that brings the library."""

    machine: str | None = Field(None, alias="for")
    """Machine class (``x86-vnni``, ``x86-avx2``, ``arm64``, ``sm86``); this machine's where none is given."""

    quantize: Quantize | None = None
    """Instead of the recipe's own ``quantize``."""

    def machine_class(self) -> str:
        """The machine class that this target is for, resolved."""
        raise NotImplementedError

    def scheme(self) -> Scheme:
        """The INT8 scheme that this runtime runs fast on the machine class."""
        raise NotImplementedError

    def here(self) -> str | None:
        """This machine's class; None where nothing that it compiles can run."""
        return self.model_copy(update={"machine": None}).machine_class()

    def runs_here(self) -> bool:
        """Whether what it compiles for its machine class can be opened on this machine."""
        return self.machine_class() == self.here()

    def floats(self) -> Mapping[str, Runtime]:
        """This runtime in each precision that it can compute float graphs in on this machine."""
        return {"fp32": self}

    def engine_precisions(self, folder: Path, graph: str) -> Mapping[str, str] | None:
        """What the built engine runs, ``int8`` or ``float`` by the names of the graph's products; None where none can tell."""
        return None

    def versions(self) -> Mapping[str, str]:
        """Versions of the libraries that compile, for the key."""
        raise NotImplementedError

    def compile(self, graphs: Mapping[str, Path], folder: Path) -> Mapping[str, JSON]:
        """Graphs (name to ONNX file) to what the runtime loads, in ``folder``; gives facts for the manifest.

        Raises:
            MissingExtra: the library is not installed.
            StageError: the runtime refuses the graph (names the operator).
        """
        raise NotImplementedError

    def open(self, folder: Path, graphs: Sequence[str], threads: int | None) -> Session:
        """Open the engines of a package folder.

        Raises:
            InputError: an engine is missing, or was built for another version.
            NotRunnableHere: it is for another machine.
        """
        raise NotImplementedError


AnyRuntime = Annotated[Runtime, Slot("runtimes")]


def facts_of(runtime: Runtime) -> dict[str, Any]:
    """What a package's manifest says of its target."""
    return {
        "runtime": runtime.component_name(),
        "machine": runtime.machine_class(),
        "versions": dict(runtime.versions()),
    }
