"""INT8 products as ONNX Runtime's CPU kernel takes them, with their bias.

Its own optimizer makes ``MatMulIntegerToFloat`` of a product between ``DequantizeLinear`` and leaves the bias to an ``Add``
that reads and writes everything once more.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

DOMAIN = "com.microsoft"
FUSED = "MatMulIntegerToFloat"


class _Links:
    """Who makes and who reads what."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.makers: dict[str, onnx.NodeProto] = {}
        self.readers: dict[str, list[int]] = defaultdict(list)
        for index, node in enumerate(self.nodes):
            self.makers.update(dict.fromkeys(node.output, node))
            for name in node.input:
                self.readers[name].append(index)
        self.constants = {value.name: value for value in model.graph.initializer}
        self.outputs = {value.name for value in model.graph.output}

    def bias_of(self, output: str) -> tuple[int, str] | None:
        """The number of the ``Add`` that alone reads a product, and the vector that it adds."""
        reading = self.readers[output]
        if len(reading) != 1 or output in self.outputs or self.nodes[reading[0]].op_type != "Add":
            return None
        first, second = self.nodes[reading[0]].input
        other = second if first == output else first
        is_vector = other in self.constants and len(self.constants[other].dims) == 1
        return (reading[0], other) if is_vector and self.constants[other].dims[0] > 1 else None


def fuse_products(model: onnx.ModelProto) -> int:
    """``DequantizeLinear`` of both factors, ``MatMul`` and ``Add`` of a bias in one, in place; gives how many."""
    import onnx
    from onnx import helper

    links = _Links(model)
    new: dict[int, onnx.NodeProto] = {}
    gone: set[int] = set()
    for index, node in enumerate(links.nodes):
        factors = [links.makers.get(name) for name in node.input[:2]] if node.op_type == "MatMul" else []
        made = [maker for maker in factors if maker is not None and maker.op_type == "DequantizeLinear"]
        if len(made) == 2 and _fits(made[0], made[1], links):
            bias = links.bias_of(node.output[0])
            output = node.output[0] if bias is None else links.nodes[bias[0]].output[0]
            inputs = [factor.input[position] for position in range(3) for factor in made]
            new[index] = helper.make_node(
                FUSED, [*inputs, *([bias[1]] if bias else [])], [output], node.name, domain=DOMAIN
            )
            gone |= {bias[0]} if bias else set()
    if not new:
        return 0
    kept = [onnx.NodeProto() for _ in range(len(links.nodes) - len(gone))]
    for copy, index in zip(kept, (i for i in range(len(links.nodes)) if i not in gone), strict=True):
        copy.CopyFrom(new.get(index, links.nodes[index]))
    used = {name for node in kept for name in node.input} | links.outputs
    del model.graph.node[:]
    model.graph.node.extend(node for node in kept if node.op_type != "DequantizeLinear" or used & set(node.output))
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return len(new)


def _fits(activation: onnx.NodeProto, weight: onnx.NodeProto, links: _Links) -> bool:
    """Zero points are stated, and the weight is a matrix that is quantized by column or as a whole."""
    if len(activation.input) < 3 or len(weight.input) < 3 or weight.input[0] not in links.constants:
        return False
    scale, matrix = links.constants.get(weight.input[1]), links.constants[weight.input[0]]
    axis = next((attribute.i for attribute in weight.attribute if attribute.name == "axis"), 1)
    return scale is not None and len(matrix.dims) == 2 and (not scale.dims or axis in (1, -1))
