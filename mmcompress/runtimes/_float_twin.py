"""A quantized graph in float again: where INT8 does not build or is slower, the device takes this one by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmcompress.errors import StageError
from mmcompress.runtimes._axes import read_bounds, write_bounds
from mmcompress.runtimes._fuse import FUSED

if TYPE_CHECKING:
    import onnx


def write_float_twin(source: Path, output: Path) -> None:
    """Write ``source`` without its Q/DQ pairs: weights are the rounded ones, activations are not rounded any more.

    Raises:
        StageError: it holds integer operators that are more than Q/DQ pairs.
    """
    import onnx

    model = onnx.load(source)
    bounds = read_bounds(model)
    _unfuse(model)
    _dequantize_constants(model)
    _drop_pairs(model)
    _widen_tables(model)
    left = sorted(
        {node.op_type for node in model.graph.node if "Quantize" in node.op_type or "Integer" in node.op_type}
    )
    if left:
        raise StageError(
            f"{source.name}: {', '.join(left)} cannot be written in float\n  Build the package again in fp32."
        )
    if all(node.domain in ("", "ai.onnx") for node in model.graph.node):
        standard = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
        del model.opset_import[:]
        model.opset_import.extend(standard)
    write_bounds(model, bounds)
    _save(model, output)


def _unfuse(model: onnx.ModelProto) -> None:
    """Write ONNX Runtime's fused INT8 products as ``DequantizeLinear`` of both factors, ``MatMul`` and ``Add``."""
    from onnx import helper

    kept = []
    for node in model.graph.node:
        if node.op_type != FUSED:
            kept.append(node)
            continue
        left, right, product = (f"{node.output[0]}.{part}" for part in ("left", "right", "product"))
        factors = [[node.input[place] for place in range(side, 6, 2)] for side in range(2)]
        biased = len(node.input) > 6 and bool(node.input[6])
        kept.append(helper.make_node("DequantizeLinear", factors[0], [left], f"{node.name}.left"))
        kept.append(helper.make_node("DequantizeLinear", factors[1], [right], f"{node.name}.right", axis=1))
        kept.append(helper.make_node("MatMul", [left, right], [product if biased else node.output[0]], node.name))
        if biased:
            kept.append(helper.make_node("Add", [product, node.input[6]], list(node.output), f"{node.name}.bias"))
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _dequantize_constants(model: onnx.ModelProto) -> None:
    """Replace constants and their ``DequantizeLinear`` by what they stand for."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or any(name and name not in constants for name in node.input):
            kept.append(node)
            continue
        stored, scale = (numpy_helper.to_array(constants[name]) for name in node.input[:2])
        zero = numpy_helper.to_array(constants[node.input[2]]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
        axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
        value = (stored.astype(np.float64) - _along(zero, axis, stored.ndim)) * _along(scale, axis, stored.ndim)
        model.graph.initializer.append(numpy_helper.from_array(value.astype(scale.dtype), node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _widen_tables(model: onnx.ModelProto) -> None:
    """Hold INT8 tables whose rows are cast to float as floats of the same numbers; the cast then changes nothing."""
    from onnx import TensorProto, numpy_helper

    tables = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
    for tensor in model.graph.initializer:
        if tensor.name in tables and tensor.data_type in (TensorProto.INT8, TensorProto.UINT8):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def _along(values: np.ndarray, axis: int, dimensions: int) -> np.ndarray:
    """One value, or one per channel, in a shape that goes with a tensor's."""
    if values.size == 1:
        return values.reshape(())
    shape = [1] * dimensions
    shape[axis] = values.size
    return values.reshape(shape)


def _drop_pairs(model: onnx.ModelProto) -> None:
    """Let what reads a dequantized activation read the activation itself; forget constants that nothing reads."""
    from onnx import helper

    rounded = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    outputs = {value.name for value in model.graph.output}
    exact: dict[str, str] = {}
    kept = []
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in rounded:
            source = rounded[node.input[0]]
            exact[node.output[0]] = exact.get(source, source)
            if node.output[0] in outputs:
                kept.append(helper.make_node("Identity", [exact[node.output[0]]], [node.output[0]]))
            continue
        for index, name in enumerate(node.input):
            node.input[index] = exact.get(name, name)
        kept.append(node)
    read = {name for node in kept if node.op_type != "QuantizeLinear" for name in node.input} | outputs
    kept = [node for node in kept if node.op_type != "QuantizeLinear" or node.output[0] in read]
    read |= {name for node in kept for name in node.input}
    constants = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(constants)


def _save(model: onnx.ModelProto, output: Path) -> None:
    """One file, or two where protobuf's limit of 2 GiB asks for it."""
    import onnx

    large = model.ByteSize() > 1_900_000_000
    data = {"save_as_external_data": True, "location": f"{output.name}.data"} if large else {}
    output.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, output, **data)
