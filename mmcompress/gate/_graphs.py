"""What two sets of ONNX graphs are made of: bytes, operators, which products run in INT8, and where their time goes."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcompress.errors import InputError, require

if TYPE_CHECKING:
    import onnx

_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})
_INT8_PRODUCTS = frozenset(
    {
        "QLinearMatMul",
        "QLinearConv",
        "QGemm",
        "MatMulInteger",
        "ConvInteger",
        "DynamicQuantizeMatMul",
        "MatMulInteger16",
    }
)
_SEEN_THROUGH = frozenset({"Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze"})
_PROFILED_RUNS = 20


@dataclass(frozen=True)
class GraphFacts:
    """One or more graphs, counted."""

    bytes: int
    """Of the graphs with their weights."""
    operators: Mapping[str, int]
    """By type."""
    products: Mapping[str, str]
    """Products with weights, by graph and name: ``int8`` or ``float``."""

    @property
    def int8_coverage(self) -> float | None:
        """The share of products with weights that run in INT8; None where there are no such products."""
        if not self.products:
            return None
        return sum(kind == "int8" for kind in self.products.values()) / len(self.products)


def graph_facts(graphs: Mapping[str, Path]) -> GraphFacts:
    """Count what graphs (by name) are made of; their weights are not read.

    Raises:
        InputError: a file is no ONNX graph.
        MissingExtra: the library that reads them is not installed.
    """
    require("onnx", "gate")
    operators: Counter[str] = Counter()
    products: dict[str, str] = {}
    size = 0
    for name, path in graphs.items():
        model = _read(path)
        size += sum(item.stat().st_size for item in weight_files(path, model))
        operators.update(_kind(node) for node in model.graph.node)
        products |= {f"{name}/{node}": kind for node, kind in _products(model).items()}
    return GraphFacts(size, dict(operators), products)


def graph_inputs(path: Path) -> dict[str, list[str | int]]:
    """What a graph takes: name to type and shape, with axes that vary as ``?``.

    Raises:
        InputError: the file is no ONNX graph.
        MissingExtra: the library that reads it is not installed.
    """
    require("onnx", "gate")
    import onnx

    model = _read(path)
    weights = {item.name for item in model.graph.initializer}
    return {
        item.name: [
            onnx.TensorProto.DataType.Name(item.type.tensor_type.elem_type).lower(),
            *(axis.dim_value or "?" for axis in item.type.tensor_type.shape.dim),
        ]
        for item in model.graph.input
        if item.name not in weights
    }


def weight_files(path: Path, model: onnx.ModelProto) -> list[Path]:
    """The graph's file and those that hold its weights.

    Raises:
        InputError: a graph names weights that are missing or lie outside its folder.
    """
    named = {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    files = [path]
    for name in sorted(named):
        file = path.parent / name
        if not file.resolve().is_relative_to(path.parent.resolve()) or not file.is_file():
            raise InputError(f"{path}: its weights {name!r} are missing, or lie outside its folder")
        files.append(file)
    return files


def _read(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise InputError(f"{path}: not an ONNX graph ({error})") from None
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    if not model.graph.node:
        raise InputError(f"{path}: an ONNX graph without operators")
    return model


def _kind(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def _products(model: onnx.ModelProto) -> dict[str, str]:
    """Products with weights by name, and what they run in: INT8 also where a pair of Q/DQ stands around them."""
    constants = {item.name for item in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    found: dict[str, str] = {}
    for index, node in enumerate(model.graph.node):
        if node.op_type in _INT8_PRODUCTS:
            found[_free(node.name or f"{node.op_type} {index}", found)] = "int8"
        elif node.op_type in _PRODUCTS and len(node.input) > 1:
            kind = _weight_kind(node.input[1], makers, constants)
            if kind is not None:
                found[_free(node.name or f"{node.op_type} {index}", found)] = kind
    return found


def _free(name: str, taken: Mapping[str, str]) -> str:
    return name if name not in taken else f"{name} ({len(taken)})"


def _weight_kind(tensor: str, makers: Mapping[str, onnx.NodeProto], constants: set[str]) -> str | None:
    """What a product's second input is kept in; None where it is no weight."""
    kind = "float"
    while tensor not in constants:
        maker = makers.get(tensor)
        if maker is None:
            return None
        if maker.op_type == "Constant":
            return kind
        if maker.op_type == "DequantizeLinear":
            kind = "int8"
        elif maker.op_type not in _SEEN_THROUGH and maker.op_type != "QuantizeLinear":
            return None
        tensor = maker.input[0]
    return kind


def operator_times(graph: Path, threads: int, batch: int) -> dict[str, float]:
    """Milliseconds per run by operator type, as ONNX Runtime's profiler counts them; a first run is left out."""
    from mmcompress.runtimes._graph_inputs import drawn_feeds
    from mmcompress.runtimes.onnxruntime import load_library

    library = load_library()
    options = library.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="mmcompress-profile-") as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = library.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        inputs = {item.name: (item.type, tuple(item.shape)) for item in session.get_inputs()}
        feeds = drawn_feeds(inputs, graph, batch, 0)
        for _ in range(_PROFILED_RUNS + 1):
            session.run(None, feeds)
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    runs: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = f"{event['args']['op_name']}/{event['name']}"
            runs.setdefault(key, []).append(event["dur"] / 1000)
    totals: Counter[str] = Counter()
    for key, times in runs.items():
        totals[key.partition("/")[0]] += sorted(times[1:] or times)[len(times[1:] or times) // 2]  # type: ignore[assignment]
    return dict(totals)


def changed_operators(baseline: GraphFacts, candidate: GraphFacts, most: int = 3) -> list[str]:
    """Operators that changed precision or number, the largest changes first, as ``LayerNormalization 12 -> 24``."""
    told = []
    fallen = [
        name for name, kind in baseline.products.items() if kind == "int8" and candidate.products.get(name) == "float"
    ]
    if fallen:
        more = f" and {len(fallen) - 1} more" if len(fallen) > 1 else ""
        told.append(f"{fallen[0]}{more} int8 -> float")
    kinds = sorted({*baseline.operators, *candidate.operators})
    counts = [(kind, baseline.operators.get(kind, 0), candidate.operators.get(kind, 0)) for kind in kinds]
    changed = sorted((item for item in counts if item[1] != item[2]), key=lambda item: -abs(item[2] - item[1]))
    return (told + [f"{kind} {before} -> {after}" for kind, before, after in changed])[:most]


def changed_times(baseline: Mapping[str, float], candidate: Mapping[str, float], most: int = 3) -> list[str]:
    """Operator types that take longer, the largest differences first, as ``MatMul +0.41 ms (3.10 -> 3.51)``."""
    slower = sorted(
        ((candidate.get(kind, 0.0) - baseline.get(kind, 0.0), kind) for kind in {*baseline, *candidate}), reverse=True
    )
    return [
        f"{kind} {change:+.3g} ms ({baseline.get(kind, 0.0):.3g} -> {candidate.get(kind, 0.0):.3g})"
        for change, kind in slower[:most]
        if change > 0
    ]


def differing(baseline: Any, candidate: Any, path: str = "") -> list[str]:
    """Where two manifests differ, leaf by leaf, as ``graphs.identity.seed: 0 -> 1``."""
    if isinstance(baseline, Mapping) and isinstance(candidate, Mapping):
        found: list[str] = []
        for key in dict.fromkeys([*baseline, *candidate]):
            found += differing(baseline.get(key), candidate.get(key), f"{path}.{key}" if path else str(key))
        return found
    if baseline == candidate or path.endswith(("key", "digest")):
        return []
    return [f"{path}: {_short(baseline)} -> {_short(candidate)}"]


def _short(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{len(value)} values]"
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
