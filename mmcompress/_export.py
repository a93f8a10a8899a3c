"""Torch modules to lean ONNX graphs. Every call of transformers' young exporters is in this file."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mmcompress.errors import StageError
from mmcompress.runtimes._axes import Bounds, bounds_of, write_bounds

if TYPE_CHECKING:
    import onnx_ir

    from mmcompress.families import Graph

OPSET = 20
INLINE_BYTES = 1_500_000_000
"""Weights are inside the .onnx file below this (protobuf ends at 2 GiB), otherwise in ``<name>.onnx.data`` beside it."""


def export_graph(graph: Graph, path: Path) -> dict[str, int]:
    """Trace a module, write it as ONNX; gives how many operators of each type the graph has.

    Raises:
        StageError: the module cannot be traced, its outputs have other names, or an axis became fixed.
    """
    program = _trace(_identified(graph))
    real = {_identifier(name): name for name in graph.inputs}
    for value in program.graph.inputs:
        value.name = real[str(value.name)]
    found = tuple(value.name for value in program.graph.outputs)
    if found != graph.outputs:
        raise StageError(f"graph {graph.name}: exported outputs {found}, expected {graph.outputs}")
    rename_axes(program, graph)
    constant_shapes(program)
    strip(program)
    save(program, path)
    return fold_constants(path, bounds_of(graph))


def _identifier(name: str) -> str:
    return name.replace(".", "_")


def _identified(graph: Graph) -> Graph:
    """The graph with inputs whose names Python takes for parameters, as the exporter needs them."""
    if all(name.isidentifier() for name in graph.inputs):
        return graph
    import torch

    class Identified(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = graph.module

        def forward(self, **inputs: torch.Tensor) -> Any:
            return self.inner(**{name: inputs[_identifier(name)] for name in graph.inputs})

    return dataclasses.replace(
        graph,
        module=Identified().eval(),
        inputs={_identifier(name): value for name, value in graph.inputs.items()},
        dynamic={_identifier(name): axes for name, axes in graph.dynamic.items()},
    )


def _trace(graph: Graph) -> onnx_ir.Model:
    import torch
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    check: Any = torch._check
    exporter: Any = OnnxExporter

    def same_axes(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Axes of one name have one length: without this each input gets symbols of its own."""
        first: dict[str, Any] = {}
        for name, axes in graph.dynamic.items():
            for axis, symbol in axes.items():
                check(kwargs[name].shape[axis] == first.setdefault(symbol, kwargs[name].shape[axis]))

    # Dim.DYNAMIC finds an axis's limits by itself (24 tokens) and, unlike Dim.AUTO, refuses to make it fixed.
    shapes = {name: {axis: torch.export.Dim.DYNAMIC for axis in axes} for name, axes in graph.dynamic.items()}
    config = OnnxConfig(dynamic_shapes=shapes, optimize=True, opset_version=OPSET)
    hook = graph.module.register_forward_pre_hook(same_axes, with_kwargs=True)
    try:
        with _quiet():
            program, _ = exporter().export_program(graph.module, dict(graph.inputs), config)
    except (RuntimeError, ValueError, TypeError, torch._dynamo.exc.TorchDynamoException) as error:
        raise StageError(f"graph {graph.name}: cannot be exported: {type(error).__name__}: {error}") from error
    finally:
        hook.remove()
    return cast("onnx_ir.Model", program)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What the exporters print and warn about concerns their authors: versions, operators of libraries not installed."""
    names = ("transformers", "torch.onnx", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def rename_axes(program: onnx_ir.Model, graph: Graph) -> None:
    """Give symbolic axes the names of ``graph.dynamic`` in place of the tracer's (``s43``).

    Raises:
        StageError: an axis that should vary has a fixed length.
    """
    import onnx_ir

    names: dict[str, str] = {}
    for value in program.graph.inputs:
        for axis, name in graph.dynamic.get(value.name or "", {}).items():
            symbol = value.shape[axis] if value.shape is not None else None
            if isinstance(symbol, int) or symbol is None:
                raise StageError(f"graph {graph.name}: axis {axis} of {value.name} became fixed at {symbol}")
            names[str(symbol.value)] = name
    for value in (*program.graph.inputs, *(output for node in program.graph for output in node.outputs)):
        if value.shape is not None:
            value.shape = onnx_ir.Shape(
                [dim if isinstance(dim, int) else names.get(str(dim.value), dim.value) for dim in value.shape]
            )


def constant_shapes(program: onnx_ir.Model) -> None:
    """Replace computed shapes of Reshape by constants where all axes but one are known or stay where they are.

    Shape arithmetic costs a kernel call per operator on every run, and hides shapes from a runtime's optimizer.
    """
    import numpy as np
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    for node in program.graph:
        if node.op_type != "Reshape" or node.inputs[1] is None or node.inputs[1].const_value is not None:
            continue
        target = constant_shape(_dims(node.inputs[0]), _dims(node.outputs[0]))
        if target is None:
            continue
        name = f"{node.outputs[0].name}_shape"
        value = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(np.array(target, np.int64), name=name))
        program.graph.register_initializer(value)
        node.replace_input_with(1, value)
        node.attributes.pop("allowzero", None)
    RemoveUnusedNodesPass()(program)


def _dims(value: onnx_ir.Value | None) -> list[int | str] | None:
    if value is None or value.shape is None:
        return None
    return [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]


def constant_shape(before: list[int | str] | None, after: list[int | str] | None) -> list[int] | None:
    """A constant that Reshape takes for ``before -> after``: 0 copies the axis, -1 is what is left; None if there is none."""
    if after is None:
        return None
    shape = []
    for axis, dim in enumerate(after):
        if isinstance(dim, int):
            shape.append(dim)
        elif before is not None and axis < len(before) and before[axis] == dim:
            shape.append(0)
        else:
            shape.append(-1)
    return shape if shape.count(-1) <= 1 else None


def strip(program: onnx_ir.Model) -> None:
    """Drop what no runtime reads: the tracer's stack traces and the shapes between operators (half a megabyte)."""
    program.metadata_props.clear()
    program.doc_string = None
    program.graph.metadata_props.clear()
    program.graph.doc_string = None
    for node in program.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()
            if not output.is_graph_output():
                output.shape = None
                output.type = None
    for value in (*program.graph.inputs, *program.graph.outputs, *program.graph.initializers.values()):
        value.metadata_props.clear()


def save(program: onnx_ir.Model, path: Path) -> None:
    """Write a graph; its weights are inside the file unless they are too large for it."""
    import onnx_ir

    size = sum(
        value.const_value.nbytes for value in program.graph.initializers.values() if value.const_value is not None
    )
    onnx_ir.save(program, path, external_data=None if size < INLINE_BYTES else f"{path.name}.data")


def fold_constants(path: Path, bounds: Bounds) -> dict[str, int]:
    """Compute what depends on weights alone, in place; gives how many operators of each type are left.

    The exporter leaves large and split constants to the runtime, and a weight that is cut at run time is quantized
    nowhere. ONNX Runtime's basic optimizations fold all of them and keep to standard operators. Graphs whose weights
    lie beside them stay as they are. The file keeps the bounds of its axes.
    """
    import onnx
    import onnxruntime

    if not path.with_name(f"{path.name}.data").exists():
        folded = path.with_name(f"{path.stem}.folded.onnx")
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folded)
        options.log_severity_level = 3
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        folded.replace(path)
    model = onnx.load(path, load_external_data=False)
    domains = {node.domain for node in model.graph.node}
    if domains - {"", "ai.onnx"}:
        raise StageError(f"{path.stem}: operators of {', '.join(sorted(domains))} in a graph for every runtime")
    used = [entry for entry in model.opset_import if entry.domain in domains]
    del model.opset_import[:]
    model.opset_import.extend(used)
    del model.graph.value_info[:]
    write_bounds(model, bounds)
    onnx.save(model, path)
    return dict(sorted(Counter(node.op_type for node in model.graph.node).items()))
