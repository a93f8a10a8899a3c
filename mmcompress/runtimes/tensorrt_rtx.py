"""TensorRT for RTX: engines for NVIDIA RTX GPUs, built ahead of time on any machine."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import field_validator

from mmcompress.component import JSON, library_versions, nearest
from mmcompress.errors import InputError, MissingExtra, NotRunnableHere
from mmcompress.runtimes import Runtime, Scheme, Session
from mmcompress.runtimes._machine import gpu_class
from mmcompress.runtimes._tensorrt import SCHEME, Range, build_engine
from mmcompress.store import read_json, write_json

_CLASSES = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
_DEFAULT = "sm86"
ENGINES = "engines.json"
"""In a package: what its engines were built with and for."""
GRAPHS = "graphs"
"""In a package that cannot run where it was built: the ONNX graphs, so that the device can build engines again."""


class TensorRtRtx(Runtime):
    """Builds an engine per graph for one kind of GPU; without a GPU here, for ``sm86`` unless the recipe says otherwise.

    The network is strongly typed: INT8 is where the graph has it, and what the engine makes of it only a GPU can tell.
    """

    extra = "tensorrt-rtx"
    shapes: Mapping[str, Range] = {}
    """Shortest, usual and longest, by the name of an axis (``batch``, ``sequence``); others come from the model."""

    @field_validator("machine")
    @classmethod
    def _known_class(cls, value: str | None) -> str | None:
        if value is not None and value not in _CLASSES:
            raise ValueError(f"unknown machine class {value!r}{nearest(value, _CLASSES)}; known: {', '.join(_CLASSES)}")
        return value

    @field_validator("shapes")
    @classmethod
    def _ascending(cls, shapes: Mapping[str, Range]) -> Mapping[str, Range]:
        for axis, (shortest, usual, longest) in shapes.items():
            if not 0 <= shortest <= usual <= longest or longest == 0:
                raise ValueError(f"{axis}: expected [shortest, usual, longest] in ascending order")
        return shapes

    def machine_class(self) -> str:
        """The class in the recipe, that of the GPU that is here, or ``sm86``."""
        return self.machine or self.here() or _DEFAULT

    def here(self) -> str | None:
        """The class of the GPU that is here, if TensorRT for RTX knows it."""
        found = gpu_class()
        return found if found in _CLASSES else None

    def scheme(self) -> Scheme:
        """Signed symmetric INT8 for products with weights, and nothing that the parser refuses."""
        return SCHEME

    def versions(self) -> Mapping[str, str]:
        """TensorRT for RTX's version."""
        return library_versions("tensorrt-rtx")

    def compile(self, graphs: Mapping[str, Path], folder: Path) -> Mapping[str, JSON]:
        """Build ``<name>.engine`` of each graph; keep the graphs too where their engines cannot run here."""
        import onnx

        from mmcompress.runtimes._quantize import int8_products

        trt = load_library()
        machine, runs_here = self.machine_class(), self.runs_here()

        def configure(config: Any) -> None:
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, machine.upper()), 0)

        engines: dict[str, JSON] = {}
        files: dict[str, JSON] = {}
        for name, path in graphs.items():
            engine, profile = build_engine(trt, path, self.shapes, configure)
            files[name] = f"{name}.engine"
            (folder / f"{name}.engine").write_bytes(engine)
            if not runs_here:
                _keep(path, folder / GRAPHS)
            engines[name] = {
                "graph": None if runs_here else f"{GRAPHS}/{name}.onnx",
                "profile": {value: [list(shape) for shape in shapes] for value, shapes in profile.items()},
                "int8_in_the_graph": len(int8_products(onnx.load(path, load_external_data=False))),
                "int8_in_the_engine": None,
            }
        about = {"machine": machine, "versions": dict(self.versions()), "engines": engines}
        write_json(folder / ENGINES, about)
        return {"files": files, **about}

    def open(self, folder: Path, graphs: Sequence[str], threads: int | None) -> Session:
        """Load the engines onto the GPU; ``threads`` means nothing there.

        Raises:
            NotRunnableHere: no GPU of the machine class is here.
            InputError: the engines were built by another version.
        """
        from mmcompress.runtimes._tensorrt_session import TensorRtSession

        about = _about(folder)
        here = gpu_class()
        if here != about["machine"]:
            found = f"the GPU here is {here}" if here else "no NVIDIA GPU with a driver is here"
            raise NotRunnableHere(
                f"{folder}: engines for an NVIDIA RTX GPU of class {about['machine']}, and {found}\n"
                "  Open the package on such a machine, or build one for another target."
            )
        trt = load_library()
        if about["versions"] != dict(self.versions()):
            raise InputError(
                f"{folder}: engines of {_words(about['versions'])}, and {_words(self.versions())} is installed\n"
                "  Install that version, or build the package again with this one."
            )
        return TensorRtSession(trt, {name: folder / f"{name}.engine" for name in graphs})


def _about(folder: Path) -> dict[str, Any]:
    path = folder / ENGINES
    if not path.is_file():
        raise InputError(f"{path}: no such file\n  Copy the package again, or build it again.")
    about: dict[str, Any] = read_json(path)
    return about


def _words(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _keep(path: Path, folder: Path) -> None:
    """Copy a graph with the weights beside it."""
    folder.mkdir(exist_ok=True)
    for file in (path, path.with_name(f"{path.name}.data")):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)


def load_library() -> ModuleType:
    """Import TensorRT for RTX, or say which extra brings it.

    Raises:
        MissingExtra: it is not installed.
        InputError: it is installed and does not load.
    """
    if library_versions("tensorrt-rtx")["tensorrt-rtx"] == "absent":
        raise MissingExtra("tensorrt-rtx", TensorRtRtx.extra)
    try:
        import tensorrt_rtx
    except (ImportError, OSError) as error:
        raise InputError(f"tensorrt-rtx does not load: {error}\n  Install it again.") from error
    library: ModuleType = tensorrt_rtx
    return library
