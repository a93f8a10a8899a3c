from __future__ import annotations

import dataclasses
import time
import tracemalloc

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mmcompress.errors import StageError
from mmcompress.runtimes._calibrate import observe
from mmcompress.runtimes._histogram import BINS, Histogram, range_of
from mmcompress.runtimes._quantize import Choice, calibrate, int8_products, quantize_graph, write_int8
from mmcompress.runtimes._smooth import correct_biases, rounded, smooth, smoothing_scales
from mmcompress.runtimes.onnxruntime import OnnxRuntime

CALIBRATORS = ("minmax", "percentile", "entropy", "mse")
SCHEME = OnnxRuntime.model_validate({"for": "x86-vnni"}).scheme()


def filled(*batches) -> Histogram:
    made = Histogram()
    for batch in batches:
        made.add(np.asarray(batch, np.float32))
    return made


# --- histograms ----------------------------------------------------------------------------------------------------


def test_a_histogram_keeps_every_count_whatever_the_order_of_its_batches():
    rng = np.random.default_rng(0)
    batches = [rng.normal(0, scale, 5000).astype(np.float32) for scale in (1e-6, 1.0, 1000.0)]
    forward, backward = filled(*batches), filled(*batches[::-1])
    assert forward.counts.sum() == backward.counts.sum() == 15000
    assert (forward.exponent, forward.first) == (backward.exponent, backward.first)
    assert len(forward.counts) <= BINS
    edges = forward.width * np.arange(forward.first, forward.first + len(forward.counts) + 1)
    expected, _ = np.histogram(np.concatenate(batches), edges)
    assert np.abs(backward.counts - expected).sum() <= 30, "rounding at edges, and nothing else"
    assert (forward.low, forward.high) == (np.concatenate(batches).min(), np.concatenate(batches).max())


def test_memory_does_not_grow_with_the_number_of_samples():
    rng = np.random.default_rng(0)
    histogram, peaks = Histogram(), []
    for count in (10, 200):
        tracemalloc.start()
        for _ in range(count):
            histogram.add(rng.normal(size=20_000).astype(np.float32))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
    assert histogram.counts.nbytes <= 16 * 1024


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_constant_and_masked_tensors_break_no_calibrator(calibrator):
    assert range_of(filled(np.zeros(9)), calibrator) == (0.0, 0.0)
    low, high = range_of(filled(np.full(9, 3.0)), calibrator)
    assert low == 0.0 and high == pytest.approx(3.0, rel=0.01)
    masked = np.where(np.arange(4000) % 2, np.finfo(np.float32).min, np.linspace(-1, 1, 4000))
    low, high = range_of(filled(masked), calibrator)
    assert -1.0 <= low < -0.9 and 0.9 < high <= 1.0
    assert range_of(filled(np.full(4, -np.inf)), calibrator) == (0.0, 0.0)
    low, high = range_of(filled(np.array([1e-38, 1e29])), calibrator)
    assert low == 0.0 and 0 < high <= 1e29 * 1.01


def test_what_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="not a number"):
        filled([1.0, np.nan])


def test_ranges_without_outliers():
    rng = np.random.default_rng(1)
    values = np.append(rng.normal(size=200_000), 100.0)
    found = {calibrator: range_of(filled(values), calibrator) for calibrator in CALIBRATORS}
    assert found["minmax"][1] == 100.0
    assert found["percentile"][1] == pytest.approx(3.9, abs=0.2), "the 99.99th percentile of magnitudes"
    assert 3.0 < found["entropy"][1] < 20.0
    assert found["mse"][1] < 90.0

    def error(ends):
        scale = (ends[1] - ends[0]) / 255
        return float(((np.clip(np.rint(values / scale) * scale, *ends) - values) ** 2).mean())

    assert error(found["mse"]) < 0.9 * error(found["minmax"])


# --- graphs --------------------------------------------------------------------------------------------------------

C = 16


def small_graph(gain=None, weight=None, bias=True):
    """LayerNormalization, two products that read it, one with a bias."""
    rng = np.random.default_rng(0)
    gain = np.ones(C, np.float32) if gain is None else gain
    weight = rng.normal(size=(C, 8)).astype(np.float32) if weight is None else weight
    values = {"gain": gain, "shift": rng.normal(size=C).astype(np.float32), "w": weight, "b": np.zeros(8, np.float32)}
    values["v"] = rng.normal(size=(C, 8)).astype(np.float32)
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gain", "shift"], ["n"], "norm", axis=-1),
        helper.make_node("MatMul", ["n", "w"], ["p"], "first"),
        helper.make_node("MatMul", ["n", "v"], ["q"], "second"),
        helper.make_node("Add", ["p", "b"], ["r"], "bias"),
        helper.make_node("Add", ["r", "q"], ["y"], "sum"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "small",
        [value("x", TensorProto.FLOAT, ["batch", C])],
        [value("y", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def feeds(count=4, rows=64, seed=3):
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(rows, C)).astype(np.float32)} for _ in range(count)]


def run(model, given):
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, given)[0]


def test_observed_channels_by_hand():
    model = small_graph()
    seen = observe(model, {"x": -1, "n": -1}, feeds(), "small")
    together = np.concatenate([batch["x"] for batch in feeds()])
    assert seen["x"].rows == 256
    assert np.allclose(seen["x"].largest, np.abs(together).max(axis=0))
    assert np.allclose(seen["x"].mean, together.mean(axis=0), atol=1e-6)
    assert seen["n"].histogram.counts.sum() == 256 * C
    with pytest.raises(StageError, match="no calibration examples"):
        observe(model, {"x": -1}, [], "small")


def test_smoothing_by_hand_keeps_the_function_and_evens_the_channels():
    scales = smoothing_scales(np.array([4.0, 9.0, 0.0]), np.array([1.0, 4.0, 2.0]), 0.5)
    assert scales.tolist() == [2.0, 1.5, 1.0], "equation 4; a channel that is always zero stays"
    gain = np.ones(C, np.float32)
    gain[3] = 50.0
    model = small_graph(gain)
    seen = observe(model, {"n": -1}, feeds(), "small")
    expected = run(model, feeds(1)[0])
    assert smooth(model, seen, ["first", "second"], 0.5) == 1
    assert np.abs(run(model, feeds(1)[0]) - expected).max() < 1e-4 * np.abs(expected).max()
    after = observe(model, {"n": -1}, feeds(), "small")["n"].largest
    before = seen["n"].largest
    assert after.max() / np.median(after) < 0.5 * before.max() / np.median(before)
    assert smooth(model, seen, ["first"], 0.5) == 0, "a product that is not chosen reads the same activation"


def test_corrected_biases_bring_the_mean_back():
    model = small_graph()
    seen = observe(model, {"n": -1}, feeds(), "small")
    weight = numpy_helper.to_array(next(w for w in model.graph.initializer if w.name == "w")).astype(float)
    expected = seen["n"].mean @ (weight - rounded(weight, 7, per_channel=True))
    assert correct_biases(model, seen, ["first", "second"], 7, per_channel=True) == 1, "the second has no bias"
    target = next(node for node in model.graph.node if node.name == "bias")
    found = numpy_helper.to_array(next(w for w in model.graph.initializer if w.name == target.input[1]))
    assert np.allclose(found, expected, atol=1e-6) and np.abs(expected).max() > 1e-3


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_every_calibrator_quantizes_a_graph(tmp_path, calibrator):
    onnx.save(small_graph(), tmp_path / "small.onnx")
    choice = Choice(calibrator, smoothing=0.5, bias_correction=True)
    facts = quantize_graph(tmp_path / "small.onnx", tmp_path / "int8.onnx", SCHEME, feeds(), choice=choice)
    assert (facts["int8"], facts["smoothed"], facts["corrected_biases"]) == (["first", "second"], 1, 1)
    exact, found = (run(onnx.load(tmp_path / name), feeds(1, seed=9)[0]) for name in ("small.onnx", "int8.onnx"))
    assert 0 < np.abs(found - exact).mean() < 0.03 * np.abs(exact).mean()


def test_ranges_reach_the_graph(tmp_path):
    onnx.save(small_graph(), tmp_path / "small.onnx")
    calibrated = calibrate(tmp_path / "small.onnx", SCHEME, feeds())
    write_int8(calibrated, tmp_path / "int8.onnx", SCHEME, Choice())
    low, high = range_of(calibrated.statistics["n"].histogram, "minmax")
    scale = next(w for w in onnx.load(tmp_path / "int8.onnx").graph.initializer if w.name == "n_scale")
    assert numpy_helper.to_array(scale) == pytest.approx((high - low) / 255, rel=1e-5)


def test_operators_can_stay_float_but_not_all(tmp_path):
    onnx.save(small_graph(), tmp_path / "small.onnx")
    calibrated = calibrate(tmp_path / "small.onnx", SCHEME, feeds())
    facts = write_int8(calibrated, tmp_path / "int8.onnx", SCHEME, Choice(float_nodes=("first",)))
    assert (facts["int8"], facts["float"]) == (["second"], ["first"])
    with pytest.raises(StageError, match="every operator is left in float"):
        write_int8(calibrated, tmp_path / "int8.onnx", SCHEME, Choice(float_nodes=("first", "second")))


def test_a_broken_activation_names_its_tensor(tmp_path):
    onnx.save(small_graph(np.full(C, np.nan, np.float32)), tmp_path / "small.onnx")
    with pytest.raises(StageError, match=r"small.onnx: n holds what is not a number"):
        calibrate(tmp_path / "small.onnx", SCHEME, feeds())


def test_entropy_is_quick_enough_for_a_large_model():
    """ViT-B/32 has 49 tensors and sees 6.4 million values in a batch of two pictures; 512 pictures shall take minutes."""
    values = np.random.default_rng(0).normal(size=1_000_000).astype(np.float32)
    histogram = Histogram()
    histogram.add(values)
    started = time.process_time()
    for _ in range(5):
        histogram.add(values)
    range_of(histogram, "entropy")
    assert time.process_time() - started < 5 * 0.1 + 0.5


def test_products_take_their_bias_in_and_answer_the_same(tmp_path):
    onnx.save(small_graph(), tmp_path / "small.onnx")
    apart = dataclasses.replace(SCHEME, fused_products=False)
    for name, scheme in (("apart", apart), ("fused", SCHEME)):
        quantize_graph(tmp_path / "small.onnx", tmp_path / f"{name}.onnx", scheme, feeds())
    model = onnx.load(tmp_path / "fused.onnx")
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("MatMulIntegerToFloat") == 2 and kinds.count("Add") == 1, "the sum stays, the bias goes"
    assert "DequantizeLinear" not in kinds and int8_products(model) == {"first", "second"}
    apart_answer, fused_answer = (
        run(onnx.load(tmp_path / f"{name}.onnx"), feeds(1, seed=9)[0]) for name in ("apart", "fused")
    )
    assert np.abs(apart_answer - fused_answer).max() < 1e-5
