"""The graphs of a package that a device compiles: which of them are right there, and what they are in float."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmcompress.errors import InputError
from mmcompress.runtimes import Runtime
from mmcompress.runtimes._tensorrt_runtime import GRAPHS


def stored_graphs(folder: Path, manifest: Mapping[str, Any], runtime: Runtime) -> dict[str, Path]:
    """The graphs of a package that ``runtime`` can read, by name.

    Raises:
        InputError: it holds engines of another runtime alone.
    """
    found = {}
    for name, entry in manifest["graphs"].items():
        kept = folder / GRAPHS / f"{name}.onnx"
        path = kept if kept.is_file() else folder / entry["file"]
        if path.suffix != ".onnx" and manifest["target"]["runtime"] != runtime.component_name():
            raise InputError(
                f"{folder}: {entry['file']} is {manifest['target']['runtime']}'s own format, and the package holds no"
                f" ONNX graph for {runtime.component_name()}\n"
                "  Compile the recipe's package for onnxruntime in its place."
            )
        if path.suffix == ".engine":
            raise InputError(
                f"{folder}: an engine without its graph: it was built on the machine that it is for\n"
                "  Compile the recipe's package for onnxruntime in its place."
            )
        found[name] = path
    return found


def saturates(built_for: str, here: str | None) -> str:
    """Why INT8 graphs for a machine class are wrong on this one; empty where they are right.

    Products of INT8 saturate on x86 without VNNI, unless weights were kept to seven bits for it.
    """
    if here is None or not here.startswith("x86") or here in ("x86-vnni", built_for):
        return ""
    return f"its INT8 graphs are for {built_for}, and products may saturate on {here}"


def stored_floats(folder: Path, graphs: Mapping[str, Path], precision: str) -> dict[str, Path]:
    """Float graphs that the package brings for this case; none where it brings none."""
    found = {name: folder / GRAPHS / precision / f"{name}.onnx" for name in graphs}
    return found if all(path.is_file() for path in found.values()) else {}


def float_twins(graphs: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """The graphs in float again.

    Raises:
        InputError: they are no ONNX graphs, or the onnx library, which rewrites them, is not installed.
    """
    from importlib.util import find_spec

    from mmcompress.runtimes._float_twin import write_float_twin

    if find_spec("onnx") is None:
        raise InputError("not tried: the onnx library writes a quantized graph in float again\n  pip install onnx")
    for name, path in graphs.items():
        if path.suffix != ".onnx":
            raise InputError(f"{path.name} is no ONNX graph; only INT8 is known of it")
        write_float_twin(path, folder / f"{name}.onnx")
    return {name: folder / f"{name}.onnx" for name in graphs}
