"""Static INT8 of ONNX graphs: what is seen, what is smoothed, which ranges are taken. Shared by the runtimes' schemes."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmcompress.errors import StageError
from mmcompress.families import Feeds
from mmcompress.families._class_table import SCORES
from mmcompress.runtimes import Scheme
from mmcompress.runtimes._axes import Bounds, read_bounds, write_bounds
from mmcompress.runtimes._calibrate import Statistics, observe
from mmcompress.runtimes._fuse import FUSED, fuse_products
from mmcompress.runtimes._histogram import Calibrator, range_of
from mmcompress.runtimes._smooth import correct_biases, smooth
from mmcompress.runtimes._tables import quantize_tables

if TYPE_CHECKING:
    import onnx

PRODUCTS = ("MatMul", "Gemm", "Conv")


@dataclass(frozen=True)
class Choice:
    """How one graph is quantized, within what the scheme says."""

    calibrator: Calibrator = "minmax"
    smoothing: float | None = None
    """SmoothQuant's alpha."""
    bias_correction: bool = False
    float_nodes: tuple[str, ...] = ()
    """Operators that stay float, by name."""


@dataclass(frozen=True)
class Calibrated:
    """A float graph, smoothed and with its tables in INT8, and what its operators saw."""

    name: str
    model: onnx.ModelProto
    bounds: Bounds
    candidates: tuple[str, ...]
    """Operators that the scheme runs in INT8, by name."""
    tables: tuple[str, ...]
    smoothing: float | None
    smoothed: int
    """Activations that were scaled."""
    statistics: Statistics


def quantize_graph(
    source: Path,
    output: Path,
    scheme: Scheme,
    feeds: Iterable[Feeds],
    nodes_to_exclude: Collection[str] = (),
    choice: Choice | None = None,
) -> dict[str, Any]:
    """Quantize a graph by a scheme, with ranges from ``feeds``, which are read twice where activations are smoothed.

    Products of two activations (attention) stay float: there is no weight to make smaller, and softmax is sensitive.
    Gives which weighted operators run in INT8 and which in float, and the tables, by node name.

    Raises:
        StageError: nothing in the graph matches the scheme, or the quantizer fails.
    """
    choice = choice or Choice()
    calibrated = calibrate(source, scheme, feeds, nodes_to_exclude, choice.smoothing)
    return write_int8(calibrated, output, scheme, choice)


def calibrate(
    source: Path,
    scheme: Scheme,
    feeds: Iterable[Feeds],
    nodes_to_exclude: Collection[str] = (),
    smoothing: float | None = None,
) -> Calibrated:
    """See what the operators of a float graph are fed.

    Raises:
        StageError: nothing in the graph matches the scheme.
    """
    import onnx

    model = onnx.load(source)
    bounds = read_bounds(model)
    tables = quantize_tables(model, nodes_to_exclude, scheme.tables)
    chosen = [
        node.name
        for node in weighted_nodes(model)
        if node.op_type in scheme.operators and node.name not in nodes_to_exclude and SCORES not in node.output
    ]
    if not chosen:
        raise StageError(f"{source.name}: no {', '.join(scheme.operators)} with weights; there is nothing to quantize")
    tensors = watched_tensors(model, chosen, scheme)
    statistics = observe(model, tensors, feeds, source.name)
    smoothed = 0
    if smoothing is not None:
        smoothed = smooth(model, statistics, chosen, smoothing)
        if smoothed:
            statistics = observe(model, tensors, feeds, source.name)
    return Calibrated(source.name, model, bounds, tuple(chosen), tuple(tables), smoothing, smoothed, statistics)


def watched_tensors(model: onnx.ModelProto, chosen: Collection[str], scheme: Scheme) -> dict[str, int]:
    """Tensors that need a range, with the axis of their channels: what goes into products, and what is not left float."""
    found: dict[str, int] = {}
    for node in model.graph.node:
        if node.name in chosen:
            axis = 1 if node.op_type == "Conv" else -1
            found[node.input[0]] = axis
            if node.op_type not in scheme.float_outputs:
                found[node.output[0]] = axis
    return found


def write_int8(calibrated: Calibrated, output: Path, scheme: Scheme, choice: Choice) -> dict[str, Any]:
    """Write the graph in INT8 by a choice; gives which operators run in INT8 and which in float.

    Raises:
        StageError: every operator is left in float, or the quantizer fails.
    """
    import onnx

    assert choice.smoothing == calibrated.smoothing
    chosen = [name for name in calibrated.candidates if name not in choice.float_nodes]
    if not chosen:
        raise StageError(f"{calibrated.name}: every operator is left in float")
    model = onnx.ModelProto()
    model.CopyFrom(calibrated.model)
    corrected = 0
    if choice.bias_correction:
        levels = 63 if scheme.reduce_range else 127
        corrected = correct_biases(model, calibrated.statistics, chosen, levels, scheme.per_channel)
    levels = 254 if scheme.symmetric_activations else 255
    ranges = {
        name: range_of(calibrated.statistics[name].histogram, choice.calibrator, levels)
        for name in watched_tensors(model, chosen, scheme)
    }
    weighted = [node.name for node in weighted_nodes(model)]
    _quantize_static(model, chosen, scheme, ranges, output)
    quantized = onnx.load(output)
    _strip(quantized)
    write_bounds(quantized, calibrated.bounds)
    int8 = int8_products(quantized)
    missing = sorted(set(chosen) - int8)
    if missing:
        raise StageError(
            f"{calibrated.name}: the quantizer left {len(missing)} operators in float: {', '.join(missing)}"
        )
    if scheme.fused_products:
        fuse_products(quantized)
    onnx.save(quantized, output)
    return {
        "int8": chosen,
        "float": [name for name in weighted if name not in int8],
        "int8_tables": list(calibrated.tables),
        "calibrator": choice.calibrator,
        "smoothing": choice.smoothing,
        "smoothed": calibrated.smoothed,
        "corrected_biases": corrected,
        "bytes": output.stat().st_size,
    }


def weighted_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """MatMul, Gemm and Conv whose second input is a constant."""
    constants = {initializer.name for initializer in model.graph.initializer}
    return [node for node in model.graph.node if node.op_type in PRODUCTS and node.input[1] in constants]


def _quantize_static(
    model: onnx.ModelProto, chosen: list[str], scheme: Scheme, ranges: Mapping[str, tuple[float, float]], output: Path
) -> None:
    """ONNX Runtime's quantizer with ranges of ours, which it reads as its own cache of a calibration."""
    import numpy as np
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize
    from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data

    found = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    # It advises a step that ours replaced: the exported graph is folded already.
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(prefix="mmcompress-ranges-") as folder:
            cache = Path(folder) / "ranges.json"
            save_tensors_data(TensorsData(CalibrationMethod.MinMax, found), cache)
            quantize(
                model,
                str(output),
                None,
                calibration_cache_path=cache,
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
    """Names of the products both of whose factors are dequantized, or that take them in INT8."""
    dequantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return {
        node.name
        for node in model.graph.node
        if node.op_type == FUSED or (node.op_type in PRODUCTS and dequantized >= set(node.input[:2]))
    }


def _strip(model: onnx.ModelProto) -> None:
    del model.graph.value_info[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
