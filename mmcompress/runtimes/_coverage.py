"""Coverage: of each operator that does products, the precision asked for, what the built engine runs, and why they differ."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmcompress.component import JSON
from mmcompress.families import Feeds
from mmcompress.families._class_table import SCORES
from mmcompress.runtimes._fuse import FUSED
from mmcompress.runtimes._quantize import PRODUCTS, int8_products

if TYPE_CHECKING:
    import onnx

Asked = Literal["int8", "float"]
ATTENTION = ("Attention", "MultiHeadAttention", "LSTM", "GRU")
"""Operators that hold products which no quantizer of ours reaches."""


@dataclass(frozen=True)
class Covered:
    """One operator with products."""

    name: str
    operator: str
    weighted: bool
    """Whether one of its factors is a weight."""
    asked: Asked
    runs: str
    """``int8``, ``float`` or ``unknown``."""
    macs: int
    """Multiply-accumulates per example."""
    why: str = ""
    """Why it runs otherwise than asked, or was not asked to run in INT8."""


def coverage(graph: Path, asked: Mapping[str, Any], engine: Mapping[str, str] | None, feeds: Feeds) -> dict[str, JSON]:
    """Coverage of one graph.

    Args:
        graph: The graph that was compiled, with Q/DQ where it is quantized.
        asked: What the quantizer told: operators by name in ``int8`` and ``float``; nothing of a graph in float.
        engine: What the engine runs, ``int8`` or ``float``, by operator name; None where it cannot be looked into here.
        feeds: Inputs of one example, for the shapes.
    """
    import onnx

    model = onnx.load(graph)
    wanted, quantized = set(asked.get("int8", ())), int8_products(model)
    counts = product_macs(model, feeds)
    weights = weight_like(model)
    found = []
    for node in model.graph.node:
        if node.op_type not in (*PRODUCTS, FUSED, *ATTENTION):
            continue
        weighted = node.op_type in ATTENTION or node.input[1] in weights
        runs = "unknown" if engine is None else engine.get(node.name, "float")
        found.append(
            Covered(
                name=node.name,
                operator=node.op_type,
                weighted=weighted,
                asked="int8" if node.name in wanted else "float",
                runs=runs,
                macs=counts.get(node.name, 0),
                why=_why(node, node.name in wanted, node.name in quantized, weighted, runs, bool(asked)),
            )
        )
    return summary(found)


def summary(found: Sequence[Covered]) -> dict[str, JSON]:
    """Operators, and the share of multiply-accumulates of weighted products that runs in float (0 to 1)."""
    weighted = [item for item in found if item.weighted]
    total = sum(item.macs for item in weighted)
    in_float = sum(
        item.macs for item in weighted if item.runs == "float" or (item.runs == "unknown" and item.asked == "float")
    )
    return {
        "operators": [asdict(item) for item in found],
        "float_share_of_weighted_macs": round(in_float / total, 6) if total else 0.0,
        "differs": [item.name for item in found if item.runs not in ("unknown", item.asked)],
    }


def _why(node: onnx.NodeProto, wanted: bool, quantized: bool, weighted: bool, runs: str, int8: bool) -> str:
    if wanted and not quantized:
        return "the quantizer gave it no Q/DQ"
    if wanted and runs == "float":
        return "the engine computes it in float: it has no INT8 kernel for it here"
    if wanted or not int8:
        return ""
    if node.op_type in ATTENTION:
        return "its weights lie inside one operator, which got no Q/DQ"
    if SCORES in node.output:
        return "the comparison with the table of classes stays float"
    return (
        "its operator was left in float" if weighted else "a product of two activations has no weight to make smaller"
    )


def weight_like(model: onnx.ModelProto) -> set[str]:
    """Names of constants, and of what comes of them alone (dequantized, transposed, reshaped, split)."""
    names = {value.name for value in model.graph.initializer}
    for node in model.graph.node:
        read = [name for name in node.input if name]
        if node.op_type == "Constant" or (read and names >= set(read)):
            names |= set(node.output)
    return names


def product_macs(model: onnx.ModelProto, feeds: Feeds) -> dict[str, int]:
    """Multiply-accumulates of MatMul, Gemm and Conv by name, from the shapes of one run."""
    from mmcompress.runtimes._calibrate import session_with_outputs

    nodes = [node for node in model.graph.node if node.op_type in (*PRODUCTS, FUSED, "Attention")]
    constants = {value.name: tuple(value.dims) for value in model.graph.initializer}
    given = {value.name for value in model.graph.input}
    wanted = list(dict.fromkeys(name for node in nodes for name in (node.input[0], node.input[1], node.output[0])))
    names = [name for name in wanted if name not in constants and name not in given]
    with session_with_outputs(model, names) as session:
        values: list[NDArray[Any]] = session.run(names, feeds)
    shapes = {name: value.shape for name, value in zip(names, values, strict=True)}
    shapes |= {name: value.shape for name, value in feeds.items()} | constants
    return {node.name: _macs(node, shapes) for node in nodes}


def _macs(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    left, right, output = (shapes[name] for name in (node.input[0], node.input[1], node.output[0]))
    size = int(np.prod(output))
    if node.op_type == "Attention":  # the product with the weights of query, key and value, which stand side by side
        return int(np.prod(left)) * int(right[1])
    if node.op_type == "Conv":
        return size * int(np.prod(right[1:]))
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return size * int(left[0] if transposed else left[-1])


# --- what engines run ----------------------------------------------------------------------------------------------

_INT8_KERNELS = ("QLinearMatMul", FUSED, "QGemm", "QLinearConv", "DynamicQuantizeMatMul", "QAttention")
_ADDED = re.compile(r"(_token_\d+|/\w+/)$")
"""What ONNX Runtime adds to the name of an operator that it replaces."""


def onnxruntime_engine(graph: Path, provider: str = "CPUExecutionProvider") -> dict[str, str]:
    """What ONNX Runtime runs, by the names of the products in its optimized graph."""
    import tempfile

    import onnx

    from mmcompress.runtimes.onnxruntime import load_library

    onnxruntime = load_library()
    with tempfile.TemporaryDirectory(prefix="mmcompress-coverage-") as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        onnxruntime.InferenceSession(str(graph), options, providers=[provider])
        optimized = onnx.load(options.optimized_model_filepath, load_external_data=False)
    return {
        _ADDED.sub("", node.name): "int8" if node.op_type in _INT8_KERNELS else "float" for node in optimized.graph.node
    }


def openvino_engine(compiled: Any) -> dict[str, str]:
    """What OpenVINO runs, by the names of the layers that its own were made of."""
    found: dict[str, str] = {}
    for operation in compiled.get_runtime_model().get_ordered_ops():
        info = operation.get_rt_info()
        precision = str(info["runtimePrecision"].astype(str)) if "runtimePrecision" in info else ""
        origins = str(info["originalLayersNames"].astype(str)) if "originalLayersNames" in info else ""
        for name in (origin.partition("/Dequantization")[0] for origin in origins.split(",")):
            if precision in ("i8", "u8") or name not in found:
                found[name] = "int8" if precision in ("i8", "u8") else "float"
    return found
