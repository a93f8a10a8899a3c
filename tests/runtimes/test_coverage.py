from __future__ import annotations

import deployed
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_quantize import feeds, small_graph

from mmcompress.package import load_package
from mmcompress.runtimes._coverage import coverage, onnxruntime_engine, product_macs
from mmcompress.runtimes._quantize import Choice, quantize_graph
from mmcompress.runtimes.onnxruntime import OnnxRuntime
from mmcompress.runtimes.openvino import OpenVino

ONNX = OnnxRuntime.model_validate({"for": "x86-vnni"})


@pytest.mark.parametrize("runtime", [ONNX, OpenVino()])
def test_what_was_left_in_float_is_told_with_its_share(tmp_path, runtime):
    onnx.save(small_graph(), tmp_path / "small.onnx")
    (tmp_path / "int8").mkdir()
    choice, path = Choice(float_nodes=("first",)), tmp_path / "int8" / "small.onnx"
    facts = quantize_graph(tmp_path / "small.onnx", path, runtime.scheme(), feeds(), choice=choice)
    (tmp_path / "built").mkdir()
    runtime.compile({"small": path}, tmp_path / "built")
    found = coverage(path, facts, runtime.engine_precisions(tmp_path / "built", "small"), feeds(1, rows=1)[0])
    first, second = sorted(found["operators"], key=lambda item: item["name"])
    assert (first["asked"], first["runs"], first["macs"]) == ("float", "float", 16 * 8)
    assert first["why"] == "its operator was left in float"
    assert (second["asked"], second["runs"], second["why"]) == ("int8", "int8", "")
    assert found["float_share_of_weighted_macs"] == 0.5 and found["differs"] == []


def test_int8_that_the_engine_computes_in_float_is_found(tmp_path):
    onnx.save(small_graph(), tmp_path / "small.onnx")
    facts = quantize_graph(tmp_path / "small.onnx", tmp_path / "int8.onnx", ONNX.scheme(), feeds())
    given = feeds(1, rows=1)[0]
    found = coverage(tmp_path / "int8.onnx", facts, {"first": "int8", "second": "float"}, given)
    assert found["differs"] == ["second"] and found["float_share_of_weighted_macs"] == 0.5
    assert "no INT8 kernel" in next(item["why"] for item in found["operators"] if item["name"] == "second")
    silent = coverage(tmp_path / "small.onnx", facts, onnxruntime_engine(tmp_path / "small.onnx"), given)
    assert silent["differs"] == ["first", "second"] and silent["float_share_of_weighted_macs"] == 1.0
    assert {item["why"] for item in silent["operators"]} == {"the quantizer gave it no Q/DQ"}
    unknown = coverage(tmp_path / "int8.onnx", facts, None, given)
    assert {item["runs"] for item in unknown["operators"]} == {"unknown"} and unknown["differs"] == []


def test_attention_that_got_no_int8_is_found(tmp_path):
    """One operator holds the weights of query, key and value, as tools write nn.MultiheadAttention."""
    rng = np.random.default_rng(0)
    values = {"w": rng.normal(size=(8, 24)).astype(np.float32), "b": np.zeros(24, np.float32)}
    values["v"] = rng.normal(size=(8, 8)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["a"], "in"),
        helper.make_node("Attention", ["a", "w", "b"], ["y"], "attention", domain="com.microsoft", num_heads=2),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "attention",
        [value("x", TensorProto.FLOAT, ["batch", 3, 8])],
        [value("y", TensorProto.FLOAT, ["batch", 3, 8])],
        [numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "attention.onnx")
    given = [{"x": rng.normal(size=(2, 3, 8)).astype(np.float32)}]
    facts = quantize_graph(tmp_path / "attention.onnx", tmp_path / "int8.onnx", ONNX.scheme(), given)
    found = coverage(
        tmp_path / "int8.onnx", facts, onnxruntime_engine(tmp_path / "int8.onnx"), {"x": given[0]["x"][:1]}
    )
    attention = next(item for item in found["operators"] if item["name"] == "attention")
    assert (attention["asked"], attention["runs"]) == ("float", "float")
    assert attention["why"] == "its weights lie inside one operator, which got no Q/DQ"
    assert attention["macs"] == 3 * 8 * 24 and found["float_share_of_weighted_macs"] == 0.75


def test_macs_by_hand():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["c"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "g"], ["y"], "gemm", transB=1),
    ]
    value = helper.make_tensor_value_info
    weights = {"w": np.ones((5, 3, 2, 2), np.float32), "g": np.ones((7, 20), np.float32)}
    graph = helper.make_graph(
        nodes,
        "small",
        [value("x", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [value("y", TensorProto.FLOAT, ["batch", 7])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    counts = product_macs(model, {"x": np.ones((1, 3, 4, 4), np.float32)})
    assert counts == {"conv": 5 * 2 * 2 * 3 * 2 * 2, "gemm": 7 * 20}


def test_a_package_tells_its_coverage():
    with load_package(deployed.package(), threads=1) as package:
        found = package.manifest["coverage"]
    assert set(found) == {"vision_model", "text_model"}
    for graph in found.values():
        assert graph["float_share_of_weighted_macs"] == 0.0 and graph["differs"] == []
        products = [item for item in graph["operators"] if not item["weighted"]]
        assert products and {item["why"] for item in products} == {
            "a product of two activations has no weight to make smaller"
        }
