"""FP16 by casts in the graph, for runtimes that read the precision from it alone."""

from __future__ import annotations

from pathlib import Path

from mmcompress.runtimes._axes import read_bounds, write_bounds

KEPT_FLOAT = (
    *("LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization"),
    *("Softmax", "LogSoftmax", "ReduceMean", "ReduceSum", "ReduceL2", "ReduceSumSquare"),
    *("Pow", "Sqrt", "Exp", "Log", "Reciprocal", "Div", "Clip", "Max", "Min", "Range", "CumSum", "TopK", "Resize"),
)
"""Computed in FP32: sums of squares and exponentials leave FP16's range, and small divisors become zero in it."""


def write_half(source: Path, output: Path) -> None:
    """Write a float graph, or one with Q/DQ pairs, in FP16 but for :data:`KEPT_FLOAT`; inputs and outputs stay FP32.

    The conversion is ONNX Runtime's own (``onnxruntime.transformers.float16``); constants beyond FP16's range, such as
    those of attention masks, become its largest numbers.
    """
    import onnx
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    model = onnx.load(source)
    bounds = read_bounds(model)
    half = convert_float_to_float16(model, keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *KEPT_FLOAT])
    kept, made = [], set()
    for node in half.graph.node:  # a value that two FP32 operators read is cast twice, under one name
        if node.op_type != "Cast" or node.output[0] not in made:
            kept.append(node)
        made.update(node.output)
    del half.graph.node[:]
    half.graph.node.extend(kept)
    write_bounds(half, bounds)
    output.parent.mkdir(parents=True, exist_ok=True)
    large = half.ByteSize() > 1_900_000_000
    data = {"save_as_external_data": True, "location": f"{output.name}.data"} if large else {}
    onnx.save(half, output, **data)
