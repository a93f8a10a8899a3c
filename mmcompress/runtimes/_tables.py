"""Embedding tables of ONNX graphs to INT8 with a scale per row."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmcompress.runtimes import TableForm

if TYPE_CHECKING:
    import onnx

SMALLEST_TABLE = 4096
"""Elements from which an embedding table is worth the three operators that read it by rows."""


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
