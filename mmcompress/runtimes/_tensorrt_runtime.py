"""The runtime that TensorRT and TensorRT for RTX have in common; their files say where they differ."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from mmcompress.component import JSON, nearest
from mmcompress.errors import InputError, NotRunnableHere
from mmcompress.runtimes import Runtime, Scheme, Session
from mmcompress.runtimes._tensorrt import SCHEME, Range, build_engine
from mmcompress.store import read_json, write_json

ENGINES = "engines.json"
"""In a package: what its engines were built with and for."""
GRAPHS = "graphs"
"""In a package that cannot run where it was built: the ONNX graphs, so that the device can build engines again."""


class TensorRtRuntime(Runtime):
    """Builds an engine per graph for one kind of GPU.

    The network is strongly typed: INT8 is where the graph has it, and what the engine makes of it only a GPU can tell.
    """

    classes: ClassVar[tuple[str, ...]]
    """Machine classes that the library builds for."""
    ahead_of_time: ClassVar[bool]
    """Whether engines for a GPU can be built where it is not."""
    shapes: Mapping[str, Range] = {}
    """Shortest, usual and longest, by the name of an axis (``batch``, ``sequence``); others come from the model."""
    float_precision: Literal["fp32", "fp16"] = "fp32"
    """Of what is not INT8. FP16 is casts in the graph; LayerNorm and softmax stay in FP32."""
    workspace_mib: int | None = Field(None, ge=1)
    """What a layer may use of the GPU's memory while it runs, in MiB; None for all of it."""

    @field_validator("machine")
    @classmethod
    def _known_class(cls, value: str | None) -> str | None:
        if value is not None and value not in cls.classes:
            known = ", ".join(cls.classes)
            raise ValueError(f"unknown machine class {value!r}{nearest(value, cls.classes)}; known: {known}")
        return value

    @field_validator("shapes")
    @classmethod
    def _ascending(cls, shapes: Mapping[str, Range]) -> Mapping[str, Range]:
        for axis, (shortest, usual, longest) in shapes.items():
            if not 0 <= shortest <= usual <= longest or longest == 0:
                raise ValueError(f"{axis}: expected [shortest, usual, longest] in ascending order")
        return shapes

    def library(self) -> ModuleType:
        """The library, imported.

        Raises:
            MissingExtra: it is not installed.
            InputError: it is installed and does not load.
        """
        raise NotImplementedError

    def gpu(self) -> str | None:
        """The class of the first GPU that is here, whether the library knows it or not."""
        raise NotImplementedError

    def configure(self, trt: ModuleType, config: Any) -> None:
        """Tell the builder's configuration what it builds for."""

    def here(self) -> str | None:
        """The class of the GPU that is here, if the library knows it."""
        found = self.gpu()
        return found if found in self.classes else None

    def scheme(self) -> Scheme:
        """Signed symmetric INT8 for products with weights, and nothing that the parser refuses."""
        return SCHEME

    def floats(self) -> Mapping[str, Runtime]:
        """FP32, and FP16 by casts in the graph."""
        return {name: self.model_copy(update={"float_precision": name}) for name in ("fp32", "fp16")}

    def compile(self, graphs: Mapping[str, Path], folder: Path) -> Mapping[str, JSON]:
        """Build ``<name>.engine`` of each graph.

        Where the engines cannot run here the graphs are kept beside them, INT8 ones in FP16 too: the device builds of
        them what it runs fast. Where engines cannot even be built here, the graphs stand in their place.
        """
        runs_here = self.runs_here()
        builds = self.ahead_of_time or runs_here
        trt = self.library() if builds else None
        engines: dict[str, JSON] = {}
        files: dict[str, JSON] = {}
        for name, given in graphs.items():
            path = self._prepare(given, folder / f".{name}")
            kept = f"{name}.onnx" if trt is None else f"{GRAPHS}/{name}.onnx"
            entry: dict[str, JSON] = {"graph": None if runs_here else kept, "profile": None}
            if not runs_here:
                _keep(path, folder / kept)
            if trt is not None:
                engine, profile = build_engine(
                    trt, path, self.shapes, lambda config: self.configure(trt, config), self.workspace_mib
                )
                (folder / f"{name}.engine").write_bytes(engine)
                entry["profile"] = {value: [list(shape) for shape in shapes] for value, shapes in profile.items()}
            files[name] = kept if trt is None else f"{name}.engine"
            products = int8_count(path)
            if products and not runs_here:
                _keep_float(given, folder / GRAPHS / "fp16" / f"{name}.onnx", folder / f".{name}")
            engines[name] = {**entry, "int8_in_the_graph": products, "int8_in_the_engine": None}
            shutil.rmtree(folder / f".{name}", ignore_errors=True)
        about = {"machine": self.machine_class(), "versions": dict(self.versions()), "engines": engines}
        write_json(folder / ENGINES, about)
        return {"files": files, **about}

    def _prepare(self, path: Path, work: Path) -> Path:
        """The graph as it is built: its own precision, or with FP16 for its floats."""
        if self.float_precision == "fp32":
            return path
        from mmcompress.runtimes._half import write_half

        write_half(path, work / f"{path.stem}.onnx")
        return work / f"{path.stem}.onnx"

    def open(self, folder: Path, graphs: Sequence[str], threads: int | None) -> Session:
        """Load the engines onto the GPU; ``threads`` means nothing there.

        Raises:
            NotRunnableHere: no GPU of the machine class is here, or nothing was built yet.
            InputError: the engines were built by another version, or with other shapes than the package says.
        """
        from mmcompress.runtimes._tensorrt_session import TensorRtSession

        about = _about(folder)
        here = self.gpu()
        again = f"  Build for this device: mmcompress compile {folder} --target {self.component_name()}"
        if here != about["machine"]:
            found = f"the GPU here is {here}" if here else "no NVIDIA GPU with a driver is here"
            raise NotRunnableHere(
                f"{folder}: engines for an NVIDIA GPU of class {about['machine']}, and {found}\n"
                "  Open the package on such a machine, or build one for another target."
            )
        missing = [name for name in graphs if about["engines"][name]["profile"] is None]
        if missing:
            raise NotRunnableHere(
                f"{folder}: {missing[0]} is a graph; its engine is built on the device that runs it\n{again}"
            )
        trt = self.library()
        if about["versions"] != dict(self.versions()):
            whence = again if about["engines"][graphs[0]]["graph"] else "  Build the package again with this one"
            raise InputError(
                f"{folder}: engines of {_words(about['versions'])}, and {_words(self.versions())} is installed\n"
                f"{whence}, or install that version."
            )
        profiles = {name: about["engines"][name]["profile"] for name in graphs}
        return TensorRtSession(trt, {name: folder / f"{name}.engine" for name in graphs}, profiles)


def int8_count(path: Path) -> int | None:
    """How many products of a graph are in INT8; None where the onnx library is not there to tell."""
    if find_spec("onnx") is None:
        return None
    import onnx

    from mmcompress.runtimes._quantize import int8_products

    return len(int8_products(onnx.load(path, load_external_data=False)))


def _about(folder: Path) -> dict[str, Any]:
    path = folder / ENGINES
    if not path.is_file():
        raise InputError(f"{path}: no such file\n  Copy the package again, or build it again.")
    about: dict[str, Any] = read_json(path)
    return about


def _words(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _keep(path: Path, target: Path) -> None:
    """Copy a graph with the weights beside it, which it names."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
    data = path.with_name(f"{path.name}.data")
    if data.is_file():
        shutil.copyfile(data, target.with_name(data.name))


def _keep_float(path: Path, target: Path, work: Path) -> None:
    """Write a graph without its Q/DQ pairs, in FP16."""
    from mmcompress.runtimes._float_twin import write_float_twin
    from mmcompress.runtimes._half import write_half

    write_float_twin(path, work / "float.onnx")
    write_half(work / "float.onnx", target)
