"""Static INT8 of ONNX graphs by ONNX Runtime's quantizer, and embedding tables by rows. Shared by the runtimes' schemes."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmcompress.errors import StageError
from mmcompress.families import Feeds
from mmcompress.runtimes import Scheme, TableForm
from mmcompress.runtimes._axes import read_bounds, write_bounds

if TYPE_CHECKING:
    import onnx

SMALLEST_TABLE = 4096
"""Elements from which an embedding table is worth the three operators that read it by rows."""


def quantize_graph(
    source: Path, output: Path, scheme: Scheme, feeds: Iterator[Feeds], nodes_to_exclude: Collection[str] = ()
) -> dict[str, Any]:
    """Quantize a graph by a scheme; ranges are minimum and maximum over ``feeds``.

    Products of two activations (attention) stay float: there is no weight to make smaller, and softmax is sensitive.
    Gives which weighted operators run in INT8 and which in float, and the tables, by node name.

    Raises:
        StageError: nothing in the graph matches the scheme, or the quantizer fails.
    """
    import onnx

    model = onnx.load(source)
    bounds = read_bounds(model)
    tables = quantize_tables(model, nodes_to_exclude, scheme.tables)
    weighted = weighted_nodes(model)
    chosen = [node.name for node in weighted if node.op_type in scheme.operators and node.name not in nodes_to_exclude]
    if not chosen:
        raise StageError(f"{source.name}: no {', '.join(scheme.operators)} with weights; there is nothing to quantize")
    _quantize_static(model, chosen, scheme, feeds, output)
    quantized = onnx.load(output)
    _strip(quantized)
    write_bounds(quantized, bounds)
    onnx.save(quantized, output)
    int8 = int8_products(quantized)
    missing = sorted(set(chosen) - int8)
    if missing:
        raise StageError(f"{source.name}: the quantizer left {len(missing)} operators in float: {', '.join(missing)}")
    return {
        "int8": chosen,
        "float": [node.name for node in weighted if node.name not in int8],
        "int8_tables": tables,
        "bytes": output.stat().st_size,
    }


def weighted_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """MatMul, Gemm and Conv whose second input is a constant."""
    constants = {initializer.name for initializer in model.graph.initializer}
    return [
        node for node in model.graph.node if node.op_type in ("MatMul", "Gemm", "Conv") and node.input[1] in constants
    ]


def _quantize_static(
    model: onnx.ModelProto, chosen: list[str], scheme: Scheme, feeds: Iterator[Feeds], output: Path
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Feeds | None:
            return next(feeds, None)

    # It advises a step that ours replaced: the exported graph is folded already.
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        quantize(
            model,
            str(output),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(scheme.operators),
            per_channel=scheme.per_channel,
            reduce_range=scheme.reduce_range,
            activation_type=QuantType.QUInt8 if scheme.activations == "uint8" else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=chosen,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "WeightSymmetric": True,
                "ActivationSymmetric": scheme.symmetric_activations,
                "QuantizeBias": scheme.quantize_bias,
                "OpTypesToExcludeOutputQuantization": list(scheme.float_outputs),
            },
        )
    except (RuntimeError, ValueError) as error:
        raise StageError(f"onnxruntime's quantizer failed: {error}") from error
    finally:
        root.setLevel(level)


def int8_products(model: onnx.ModelProto) -> set[str]:
    """Names of the products both of whose factors are dequantized."""
    dequantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return {
        node.name
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm", "Conv") and dequantized >= set(node.input[:2])
    }


def _strip(model: onnx.ModelProto) -> None:
    del model.graph.value_info[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""


# --- embedding tables ----------------------------------------------------------------------------------------------


def quantize_tables(
    model: onnx.ModelProto, nodes_to_exclude: Collection[str] = (), form: TableForm = "cast"
) -> list[str]:
    """Embedding tables to INT8 with a scale per row, in place; gives the names of the Gather nodes that read them.

    A table of one scale would give rare words few of its 255 steps.
    """
    from onnx import numpy_helper

    initializers = {initializer.name: initializer for initializer in model.graph.initializer}
    uses = {name: sum(name in node.input for node in model.graph.node) for name in initializers}
    found = []
    for index, node in reversed(list(enumerate(model.graph.node))):
        table = initializers.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None or node.name in nodes_to_exclude or uses[table.name] > 1 or not _is_table(node, table):
            continue
        rows, scales = quantize_rows(numpy_helper.to_array(table))
        model.graph.initializer.remove(table)
        model.graph.initializer.append(numpy_helper.from_array(rows, f"{table.name}_int8"))
        model.graph.initializer.append(
            numpy_helper.from_array(scales if form == "cast" else scales[:, 0], f"{table.name}_scales")
        )
        parts = (_cast_rows if form == "cast" else _dequantize_table)(node)
        del model.graph.node[index]
        for offset, part in enumerate(parts):
            model.graph.node.insert(index + offset, part)
        found.append(node.name)
    return found[::-1]


def _cast_rows(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """INT8 rows and their scales are read, and floats made of what was read alone."""
    from onnx import helper

    (name, indices), output = node.input, node.output[0]
    return [
        helper.make_node("Gather", [f"{name}_int8", indices], [f"{output}_int8"], f"{node.name}_int8"),
        helper.make_node("Gather", [f"{name}_scales", indices], [f"{output}_row_scale"], f"{node.name}_scale"),
        helper.make_node("Cast", [f"{output}_int8"], [f"{output}_cast"], f"{node.name}_cast", to=1),
        helper.make_node("Mul", [f"{output}_cast", f"{output}_row_scale"], [output], f"{node.name}_mul"),
    ]


def _dequantize_table(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The table is dequantized as a weight is, and read after that; a compiler may swap the two."""
    from onnx import helper

    (name, indices), output = node.input, node.output[0]
    return [
        helper.make_node(
            "DequantizeLinear", [f"{name}_int8", f"{name}_scales"], [f"{name}_float"], f"{node.name}_dequantize", axis=0
        ),
        helper.make_node("Gather", [f"{name}_float", indices], [output], node.name),
    ]


def _is_table(node: onnx.NodeProto, table: onnx.TensorProto) -> bool:
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    return axis == 0 and table.data_type == 1 and len(table.dims) == 2 and int(np.prod(table.dims)) >= SMALLEST_TABLE


def quantize_rows(table: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric INT8 by rows: ``table`` [n, d] is about ``rows`` [n, d] times ``scales`` [n, 1]."""
    scales = np.abs(table).max(axis=1, keepdims=True) / 127.0
    scales[scales == 0.0] = 1.0
    return np.rint(table / scales).astype(np.int8), scales.astype(np.float32)
