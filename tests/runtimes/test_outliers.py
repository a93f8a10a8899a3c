"""Outliers that are planted without changing a model: the search brings back what per-tensor ranges lose."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from mmcompress.metrics._statistics import bootstrap_means, drop_estimate
from mmcompress.runtimes._quantize import quantize_graph
from mmcompress.runtimes._search import Drop, Search
from mmcompress.runtimes.onnxruntime import OnnxRuntime

D, HIDDEN, CLASSES, BLOCKS = 96, 192, 40, 5
SCHEME = OnnxRuntime.model_validate({"for": "x86-vnni"}).scheme()


def weights() -> dict[str, np.ndarray]:
    """Blocks of LayerNormalization and two products with a residual, and a last one that reads classes."""
    rng = np.random.default_rng(0)
    found = {}
    for block in range(BLOCKS):
        found[f"gain{block}"] = 10 ** rng.uniform(-1.0, 0.0, D)
        found[f"shift{block}"] = rng.normal(0, 0.2, D) * found[f"gain{block}"]
        found[f"up{block}"] = rng.normal(0, D**-0.5, (D, HIDDEN)) / found[f"gain{block}"][:, None]
        found[f"up_bias{block}"] = rng.normal(0, 0.1, HIDDEN)
        found[f"down{block}"] = rng.normal(0, 1.5 * HIDDEN**-0.5, (HIDDEN, D))
    found["gain_last"], found["shift_last"] = 10 ** rng.uniform(-1.0, 0.0, D), np.zeros(D)
    found["head"] = np.zeros((D, CLASSES))
    return {name: value.astype(np.float32) for name, value in found.items()}


def graph(values: dict[str, np.ndarray]) -> onnx.ModelProto:
    nodes, x = [], "x"
    for block in range(BLOCKS):
        named = {
            name: f"{name}{block}" for name in ("gain", "shift", "up", "up_bias", "down", "n", "u", "b", "r", "d", "y")
        }
        nodes += [
            helper.make_node(
                "LayerNormalization", [x, named["gain"], named["shift"]], [named["n"]], named["n"], axis=-1
            ),
            helper.make_node("MatMul", [named["n"], named["up"]], [named["u"]], named["u"]),
            helper.make_node("Add", [named["u"], named["up_bias"]], [named["b"]], named["b"]),
            helper.make_node("Relu", [named["b"]], [named["r"]], named["r"]),
            helper.make_node("MatMul", [named["r"], named["down"]], [named["d"]], named["d"]),
            helper.make_node("Add", [x, named["d"]], [named["y"]], named["y"]),
        ]
        x = named["y"]
    nodes.append(helper.make_node("LayerNormalization", [x, "gain_last", "shift_last"], ["n_last"], "n_last", axis=-1))
    nodes.append(helper.make_node("MatMul", ["n_last", "head"], ["logits"], "logits"))
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes,
        "blocks",
        [value("x", TensorProto.FLOAT, ["batch", D])],
        [value("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def plant(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gains of one channel in a hundred times 50, the weights that read it divided: the same function."""
    planted = {name: value.copy() for name, value in values.items()}
    for block in [*map(str, range(BLOCKS)), "_last"]:
        channel = values[f"gain{block}"].argmax()
        planted[f"gain{block}"][channel] *= 50
        planted[f"shift{block}"][channel] *= 50
        planted["head" if block == "_last" else f"up{block}"][channel] /= 50
    return planted


def run(path, x):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def examples(count: int, seed: int):
    """Points around the centres of classes."""
    centres = np.random.default_rng(1).normal(size=(CLASSES, D)).astype(np.float32)
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    return (centres[labels] + rng.normal(0, 1.75, (count, D))).astype(np.float32), labels


@cache
def model() -> dict[str, np.ndarray]:
    """The head is fitted to the features of the last normalisation by least squares."""
    values = weights()
    watched = graph(values)
    watched.graph.output.append(onnx.ValueInfoProto(name="n_last"))
    x, labels = examples(8000, 2)
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    (features,) = session.run(["n_last"], {"x": x})
    wanted = np.eye(CLASSES, dtype=np.float32)[labels] - 1 / CLASSES
    values["head"] = np.linalg.solve(features.T @ features + 0.01 * np.eye(D), features.T @ wanted).astype(np.float32)
    return values


class Judge:
    """Accuracy on validation examples, paired with FP32's."""

    def __init__(self, exact) -> None:
        self.x, self.labels = examples(4000, 3)
        self.exact = run(exact, self.x)

    def drops(self, graphs):
        answers = [self.exact, run(graphs["blocks"], self.x)]
        hits = [(logits.argmax(1) == self.labels).astype(float)[:, None] for logits in answers]
        means = [bootstrap_means(found, 0)[:, 0] for found in hits]
        estimate = drop_estimate((hits[0].mean(), hits[1].mean()), len(self.x), (means[0], means[1]))
        return {"accuracy": Drop(estimate.value, estimate.one_sided95[1])}

    def nearness(self, graph, path):
        return -float(((run(path, self.x[:256]) - self.exact[:256]) ** 2).mean())


def test_planted_outliers_come_back(tmp_path):
    x, labels = examples(5000, 4)
    planted = tmp_path / "blocks.onnx"
    onnx.save(graph(model()), tmp_path / "clean.onnx")
    onnx.save(graph(plant(model())), planted)
    clean, same = run(tmp_path / "clean.onnx", x), run(planted, x)
    assert np.abs(clean - same).max() <= 1e-5 * max(1.0, np.abs(clean).max()) * 10
    accuracy = float((same.argmax(1) == labels).mean())
    assert accuracy > 0.8
    batches = [{"x": batch} for batch in np.split(examples(512, 5)[0], 8)]

    def kept(path):
        return float((run(path, x).argmax(1) == labels).mean()) / accuracy

    quantize_graph(planted, tmp_path / "minmax.onnx", SCHEME, batches)
    assert kept(tmp_path / "minmax.onnx") < 0.7
    search = Search(
        {"blocks": planted},
        SCHEME,
        {"blocks": batches},
        Judge(planted),
        {"accuracy": 0.008},
        "interval",
        tmp_path,
        lambda *told: None,
    )
    found = search.run()
    assert found.choices["blocks"].smoothing is not None
    assert len(found.choices["blocks"].float_nodes) <= 2
    assert kept(search.write("blocks", found.choices["blocks"])) >= 0.99
    assert found.drops["accuracy"].upper <= 0.008 + 1e-9
